"""The quick way to a header says the same as pydicom's, or leaves it to pydicom."""

from __future__ import annotations

import random
import struct
from dataclasses import asdict
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import RefusedInstance
from dicom_node.services.headers import check_identity, facts_of, patient_of, scan_header
from dicom_node.services.headers import read_header as by_pydicom
from dicom_node.services.plain import PlainHeader
from tests.arrivals import encode
from tests.dicoms import code, ct_slice, dx_image, enhanced_ct

SYNTAXES = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]


def told(header: Any) -> list[Any]:
    return [asdict(facts_of(header, "sha", "A", "B")), patient_of(header)]


def is_plain(dataset: Dataset, syntax: str = SYNTAXES[0]) -> bool:
    return isinstance(scan_header(encode(dataset, syntax), syntax), PlainHeader)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ImageType": "ORIGINAL", "ConvolutionKernel": ["B70f", "3"]},
        {"SeriesDescription": "  two  words ", "SliceThickness": "1e0", "SeriesNumber": "-4"},
        {"ImageType": None, "NumberOfFrames": 3, "LossyImageCompression": "01"},
        {"SliceThickness": "", "SeriesNumber": "", "PatientID": ""},
        {"SpecificCharacterSet": "ISO_IR 192", "IssuerOfPatientID": "HOSPITAL"},
        {"BitsAllocated": 8, "AcquisitionTime": "101112.123", "StationName": "CT~1"},
    ],
)
@pytest.mark.parametrize("make", [ct_slice, dx_image])
def test_the_usual_image_needs_no_pydicom(make: Any, changes: dict[str, Any], syntax: str) -> None:
    dataset = make(**changes)
    data = encode(dataset, syntax)
    header = scan_header(data, syntax)
    assert isinstance(header, PlainHeader)
    assert told(header) == told(by_pydicom(data, syntax))
    check_identity(header, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))


@pytest.mark.parametrize(
    "dataset",
    [
        ct_slice(SeriesDescription="Größe"),
        ct_slice(SpecificCharacterSet="ISO_IR 13"),
        ct_slice(PatientID="A\0B"),
        ct_slice(SeriesDescription="A\\B"),
        ct_slice(BodyPartExamined=None, AnatomicRegionSequence=[code("51185008", "SCT", "Chest")]),
        enhanced_ct(2),
    ],
    ids=["umlaut", "japanese", "null", "two values", "sequence", "functional groups"],
)
def test_what_is_unusual_is_pydicoms_to_read(dataset: Dataset) -> None:
    assert not is_plain(dataset)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of every bad value
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_both_ways_agree_on_damage_anywhere(syntax: str) -> None:
    """Elements may be torn, doubled, of another VR, or of another encoding than told."""
    pick = random.Random(11)
    dataset = dx_image(ImageType=["ORIGINAL", "PRIMARY"], SliceThickness="2.5")
    good, other = (encode(dataset, s) for s in sorted(SYNTAXES, key=lambda s: s != syntax))
    plain = 0
    for _ in range(1500):
        data = bytearray(other if pick.random() < 0.02 else good)
        for _ in range(pick.choice((1, 1, 2, 4))):
            data[pick.randrange(1400)] = pick.choice((0, 32, 92, 255, 85, pick.randrange(256)))
        try:
            expected = told(by_pydicom(bytes(data), syntax))
        except RefusedInstance:
            expected = []
        try:
            header = scan_header(bytes(data), syntax)
            plain += isinstance(header, PlainHeader)
            assert told(header) == expected
        except RefusedInstance:
            assert not expected
    assert plain > 500


def test_sequences_of_undefined_length_are_stepped_over() -> None:
    data = encode(ct_slice())
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    item += struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 4) + b"FAKE"
    item += struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    inner = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item + end
    header = scan_header(inner + data, SYNTAXES[0])
    assert isinstance(header, PlainHeader)
    assert patient_of(header) == patient_of(by_pydicom(data, SYNTAXES[0]))
