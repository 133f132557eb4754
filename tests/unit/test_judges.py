"""The judges see what is broken: each of them is shown an object that was spoilt on purpose."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Encoding, ScForm, SegForm, SrForm
from tests.attributes import TABLE, attributes
from tests.judges.dcmtk import dsr2html, dsrdump
from tests.judges.dicom3tools import dciodvfy
from tests.judges.exhibits import apart, made, predicted, source_of
from tests.judges.qiicr import dcmqi
from tests.judges.readback import readback
from tests.judges.table import JUDGES, templates
from tests.judges.types import NotApplicable, Origin, parse
from tests.tid1500 import TEMPLATES, children, descendants, evaluations, groups

FORMS = {
    "seg": SegForm(),
    "fractional": SegForm(Encoding.FRACTIONAL),
    "labelmap": SegForm(Encoding.LABELMAP),
    "sr": SrForm(),
    "sc": ScForm(),
}
Break = Callable[[Dataset], Any]


@cache
def exhibit(kind: str, source_name: str = "CT") -> tuple[bytes, Origin]:
    source, stack = source_of(source_name)
    prediction = predicted(stack)
    if kind == "labelmap":
        prediction = apart(prediction)
    forms = [FORMS[kind], *([SegForm()] if kind == "sr" else [])]
    files, origin = made(prediction, source, stack, forms)
    return files[str(FORMS[kind])], origin


def spoilt(data: bytes, how: Break) -> bytes:
    dataset = parse(data)
    how(dataset)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def put(**values: Any) -> Break:
    def how(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return how


def without(keyword: str) -> Break:
    return lambda dataset: delattr(dataset, keyword)


def equipment(**values: Any) -> Break:
    return lambda dataset: put(**values)(dataset.ContributingEquipmentSequence[0])


def first_segment(how: Break) -> Break:
    return lambda dataset: how(dataset.SegmentSequence[0])


def first_frame(how: Break) -> Break:
    return lambda dataset: how(dataset.PerFrameFunctionalGroupsSequence[0])


def drop(name: str) -> Break:
    """Removes content items of the root by concept."""

    def how(dataset: Dataset) -> None:
        gone = children(dataset, name=name)
        assert gone
        dataset.ContentSequence = [c for c in dataset.ContentSequence if c not in gone]

    return how


def first(value_type: str, how: Break) -> Break:
    return lambda dataset: how(descendants(dataset, value_type)[0])


def every(value_type: str, how: Break) -> Break:
    return lambda dataset: [how(item) for item in descendants(dataset, value_type)]


def shift(dataset: Dataset) -> None:
    """A tenth of a micrometre more than is allowed."""
    plane = dataset.PlanePositionSequence[0]
    x, y, z = (float(value) for value in plane.ImagePositionPatient)
    plane.ImagePositionPatient = [x, y, z + 0.0002]


def say_present(dataset: Dataset) -> None:
    for item in descendants(dataset, "CODE"):
        code = item.ConceptCodeSequence[0]
        if code.CodeValue == "2667000":
            code.CodeValue = "52101004"


def another_source(dataset: Dataset) -> None:
    reference = dataset.DerivationImageSequence[0].SourceImageSequence[0]
    reference.ReferencedSOPInstanceUID = "1.2.3"


def other_points(item: Dataset) -> None:
    item.GraphicData = [float(value) + 0.5 for value in item.GraphicData]


def open_line(item: Dataset) -> None:
    item.GraphicData = [*item.GraphicData[:-1], float(item.GraphicData[-1]) + 1]


def name_a_frame(item: Dataset) -> None:
    for image in children(item, "IMAGE"):
        image.ReferencedSOPSequence[0].ReferencedFrameNumber = 1


def misname(dataset: Dataset) -> None:
    dataset.ContentSequence[0].ConceptNameCodeSequence[0].CodeMeaning = "Tongue"


def forget(dataset: Dataset) -> None:
    for item in descendants(dataset, "TEXT"):
        item.TextValue = item.TextValue.replace("not for diagnosis", "")


def new_version(dataset: Dataset) -> None:
    for item in descendants(dataset, "TEXT"):
        item.TextValue = item.TextValue.replace("1.2.0", "1.3.0")


def one_series(dataset: Dataset) -> None:
    dataset.SeriesInstanceUID = exhibit("seg")[1].source.first.SeriesInstanceUID


def supersede(dataset: Dataset) -> None:
    dataset.PredecessorDocumentsSequence = dataset.CurrentRequestedProcedureEvidenceSequence


BROKEN: dict[str, list[tuple[str, str, Break]]] = {
    "patient": [("sr", "CT", put(PatientID="X")), ("seg", "DX", put(PatientName="Muller^Jorg"))],
    "Patient's Sex": [("sc", "CT", put(PatientSex="F"))],
    "study": [("seg", "CT", put(AccessionNumber="other"))],
    "type 2 of patient and study": [("sr", "CT", without("StudyID"))],
    "Timezone Offset From UTC": [("sr", "CT, tilted", put(TimezoneOffsetFromUTC="+0100"))],
    "content date and time": [("seg", "CT, tilted", put(ContentTime="223005"))],
    "Specific Character Set": [
        ("sr", "MR", put(SpecificCharacterSet=["", "ISO 2022 IR 87"])),
        ("seg", "CT", put(SpecificCharacterSet="ISO_IR 144")),
    ],
    "Modality": [("sr", "CT", put(Modality="OT"))],
    "Series Description": [
        ("seg", "CT", put(SeriesDescription="Lungs on radiographs 1.2.0")),
        ("seg", "CT", put(SeriesDescription="Research use")),
    ],
    "series": [("seg", "CT", one_series)],
    "UIDs": [
        ("seg", "CT", put(SeriesInstanceUID="2.25.1")),
        ("sr", "CT", equipment(DeviceUID="1.2.3")),
    ],
    "file meta": [("sr", "CT", lambda ds: delattr(ds.file_meta, "ImplementationVersionName"))],
    "equipment": [("seg", "CT", put(ManufacturerModelName="another"))],
    "Contributing Equipment": [("sr", "CT", equipment(Manufacturer="another"))],
    "Device UID": [("sr", "CT", equipment(DeviceUID="2.25.1"))],
    "derivation of each frame": [("seg", "CT", first_frame(another_source))],
    "Frame of Reference UID": [("seg", "CT", put(FrameOfReferenceUID="1.2.3"))],
    "geometry": [("seg", "CT", first_frame(shift)), ("labelmap", "CT", first_frame(shift))],
    "placeholders": [
        ("seg", "DX", without("ImageComments")),
        ("seg", "US", lambda ds: put(PixelSpacing=[2, 3])(
            ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0])),
    ],
    "Patient Orientation": [("seg", "DX", put(PatientOrientation=["R", "F"]))],
    "segments": [("seg", "CT", first_segment(put(SegmentLabel="Another")))],
    "recommended colour": [("seg", "CT", first_segment(without("RecommendedDisplayCIELabValue")))],
    "Referenced Series": [
        ("seg", "CT", lambda ds: ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop())
    ],
    "Segments Overlap": [("seg", "CT", put(SegmentsOverlap="NO"))],
    "Segmentation Type": [("fractional", "CT", put(SegmentationFractionalType="OCCUPANCY"))],
    "dimension indices": [
        ("seg", "CT", first_frame(lambda f: put(DimensionIndexValues=[1])(
            f.FrameContentSequence[0])))
    ],
    "tracking": [
        ("seg", "CT", first_segment(without("TrackingID"))),
        ("sr", "CT", every("UIDREF", put(UID="1.2.3"))),
    ],
    "flags": [("sr", "CT", put(VerificationFlag="VERIFIED"))],
    "evidence": [
        ("sr", "CT", put(CurrentRequestedProcedureEvidenceSequence=[])),
        ("sr", "CT", first("IMAGE", lambda i: put(ReferencedSOPInstanceUID="1.2.3")(
            i.ReferencedSOPSequence[0]))),
    ],
    "image library": [
        ("sr", "CT", lambda ds: descendants(ds, "CONTAINER")[1].ContentSequence.pop())
    ],
    "Procedure Reported": [("sr", "CT", drop("121058 DCM"))],
    "Predecessor Documents": [("sr", "CT", supersede)],
    "research use": [("sr", "CT", forget)],
    "verdicts": [("sr", "CT", say_present)],
    "algorithm": [
        ("seg", "CT", first_segment(put(SegmentAlgorithmType="SEMIAUTOMATIC"))),
        ("sr", "CT", new_version),
    ],
    "numbers": [
        ("sr", "CT", every("NUM", lambda i: put(NumericValue="1")(i.MeasuredValueSequence[0])))
    ],
    "boxes": [("sr", "CT", every("SCOORD", other_points))],
    "outlines": [("sr", "CT", first("SCOORD", open_line))],
    "frame numbers": [("sr", "CT", first("SCOORD", name_a_frame))],
    "code meanings": [("sr", "CT", misname)],
    "secondary capture": [("sc", "CT", put(BurnedInAnnotation="NO"))],
    "no place in the patient": [("sc", "CT", put(FrameOfReferenceUID="1.2.3"))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "kind", "source", "how"),
    [(what, *each) for what, cases in BROKEN.items() for each in cases],
)
def test_each_row_of_the_attributes_sees_what_breaks_it(
    what: str, kind: str, source: str, how: Break
) -> None:
    data, origin = exhibit(kind, source)
    assert attributes(data, origin) == []
    found = attributes(spoilt(data, how), origin)
    assert [one for one in found if one.startswith(f"{what}: ")], found


def test_a_result_of_a_lossy_source_must_say_so() -> None:
    data, origin = exhibit("seg", "DX")
    lossy = copy.deepcopy(origin.source.first)
    lossy.LossyImageCompression = "01"
    source = dataclasses.replace(origin.source, datasets=(lossy,))
    found = attributes(data, dataclasses.replace(origin, source=source))
    assert [one for one in found if one.startswith("lossy compression: ")]


def test_every_row_of_the_attributes_was_broken_once() -> None:
    assert {row.what for row in TABLE} - set(BROKEN) == {"lossy compression"}


# -- Templates ----------------------------------------------------------------------------------


def in_first_group(how: Break) -> Break:
    return lambda dataset: how(groups(dataset)[0])


def without_type(value_type: str) -> Break:
    def how(item: Dataset) -> None:
        item.ContentSequence = [c for c in item.ContentSequence if c.ValueType != value_type]

    return how


def twist(name: str) -> Break:
    """Puts items of the group in the other order."""

    def how(item: Dataset) -> None:
        moved = children(item, name=name)
        assert moved
        others = [c for c in item.ContentSequence if c not in moved]
        item.ContentSequence = [*others, *moved]

    return how


def refer(template: str, **values: Any) -> Break:
    """Changes the reference to the segmentation in the first group of a template."""

    def how(dataset: Dataset) -> None:
        image = children(groups(dataset, template)[0], "IMAGE")[0]
        put(**values)(image.ReferencedSOPSequence[0])

    return how


@pytest.mark.parametrize(
    ("source", "how", "row"),
    [
        ("CT", without("ContentTemplateSequence"), "C.18.8"),
        ("CT", drop("121049 DCM"), "TID 1204 row 1"),
        ("CT", drop("121005 DCM"), "TID 1002 row 1"),
        ("CT", drop("121012 DCM"), "TID 1004 row 1"),
        ("CT", twist("121012 DCM"), "TID 1004 row 1"),
        ("CT", drop("121058 DCM"), "TID 1500 row 4"),
        ("CT", drop("111028 DCM"), "TID 1600 row 1"),
        ("CT", in_first_group(without_type("UIDREF")), "TID 1501 row 3"),
        ("CT", in_first_group(twist("111001 DCM")), "TID 4019 row 1"),
        ("CT", in_first_group(without_type("TEXT")), "TID 4019 row 2"),
        ("CT", first("CODE", put(RelationshipType="HAS PROPERTIES")), "no row of 1500"),
        ("CT", first("SCOORD", without("ContentSequence")), "TID 320 row 4"),
        ("CT", refer("1411", ReferencedSegmentNumber=[1, 2]), "TID 1411 row 7"),
        ("CT", refer("1411", ReferencedFrameNumber=1), "TID 1411 row 7"),
        ("DX", refer("1410", ReferencedFrameNumber=[1, 2]), "TID 1410 row 7"),
        ("DX", refer("1410", ReferencedSegmentNumber=1), "TID 1410 row 7"),
        (
            "DX",
            lambda ds: (
                twist("121214 DCM")(groups(ds, "1410")[0])
                or groups(ds, "1410")[0].ContentSequence.pop()
            ),
            "TID 1410 rows 5, 7, 7b and 8b",
        ),
        (
            "CT",
            lambda ds: without_type("IMAGE")(groups(ds, "1411")[0]),
            "TID 1411 rows 5, 7, 10 and 12b",
        ),
        (
            "CT",
            lambda ds: groups(ds)[0].ContentTemplateSequence.clear(),
            "TID 1500 rows 7, 8, 9",
        ),
        (
            "CT",
            lambda ds: put(RelationshipType="CONTAINS")(children(evaluations(ds)[0])[0]),
            "no row of evaluation",
        ),
    ],
)
def test_the_rows_of_the_templates_see_what_breaks_them(source: str, how: Break, row: str) -> None:
    data, origin = exhibit("sr", source)
    assert templates(data, origin) == []
    found = templates(spoilt(data, how), origin)
    assert isinstance(found, list)
    assert [one for one in found if row in one], found


def test_every_table_of_rows_can_be_reached() -> None:
    below = {row.below for rows in TEMPLATES.values() for row in rows}
    assert set(TEMPLATES) - {"1500", "1501", "1410", "1411"} == below - {None, "group"}


# -- Other people's programs --------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMS)
def test_a_sound_object_passes_every_judge_or_is_not_for_it(kind: str) -> None:
    data, origin = exhibit(kind)
    for judge in JUDGES.values():
        verdict = judge(data, origin)
        assert isinstance(verdict, NotApplicable) or verdict == []


def test_dciodvfy_sees_a_missing_attribute() -> None:
    data, origin = exhibit("seg")
    found = dciodvfy(spoilt(data, without("ContentLabel")), origin)
    assert isinstance(found, list)
    assert "ContentLabel" in found[0]


def test_dciodvfy_forgives_what_the_source_does_not_have_either() -> None:
    data, origin = exhibit("seg")
    bad = copy.deepcopy(origin.source.datasets[0])
    bad.PatientSex = "Q"
    source = dataclasses.replace(origin.source, datasets=(bad, *origin.source.datasets[1:]))
    assert dciodvfy(spoilt(data, put(PatientSex="Q")), origin) != []
    forgiven = dataclasses.replace(origin, source=source)
    assert dciodvfy(spoilt(data, put(PatientSex="Q")), forgiven) == []


def test_dsrdump_sees_a_relationship_that_the_standard_does_not_know() -> None:
    data, origin = exhibit("sr")
    found = dsrdump(spoilt(data, first("SCOORD", put(RelationshipType="CONTAINS"))), origin)
    assert isinstance(found, list)
    assert found


def test_dsr2html_misses_the_words_of_a_finding() -> None:
    data, origin = exhibit("sr")
    blank = dataclasses.replace(origin.prediction, notes=("Something else.",))
    assert dsr2html(data, dataclasses.replace(origin, prediction=blank)) == [
        "dsr2html: not on the page: 'Something else.'"
    ]


def test_dcmqi_sees_another_voxel_another_place_and_another_number() -> None:
    data, origin = exhibit("seg")
    prediction = origin.prediction
    mask = prediction.segments[0].mask.copy()
    mask[0, 0, 0] = True
    segments = (dataclasses.replace(prediction.segments[0], mask=mask), *prediction.segments[1:])
    other = dataclasses.replace(prediction, segments=segments)
    assert said(dcmqi(data, dataclasses.replace(origin, prediction=other)), "1 voxels differ")

    def move(dataset: Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            plane = frame.PlanePositionSequence[0]
            x, y, z = (float(value) for value in plane.ImagePositionPatient)
            plane.ImagePositionPatient = [x + 1, y, z]

    assert said(dcmqi(spoilt(data, move), origin), "mm aside")
    report, origin = exhibit("sr")
    ones = every("NUM", lambda item: put(NumericValue="1")(item.MeasuredValueSequence[0]))
    assert said(dcmqi(spoilt(report, ones), origin), "stands 0 times")


def said(verdict: object, words: str) -> bool:
    return isinstance(verdict, list) and any(words in one for one in verdict)


@pytest.mark.parametrize("kind", ["seg", "fractional", "labelmap"])
def test_the_readers_see_other_voxels(kind: str) -> None:
    data, origin = exhibit(kind)

    def flip(dataset: Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, np.uint8).copy()
        place = np.flatnonzero(pixels)[0]
        pixels[place] = 0 if kind == "labelmap" else pixels[place] ^ 0b110
        dataset.PixelData = pixels.tobytes()

    found = readback(spoilt(data, flip), origin)
    assert said(found, "pydicom: ")
    assert said(found, "highdicom: ")


def test_the_readers_see_a_value_that_breaks_its_kind() -> None:
    data, origin = exhibit("seg")
    long = "x" * 17
    found = readback(data.replace(b"SH\x02\x00A1", b"SH\x12\x00" + long.encode() + b" "), origin)
    assert found


def test_a_judge_that_does_not_judge_says_why() -> None:
    data, origin = exhibit("seg", "CT, uneven")
    verdict = dcmqi(data, origin)
    assert isinstance(verdict, NotApplicable)
    assert "even grid" in verdict.reason
    assert dsrdump(data, origin) == NotApplicable("reads structured reports only")
