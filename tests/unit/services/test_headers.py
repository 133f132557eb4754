from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import asdict
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_node.errors import IdentifierProblem, OverLimit, RefusedInstance, UnreadableDataSet
from dicom_node.services import headers
from dicom_node.services.headers import (
    MAXIMUM_ELEMENTS,
    check_identity,
    facts_of,
    measure,
    patient_of,
    read_header,
    study_uid_of,
)
from dicom_node.services.plain import key_of
from tests.arrivals import encode
from tests.dicoms import code, ct_slice, dx_image, enhanced_ct, item

EXPLICIT, IMPLICIT = str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)


def facts(dataset: Dataset) -> Any:
    return facts_of(read_header(encode(dataset), EXPLICIT), "sha", "CT1", "NODE")


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def rle(dataset: Dataset) -> Dataset:
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_header_is_what_is_asked_of_it_and_no_pixels(syntax: str) -> None:
    dataset = ct_slice(ImageComments="of no use", ReferencedImageSequence=[item()])
    header = read_header(encode(dataset, syntax), syntax)
    assert header.Rows == 64
    assert not {"PixelData", "ImageComments", "ReferencedImageSequence"} & set(header.dir())


def test_an_object_without_pixels_is_read_whole() -> None:
    document = ct_slice(PixelData=None, Rows=None, Columns=None)
    assert not facts(document).is_image


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("missing", [1, 2, 100, 8192])
def test_native_pixels_that_break_off_are_refused(syntax: str, missing: int) -> None:
    data = encode(ct_slice(), syntax)
    with pytest.raises(UnreadableDataSet, match=f"truncated: {missing} bytes are missing"):
        read_header(data[:-missing], syntax)


@pytest.mark.parametrize("missing", [1, 4, 8, 9, 100])
def test_compressed_pixels_that_break_off_are_refused(missing: int) -> None:
    data = encode(rle(ct_slice()))
    read_header(data, str(RLELossless))
    with pytest.raises(UnreadableDataSet, match="truncated"):
        read_header(data[:-missing], str(RLELossless))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_header_that_breaks_off_inside_an_element_is_refused(syntax: str) -> None:
    """Wherever it is cut: only a cut between two elements leaves a data set."""
    dataset = ct_slice(PixelData=None)
    dataset.AnatomicRegionSequence = [code("51185008", "SCT", "Chest")]
    data = encode(dataset, syntax)
    whole = {0}
    for element in dataset:
        part = Dataset()
        part.add(element)
        whole.add(max(whole) + len(encode(part, syntax)))
    assert max(whole) == len(data)
    for end in range(len(data)):
        if end in whole:
            read_header(data[:end], syntax)
        else:
            with pytest.raises(UnreadableDataSet):
                read_header(data[:end], syntax)


def test_pixels_cut_inside_their_own_tag_are_refused() -> None:
    data = encode(ct_slice())
    start = data.index(b"\xe0\x7f\x10\x00OW")
    for kept in range(1, 12):
        with pytest.raises(UnreadableDataSet):
            read_header(data[: start + kept], EXPLICIT)


def test_pixels_of_unknown_vr_are_measured_too() -> None:
    data = encode(ct_slice()).replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00UN")
    read_header(data, EXPLICIT)
    with pytest.raises(UnreadableDataSet, match="truncated: 10 bytes"):
        read_header(data[:-10], EXPLICIT)


@pytest.mark.parametrize(
    "data", [b"not DICOM at all" * 50, b"\x89PNG\r\n\x1a\n" + bytes(500), b"\xff" * 1000]
)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_what_is_no_dicom_is_refused(data: bytes, syntax: str) -> None:
    with pytest.raises(RefusedInstance):
        check_identity(read_header(data, syntax), "1.2", "1.3")


def test_nothing_at_all_has_no_identity() -> None:
    with pytest.raises(IdentifierProblem, match="SOPClassUID"):
        check_identity(read_header(b"", EXPLICIT), "1.2", "1.3")


@pytest.mark.parametrize("depth", [300, 20_000])
def test_sequences_nested_beyond_reason_are_refused(depth: int) -> None:
    start = struct.pack("<HH2sHL", 0x0040, 0x0275, b"SQ", 0, 0xFFFFFFFF)
    start += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    with pytest.raises(UnreadableDataSet):
        read_header(start * depth + end * depth, EXPLICIT)


@pytest.mark.parametrize(
    "declared",
    [
        {"Rows": 46341, "Columns": 65535, "NumberOfFrames": 4},
        {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 2147483647},
        {"Rows": 65535, "Columns": 65535, "BitsAllocated": 65535},
    ],
)
def test_pixels_declared_beyond_what_we_take_are_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(OverLimit, match="GiB of pixels"):
        read_header(encode(ct_slice(**declared)), EXPLICIT)


def test_a_size_that_overflows_32_bits_costs_no_memory() -> None:
    """What is declared is the model's matter; what is there is whole."""
    told = facts(ct_slice(Rows=46341, Columns=65535))
    assert (told.rows, told.columns) == (46341, 65535)


def test_a_deflated_data_set_is_read() -> None:
    data = deflated(encode(ct_slice()))
    assert read_header(data, str(DeflatedExplicitVRLittleEndian)).Rows == 64


def test_a_deflate_bomb_is_refused_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAXIMUM_INFLATED", 1 << 20)
    bomb = deflated(encode(ct_slice(ImageComments="")) + bytes(64 << 20))
    with pytest.raises(OverLimit, match="inflates beyond 1 MiB"):
        read_header(bomb, str(DeflatedExplicitVRLittleEndian))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, -1])
def test_a_deflated_data_set_that_breaks_off_is_refused(kept: float) -> None:
    data = deflated(encode(ct_slice()))
    end = len(data) - 1 if kept < 0 else int(len(data) * kept)
    with pytest.raises(UnreadableDataSet):
        read_header(data[:end], str(DeflatedExplicitVRLittleEndian))


def test_what_was_never_deflated_is_refused() -> None:
    with pytest.raises(UnreadableDataSet):
        read_header(encode(ct_slice()), str(DeflatedExplicitVRLittleEndian))


# -- identity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "told"),
    [
        ("StudyInstanceUID", None, "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "", "StudyInstanceUID is missing or no UID"),
        ("SeriesInstanceUID", None, "SeriesInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "../../etc/passwd", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1.2.", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1..2", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1.02", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1.2\n", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1." + "2" * 63, "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "1.\0002", "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", ["1.2", "1.3"], "StudyInstanceUID is missing or no UID"),
        ("StudyInstanceUID", "\u0661.2", "StudyInstanceUID is missing or no UID"),
        ("SOPInstanceUID", "1.2.3", "SOPInstanceUID differs from the request's or is missing"),
        ("SOPInstanceUID", None, "SOPInstanceUID differs from the request's or is missing"),
        ("SOPClassUID", "1.2.3", "SOPClassUID differs from the request's or is missing"),
    ],
)
def test_identifiers_that_are_missing_or_malformed_are_named(
    keyword: str, value: Any, told: str
) -> None:
    dataset = ct_slice()
    request = str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)
    if value is None:
        delattr(dataset, keyword)
    else:
        dataset[keyword]._value = value
    with pytest.raises(IdentifierProblem) as caught:
        check_identity(dataset, *request)
    assert caught.value.reason == told


def test_a_malformed_uid_that_both_agree_on_is_refused_too() -> None:
    dataset = ct_slice()
    dataset["SOPInstanceUID"]._value = "../../x"
    with pytest.raises(IdentifierProblem, match="SOPInstanceUID is missing or no UID"):
        check_identity(dataset, str(dataset.SOPClassUID), "../../x")


@pytest.mark.parametrize("padding", [b"\0", b" "])
def test_padding_of_a_uid_is_no_part_of_it(padding: bytes) -> None:
    data = encode(ct_slice(StudyInstanceUID="1.2.3")).replace(b"1.2.3\0", b"1.2.3" + padding)
    dataset = read_header(data, EXPLICIT)
    check_identity(dataset, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
    assert study_uid_of(dataset) == "1.2.3"


# -- facts -------------------------------------------------------------------------------------


def test_facts_are_what_the_header_says() -> None:
    told = facts(dx_image(SeriesDescription=" Thorax pa ", RequestedProcedurePriority="STAT"))
    assert told.modality == "DX"
    assert told.sop_class == "Digital X-Ray Image Storage - For Presentation"
    assert (told.body_part, told.view) == ("CHEST", "PA")
    assert told.series_description == "Thorax pa"
    assert (told.rows, told.columns, told.frames) == (96, 80, 1)
    assert (told.priority, told.calling_ae, told.called_ae) == ("STAT", "CT1", "NODE")
    assert told.is_image


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("unknown", [False, True], ids=["SQ", "UN"])
@pytest.mark.parametrize("per_frame", [False, True], ids=["shared", "of a frame"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_an_enhanced_image_tells_by_its_functional_groups(
    syntax: str, per_frame: bool, unknown: bool, undefined: bool
) -> None:
    """In every encoding of its sequences; the first frame speaks for all."""
    image = enhanced_ct(4)
    if per_frame:
        image.PerFrameFunctionalGroupsSequence[0].update(image.SharedFunctionalGroupsSequence[0])
        del image.SharedFunctionalGroupsSequence
    for element in image.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for one in element.value:
                one.is_undefined_length_sequence_item = undefined
    if unknown and syntax == EXPLICIT:  # its content is implicit then (PS3.5 6.2.2)
        groups = {e.tag: e for e in image if e.tag.group == 0x5200}
        for tag in groups:
            del image[tag]
        inner = Dataset()
        inner._dict.update(groups)
        data = _with(encode(image), _as_unknown(encode(inner, IMPLICIT), undefined))
    else:
        data = encode(image, syntax)
    told = facts_of(read_header(data, syntax), "sha", "CT1", "NODE")
    assert told.frames == 4
    assert told.thickness_mm == 5.0
    assert told.orientation == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _as_unknown(implicit: bytes, undefined: bool) -> bytes:
    """Its top level's elements as UN."""
    if undefined:  # all that follows is theirs, up to the next
        heads = [
            at for at in range(0, len(implicit) - 8) if implicit[at + 4 : at + 8] == b"\xff" * 4
        ]
        heads = [at for at in heads if implicit[at : at + 2] == b"\x00\x52"]
        ends = [*heads[1:], len(implicit)]
        parts = [
            (implicit[a : a + 8], implicit[a + 8 : b]) for a, b in zip(heads, ends, strict=True)
        ]
    else:
        parts, at = [], 0
        while at < len(implicit):
            (length,) = struct.unpack_from("<L", implicit, at + 4)
            parts.append((implicit[at : at + 8], implicit[at + 8 : at + 8 + length]))
            at += 8 + length
    return b"".join(head[:4] + b"UN\0\0" + head[4:] + value for head, value in parts)


def _with(data: bytes, elements: bytes) -> bytes:
    """Before the pixels."""
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + elements + data[at:]


NOTHING = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
"""An item without content."""


def of_items(number: int, keyword: str, defined: bool = False, vr: bytes = b"SQ") -> bytes:
    """A sequence of so many items of nothing."""
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    length = number * len(NOTHING) if defined else 0xFFFFFFFF
    head = struct.pack("<L2s2xL", key_of(keyword), vr, length)
    return head + NOTHING * number + (b"" if defined else end)


@pytest.mark.parametrize("pack", [bytes, deflated], ids=["plain", "deflated"])
def test_elements_and_items_without_end_are_refused(pack: Any) -> None:
    syntax = EXPLICIT if pack is bytes else str(DeflatedExplicitVRLittleEndian)
    keyword = "PerFrameFunctionalGroupsSequence"
    honest = _with(encode(ct_slice()), of_items(MAXIMUM_ELEMENTS // 2, keyword))
    assert read_header(pack(honest), syntax).Rows == 64
    bomb = _with(encode(ct_slice()), of_items(MAXIMUM_ELEMENTS, keyword))
    with pytest.raises(OverLimit, match="more than 500000 elements"):
        read_header(pack(bomb), syntax)
    empty = struct.Struct("<HH2sH").pack
    bomb = b"".join(empty(0x3001, n & 0xFFFF, b"LO", 0) for n in range(MAXIMUM_ELEMENTS))
    with pytest.raises(OverLimit, match="more than 500000 elements"):
        read_header(pack(_with(encode(ct_slice()), bomb)), syntax)


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize(
    "keyword",
    [
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "AnatomicRegionSequence",
        "ReferencedImageSequence",
    ],
)
def test_pydicom_is_given_no_item_that_nobody_asks_for(keyword: str, defined: bool) -> None:
    data = _with(encode(ct_slice(BodyPartExamined=None)), of_items(200_000, keyword, defined))
    header = read_header(data, EXPLICIT)
    assert len(header.get(keyword, [])) <= 1
    facts_of(header, "", "CT1", "NODE")


def test_a_value_that_pydicom_would_make_millions_of_is_refused() -> None:
    """Two bytes of length hold no more; implicit VR and some others have four."""
    long = struct.pack("<L2s2xL", key_of("ImageType"), b"UC", 1 << 20) + b"\\" * (1 << 20)
    with pytest.raises(OverLimit, match="1048576 bytes in a value"):
        read_header(long + encode(ct_slice(ImageType=None)), EXPLICIT)


# -- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_a_message_is_measured_wherever_its_items_are(syntax: str, undefined: bool) -> None:
    references = [item(ReferencedSOPInstanceUID="1.2.3") for _ in range(50)]
    whole = item(PerformedSeriesSequence=[item(ReferencedImageSequence=references)])
    for element in whole.iterall():
        element.is_undefined_length = undefined and element.VR == "SQ"
    # An element, an item, an element and fifty items with one each; and each has an end.
    assert measure(encode(whole, syntax), syntax) == 2 + 2 + 2 + 50 * 3 + 1


@pytest.mark.parametrize("vr", [b"SQ", b"UN"])
@pytest.mark.parametrize("defined", [True, False])
def test_a_message_of_items_without_end_is_refused(vr: bytes, defined: bool) -> None:
    bomb = of_items(MAXIMUM_ELEMENTS, "ReferencedSOPSequence", defined, vr)
    with pytest.raises(OverLimit, match="more than 500000 elements"):
        measure(bomb, EXPLICIT)
    with pytest.raises(OverLimit, match="more than 500000 values"):
        measure(struct.pack("<LL", key_of("TransactionUID"), 1 << 20) + b"\\" * (1 << 20), IMPLICIT)


def test_a_message_that_cannot_be_walked_is_refused() -> None:
    with pytest.raises(UnreadableDataSet, match="truncated"):
        measure(of_items(3, "ReferencedSOPSequence")[:-3], EXPLICIT)
    odd = of_items(3, "ReferencedSOPSequence", True).replace(
        NOTHING, b"\xfe\xff\x01\xe0" + bytes(4)
    )
    with pytest.raises(UnreadableDataSet, match="something else than items"):
        measure(odd, EXPLICIT)


def test_a_coded_region_stands_in_for_the_body_part() -> None:
    region = [code("51185008", "SCT", "Chest")]
    assert (
        facts(ct_slice(BodyPartExamined=None, AnatomicRegionSequence=region)).body_part == "Chest"
    )


@pytest.mark.parametrize(
    ("attributes", "field", "value"),
    [
        ({"SliceThickness": ""}, "thickness_mm", None),
        ({"ImageOrientationPatient": None}, "orientation", None),
        ({"ImageType": None}, "image_type", ()),
        ({"SeriesNumber": None}, "series_number", None),
        ({"NumberOfFrames": 0}, "frames", 1),
        ({"ConvolutionKernel": ["B70f", "3"]}, "kernel", "B70f\\3"),
        ({"AcquisitionDate": None, "AcquisitionTime": None}, "acquired", ""),
    ],
)
def test_an_absent_value_is_absent(attributes: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(facts(ct_slice(**attributes)), field) == value


def raw(keyword: str, vr: str, value: bytes, base: Dataset | None = None) -> bytes:
    """A CT slice with the bytes of one value, whatever they are."""
    dataset = ct_slice() if base is None else base
    marker = b"@" * (len(value) + len(value) % 2)
    dataset.add_new(keyword, "LO", marker.decode())
    data = encode(dataset)
    at = data.index(marker)
    return (
        data[: at - 4]
        + vr.encode()
        + data[at - 2 : at]
        + value.ljust(len(marker))
        + data[at + len(marker) :]
    )


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("ImageOrientationPatient", "DS", b"nan\\0\\0\\0\\1\\0"),
        ("ImageOrientationPatient", "DS", b"inf\\0\\0\\0\\1\\0"),
        ("SliceThickness", "DS", b"1e999"),
        ("SliceThickness", "DS", b"nan"),
        ("SeriesDescription", "LO", b"A\0B"),
        ("PatientID", "LO", b"A\0B"),
        ("PatientID", "LO", b"A\\B"),
        ("ImageType", "CS", b"A\0B\\C"),
        ("ConvolutionKernel", "SH", b"\0\0\0\0"),
        ("SeriesDescription", "LO", b"\xed\xa0\x80"),
        ("SeriesDescription", "LO", b"\xff\xfe"),
        ("SeriesNumber", "IS", b"12345678901234567890"),
        ("NumberOfFrames", "IS", b"-5"),
        ("BodyPartExamined", "CS", b"\x1b$B\xff"),
    ],
)
def test_whatever_a_value_holds_its_facts_can_be_stored(
    keyword: str, vr: str, value: bytes
) -> None:
    try:
        header = read_header(raw(keyword, vr, value), EXPLICIT)
    except UnreadableDataSet:
        return
    _storable(header)


def _storable(header: Dataset) -> None:
    """As both databases take it: JSON has no NaN, PostgreSQL's text no NUL, UTF-8 no surrogate."""
    told = facts_of(header, "", "CT1", "NODE")
    written = json.dumps([asdict(told), *asdict(patient_of(header)).values()], allow_nan=False)
    assert "\\u0000" not in written
    json.dumps(json.loads(written), ensure_ascii=False).encode("utf-8")


@pytest.mark.filterwarnings("ignore")  # pydicom's, of every bad value
def test_damage_anywhere_is_refused_by_name_or_gives_facts_that_can_be_stored() -> None:
    pick = random.Random(7)
    dataset = dx_image(AnatomicRegionSequence=[item(CodeValue="1", CodeMeaning="Chest")])
    good = encode(dataset)
    for _ in range(1500):
        data = bytearray(good[: 1200 + pick.randrange(200)] if pick.random() < 0.2 else good)
        for _ in range(pick.choice((1, 1, 2, 5))):
            data[pick.randrange(min(len(data), 1400))] = pick.choice((0, 255, pick.randrange(256)))
        try:
            header = read_header(bytes(data), EXPLICIT)
            check_identity(header, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        except RefusedInstance:
            continue
        _storable(header)


def test_one_senseless_value_loses_no_image_and_counts_as_absent() -> None:
    data = encode(ct_slice())
    at = data.index(b"\x18\x00\x50\x00DS") + 6  # Slice Thickness (0018,0050)
    length = int.from_bytes(data[at : at + 2], "little")
    broken = data[: at + 2] + b"x" * length + data[at + 2 + length :]
    header = read_header(broken, str(ExplicitVRLittleEndian))
    facts = facts_of(header, "0" * 64, "CT1", "NODE")
    assert facts.thickness_mm is None
    assert facts.rows == int(ct_slice().Rows)
