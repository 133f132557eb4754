"""TID 1500 reports as truth: what the node itself writes is read back, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Document, Identifiers, SrForm
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import ReferencedSOP, Source
from inference.reading import read_files
from inference.types import Box, Code, Finding, Prediction
from tests import dicoms
from tests.data import shared
from tests.results import CONTEXT, MODEL, blob, segment, source_of
from tests.unit.training.reading import bundle
from training.errors import DataError, RecipeError
from training.readers.reports import _around, statements
from training.recipe import DicomSr
from training.samples import TrueBox
from training.sources import load

RIGHT = Code("1000", "SCT", "Right thing")
LEFT = Code("1001", "SCT", "Left thing")
BOXES = bundle("detection", "Right", "Left")
CLASSES = bundle("classification", "Right", "Left")
DATA = DicomSr(kind="dicom-sr", folder="in")
FORMS = [
    SrForm(document, identifiers, cites=None)
    for document in (Document.COMPREHENSIVE_3D, Document.ENHANCED)
    for identifiers in (Identifiers.VIEWER, Identifiers.PLAIN)
]


def found(code: Code, present: bool, *boxes: Box) -> Finding:
    return Finding(code.meaning, code, present, probability=0.7, threshold=0.5, boxes=boxes)


def lay(folder: Path, datasets: Sequence[Dataset]) -> Source:
    paths = [dicoms.save(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]
    given = source_of(datasets)
    return Source(given.datasets, given.digests, read_files(paths).frames)


def told(
    folder: Path, source: Source, *findings: Finding, form: SrForm = FORMS[0], **context: object
) -> Path:
    """Writes the report that the service makes of these findings."""
    around = replace(CONTEXT, **context)  # type: ignore[arg-type] # any field
    (made,) = build_results(Prediction(findings=findings), source, MODEL, around, [form])
    path = folder / f"{made.dataset.SOPInstanceUID}.sr.dcm"
    path.write_bytes(encode(made.dataset))
    return path


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_boxes_come_back_on_their_frame(tmp_path, form):
    folder = tmp_path / "in"
    source = lay(folder, [dicoms.dx_image()])
    told(
        folder,
        source,
        found(RIGHT, True, Box(0, 1, 2.5, 30, 40), Box(0, 5, 6, 7, 8)),
        found(LEFT, True, Box(0, 40, 2, 70, 90.25)),
        form=form,
    )
    (sample,) = load(DATA, BOXES, tmp_path).learn
    assert set(sample.truth.boxes) == {
        TrueBox(0, 1, 2.5, 30, 40),
        TrueBox(0, 5, 6, 7, 8),
        TrueBox(1, 40, 2, 70, 90.25),
    }
    assert len(sample.truth.boxes) == 3
    assert sample.name == source.first.SOPInstanceUID
    assert sample.read().shape == (1, 96, 80)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_verdicts_come_back_as_classes(tmp_path, form):
    for i, verdicts in enumerate(((True, False), (False, True), (False, False))):
        folder = tmp_path / "in" / str(i)
        source = lay(folder, [dicoms.dx_image(number=i, patient_id=f"SECRET-{i}")])
        told(folder, source, found(RIGHT, verdicts[0]), found(LEFT, verdicts[1]), form=form)
    samples = load(DATA, CLASSES, tmp_path).learn
    assert sorted(s.truth.classes for s in samples) == [(0, 0), (0, 1), (1, 0)]
    assert len({s.group for s in samples}) == 3
    assert "SECRET" not in repr(samples)


@pytest.mark.parametrize(
    "datasets",
    [
        dicoms.ct_series(12)[::-1],
        [dicoms.enhanced_ct(4, order=(2, 0, 3, 1))],
        [dicoms.us_clip(3)],
    ],
    ids=["series, backwards", "enhanced CT", "clip"],
)
@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_a_box_on_one_of_many_frames_stays_there(tmp_path, datasets, form):
    folder = tmp_path / "in"
    source = lay(folder, datasets)
    told(
        folder,
        source,
        found(RIGHT, True, Box(2, 1, 2, 30, 40)),
        found(LEFT, True, Box(0, 3, 4, 30, 40)),
        form=form,
    )
    (sample,) = load(DATA, bundle("detection", "R", "L", unit="series"), tmp_path).learn
    assert set(sample.truth.boxes) == {TrueBox(0, 1, 2, 30, 40, 2), TrueBox(1, 3, 4, 30, 40, 0)}


def test_outlines_of_segments_become_the_boxes_around_them(tmp_path):
    folder = tmp_path / "in"
    source = lay(folder, [dicoms.dx_image()])
    mask = blob(source)
    prediction = Prediction((segment(mask, type=RIGHT),))
    (made,) = build_results(prediction, source, MODEL, CONTEXT, [FORMS[0]])
    (folder / "sr.dcm").write_bytes(encode(made.dataset))
    (sample,) = load(DATA, bundle("detection", "R"), tmp_path).learn
    rows, columns = np.flatnonzero(mask[0].any(1)), np.flatnonzero(mask[0].any(0))
    (box,) = sample.truth.boxes
    assert (box.left, box.right) == pytest.approx((columns[0], columns[-1] + 1), abs=2)
    assert (box.top, box.bottom) == pytest.approx((rows[0], rows[-1] + 1), abs=2)


def test_an_image_that_was_looked_at_without_finding_is_a_negative(tmp_path):
    folder = tmp_path / "in"
    told(folder, lay(folder, [dicoms.dx_image(number=1)]), found(RIGHT, False), found(LEFT, False))
    other = lay(folder, [dicoms.dx_image(number=2)])
    told(folder, other, *(found(c, True, Box(0, 1, 2, 30, 40)) for c in (RIGHT, LEFT)))
    lay(folder, [dicoms.dx_image(number=3)])
    samples = load(DATA, BOXES, tmp_path).learn
    assert sorted(len(s.truth.boxes) for s in samples) == [0, 2]


def test_exclusive_classes_need_only_the_one_that_is_there(tmp_path):
    for i, code in enumerate((RIGHT, LEFT)):
        folder = tmp_path / "in" / str(i)
        told(folder, lay(folder, [dicoms.dx_image(number=i)]), found(code, True))
    of = bundle("classification", "Right", "Left", activation="softmax")
    samples = load(DATA, of, tmp_path).learn
    assert sorted(s.truth.classes for s in samples) == [(0, 1), (1, 0)]


def test_a_report_that_was_replaced_is_passed_over(tmp_path):
    folder = tmp_path / "in"
    source = lay(folder, [dicoms.dx_image()])
    first = pydicom.dcmread(told(folder, source, found(RIGHT, True, Box(0, 1, 2, 30, 40))))
    before = ReferencedSOP(
        first.SOPClassUID, first.SOPInstanceUID, first.SeriesInstanceUID, first.StudyInstanceUID
    )
    right = found(RIGHT, True, Box(0, 9, 9, 30, 40))
    told(folder, source, right, generation=2, predecessors={FORMS[0]: before})
    (sample,) = load(DATA, bundle("detection", "R"), tmp_path).learn
    assert sample.truth.boxes == (TrueBox(0, 9, 9, 30, 40),)


def test_everything_wrong_is_told_in_one_error(tmp_path):
    folder = tmp_path / "in"
    uids = {}

    def case(name: str, *findings: Finding, number: int) -> None:
        source = lay(folder, [dicoms.dx_image(number=number)])
        uids[name] = pydicom.dcmread(told(folder, source, *findings)).SOPInstanceUID

    case("strange", found(Code("77", "SCT", "x"), True), number=1)
    case("half", found(RIGHT, True), number=2)
    twice = lay(folder, [dicoms.dx_image(number=3)])
    told(folder, twice, found(RIGHT, True), found(LEFT, False))
    told(folder, twice, found(RIGHT, True), found(LEFT, False), generation=2)
    away = lay(tmp_path / "away", [dicoms.dx_image(number=4)])
    uids["missing"] = pydicom.dcmread(told(folder, away, found(RIGHT, True))).SOPInstanceUID
    case("both", found(RIGHT, True), found(RIGHT, False), found(LEFT, False), number=5)
    with pytest.raises(DataError) as caught:
        load(DATA, CLASSES, tmp_path)
    message = str(caught.value)
    for said in (
        f"it knows the codes 1000, 1001; correct data.findings or leave them out): "
        f"{uids['strange']}",
        f"images that are missing (add the images): {uids['missing']}",
        "images with several reports (keep one): " + twice.first.SOPInstanceUID,
        f"(report {uids['half']})",
        f"(report {uids['both']})",
        "do not speak of every class",
        "both present and absent",
    ):
        assert said in message


def test_a_finding_that_is_not_drawn_is_no_negative(tmp_path):
    folder = tmp_path / "in"
    told(folder, lay(folder, [dicoms.dx_image()]), found(RIGHT, True))
    with pytest.raises(DataError, match="find what they do not draw"):
        load(DATA, BOXES, tmp_path)


def test_codes_of_the_recipe_come_before_those_of_the_bundle(tmp_path):
    folder = tmp_path / "in"
    told(folder, lay(folder, [dicoms.dx_image()]), found(LEFT, True, Box(0, 1, 2, 30, 40)))
    data = DicomSr(kind="dicom-sr", folder="in", findings=["1001"])
    (sample,) = load(data, bundle("detection", "Anything"), tmp_path).learn
    assert sample.truth.boxes == (TrueBox(0, 1, 2, 30, 40),)


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("CIRCLE", [10, 20, 13, 24], (5, 15, 15, 25)),
        ("ELLIPSE", [10, 20, 30, 20, 20, 15, 20, 25], (10, 15, 30, 25)),
        ("POLYLINE", [10, 20, 30, 20, 20, 40], (10, 20, 30, 40)),
        ("POLYLINE", [10, 20, 30, 20], None),
        ("MULTIPOINT", [10, 20, 30, 20, 20, 40], None),
    ],
)
def test_regions_have_boxes_and_lengths_and_marks_have_none(kind, points, box):
    found = _around(kind, np.array(points, float).reshape(-1, 2))
    assert found == (None if box is None else pytest.approx(box))


def test_regions_in_space_are_told(tmp_path):
    folder = tmp_path / "in"
    path = told(folder, lay(folder, [dicoms.dx_image()]), found(RIGHT, True, Box(0, 1, 2, 30, 40)))
    ds = pydicom.dcmread(path)
    for item in _all(ds):
        if item.get("ValueType") == "SCOORD":
            item.ValueType = "SCOORD3D"
    dicoms.save(ds, path)
    with pytest.raises(DataError, match="regions in space"):
        load(DATA, bundle("detection", "R"), tmp_path)


def _all(item: Dataset) -> list[Dataset]:
    below = list(item.get("ContentSequence") or [])
    return below + [child for row in below for child in _all(row)]


def test_reports_made_by_others_are_heard():
    report = pydicom.dcmread(
        shared("dicom", "highdicom", "data", "test_files", "sr_document_with_multiple_groups.dcm")
    )
    said = list(statements(report))
    assert said
    assert all(statement.code for statement in said)
    assert {line.box for statement in said for line in statement.outlines}


@pytest.mark.parametrize(
    "of",
    [
        bundle("grading", "A", "B"),
        bundle("segmentation", "A"),
        bundle("detection", "A", "B", codes=["1", "1"]),
    ],
)
def test_what_a_report_cannot_tell_is_a_matter_of_the_recipe(tmp_path, of):
    with pytest.raises(RecipeError):
        load(DATA, of, tmp_path)
