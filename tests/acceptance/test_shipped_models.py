"""The shipped models on images that none of them learnt from, made into DICOM and pushed through a
node: each is routed to its model, and the report says what the truth says, more often than not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom import Dataset

from dicom_node.domain.routing import parse_rules
from dicom_node.services import registry
from dicom_node.services.models import SHIPPED
from dicom_node.store.tables import Job
from dicom_node.worker.engines import WarmEngines
from inference.bundle import open_bundle
from inference.stored import loads
from inference.types import Prediction
from tests.arrivals import all_of
from tests.data import shared
from tests.dicoms import dx_image, uid, us_image
from tests.nodes import Clock, Node, add_bundle, settle, store
from training import steps
from training.recipe import read
from training.samples import Sample

RECIPES = Path(steps.__file__).parent / "recipes"
SHOWN = 24


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def held_out(recipe: str) -> list[Sample]:
    """Samples that the recipe's model did not learn from, of every class or grade alike."""
    parted = steps.part(read(RECIPES / f"{recipe}.toml"), shared())
    offered = [*parted.parts["test"], *(s for extra in parted.extra.values() for s in extra)]
    by: dict[object, list[Sample]] = {}
    for sample in offered:
        by.setdefault(sample.truth.classes or sample.truth.grade, []).append(sample)
    return [sample for mine in by.values() for sample in mine[: SHOWN // len(by)]]


def as_dicom(sample: Sample) -> Dataset:
    """The sample's picture as an instance of a study of its own."""
    stack = sample.read()
    grey = np.rint(stack.pixels[0] * 255).astype(np.uint8)
    if stack.modality == "US":
        ds = us_image(grey, study_uid=uid("held out", sample.name), BodyPartExamined="BREAST")
    else:
        ds = dx_image(grey, bits=8, spacing=None, study_uid=uid("held out", sample.name))
    ds.PatientID = f"held out {uid(sample.name)[-8:]}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid("image", sample.name)
    return ds


def told(node: Node, clock: Clock, folder: Path, name: str) -> list[tuple[Sample, Prediction]]:
    """What a shipped model says of each held-out sample, after a node routed, ran and sent it."""
    add_bundle(node, open_bundle(SHIPPED / name))
    registry.add_destination(node, "out", "folder", {"path": str(folder / "out")})
    rule = {"name": "all", "models": [name], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    shown = {str(ds.SOPInstanceUID): (s, ds) for s in held_out(name) for ds in [as_dicom(s)]}
    store(node, [ds for _, ds in shown.values()])
    clock.pass_(600)
    settle(node, WarmEngines(node))
    found = []
    for job in all_of(node, Job):
        assert (job.state, job.error) == ("done", "")
        assert job.prediction is not None
        prediction, frames, _ = loads(node.results.path(job.prediction).read_bytes())
        found.append((shown[frames[0].sop_instance_uid][0], prediction))
    assert len(found) == len(shown)
    return found


def sent(folder: Path, modality: str) -> list[Dataset]:
    every = [pydicom.dcmread(path) for path in sorted((folder / "out").rglob("*.dcm"))]
    return [ds for ds in every if ds.Modality == modality]


def said(report: Dataset) -> set[str]:
    return {str(e.value) for e in report.iterall() if e.keyword in ("CodeMeaning", "TextValue")}


def analysed(found: Sequence[tuple[Sample, Prediction]]) -> list[tuple[Sample, Prediction]]:
    """Those that the input check let pass; it may refuse a few and never many."""
    passed = [(sample, one) for sample, one in found if one.not_analysed is None]
    assert len(passed) >= 0.75 * len(found)
    return passed


def share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def test_breast_ultrasound_is_put_into_its_category(
    sqlite_node: Node, clock: Clock, tmp_path: Path
) -> None:
    found = told(sqlite_node, clock, tmp_path, "us-breast-category")
    names = ("Normal", "Benign", "Malignant")
    right = []
    for sample, prediction in analysed(found):
        assert [finding.label for finding in prediction.findings] == list(names)
        (present,) = (finding.label for finding in prediction.findings if finding.present)
        assert sample.truth.classes is not None
        right.append(present == names[int(np.argmax(sample.truth.classes))])
    assert share(right) > 0.6  # one in three by chance
    reports = sent(tmp_path, "SR")
    assert len(reports) == len(found)
    assert all(set(names) <= said(report) for report in reports if "Normal" in said(report))


def test_breast_ultrasound_is_graded(sqlite_node: Node, clock: Clock, tmp_path: Path) -> None:
    found = told(sqlite_node, clock, tmp_path, "us-breast-grade")
    off = []
    for sample, prediction in analysed(found):
        (finding,) = prediction.findings
        assert finding.score is not None
        assert sample.truth.grade is not None
        off.append(abs(finding.score - sample.truth.grade))
    assert sum(off) / len(off) < 0.5
    assert len(sent(tmp_path, "SR")) == len(found)


def test_pneumonia_is_told_on_childrens_radiographs(
    sqlite_node: Node, clock: Clock, tmp_path: Path
) -> None:
    found = told(sqlite_node, clock, tmp_path, "cxr-pneumonia")
    right = [
        prediction.findings[0].present == bool(sample.truth.classes and sample.truth.classes[-1])
        for sample, prediction in analysed(found)
    ]
    assert share(right) > 0.7  # one in two by chance
    assert len(sent(tmp_path, "SR")) == len(found)


def test_lung_fields_are_boxed(sqlite_node: Node, clock: Clock, tmp_path: Path) -> None:
    found = told(sqlite_node, clock, tmp_path, "cxr-lung-boxes")
    overlaps = []
    for sample, prediction in analysed(found):
        for kind, finding in enumerate(prediction.findings):
            true = [box for box in sample.truth.boxes or () if box.kind == kind]
            if len(true) == 1:
                overlaps.append(overlap(true[0], finding.boxes[0]) if finding.boxes else 0.0)
    assert sum(overlaps) / len(overlaps) > 0.7
    drawn = [report for report in sent(tmp_path, "SR") if "POLYLINE" in graphics(report)]
    assert len(drawn) >= 0.75 * len(found)


def test_lungs_are_outlined(sqlite_node: Node, clock: Clock, tmp_path: Path) -> None:
    found = told(sqlite_node, clock, tmp_path, "cxr-lungs")
    dice = []
    for sample, prediction in analysed(found):
        assert sample.truth.masks is not None
        true = sample.truth.masks().any(0)
        mask = np.any([segment.mask for segment in prediction.segments], axis=0)
        dice.append(2 * (true & mask).sum() / (true.sum() + mask.sum()))
    assert sum(dice) / len(dice) > 0.9
    assert len(sent(tmp_path, "SEG")) >= 0.75 * len(found)


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes."""
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.bottom, other.bottom) - max(one.top, other.top)
    both = max(wide, 0) * max(high, 0)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (one, other)]
    return float(both / (sum(areas) - both))


def graphics(report: Dataset) -> set[str]:
    return {str(e.value) for e in report.iterall() if e.keyword == "GraphicType"}


@pytest.mark.parametrize("name", ["us-breast-category", "cxr-lungs", "cxr-pneumonia"])
def test_what_is_no_such_image_is_not_analysed(
    name: str, sqlite_node: Node, clock: Clock, tmp_path: Path
) -> None:
    """Noise, in the modality and under the name of what the model learnt from."""
    bundle = open_bundle(SHIPPED / name)
    add_bundle(sqlite_node, bundle)
    registry.add_destination(sqlite_node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": [name], "destinations": ["out"]}
    registry.apply_rules(sqlite_node, parse_rules({"rule": [rule]}))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    ds = us_image(noise, BodyPartExamined="BREAST")
    if name.startswith("cxr"):
        ds = dx_image(noise, bits=8)
    store(sqlite_node, [ds])
    clock.pass_(600)
    settle(sqlite_node, WarmEngines(sqlite_node))
    (report,) = sent(tmp_path, "SR")
    assert any("unlike those the model learnt from" in words for words in said(report))
