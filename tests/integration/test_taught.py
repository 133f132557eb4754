"""From samples to a report: each task, network and tested backbone learns a few steps, is measured,
exported, and answers in a node for a study that it never saw."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
import torch
from pydicom import Dataset

from dicom_node.services import registry
from dicom_node.services.models import add_model
from dicom_node.store.tables import Job
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from inference.networks import TESTED
from tests.arrivals import one
from tests.bundles import signed
from tests.dicoms import ct_slice, dx_image, uid
from tests.learning import SIZE, discs, keys, samples
from tests.nodes import Clock, Node, add_bundle, route, settle, store
from training.evaluate import evaluate
from training.export import export
from training.finetune import finetune
from training.recipe import Recipe
from training.run import Run

TASKS = [
    ("segmentation", "unet", "mobilenet_v2"),
    ("segmentation", "deeplabv3", "resnet18"),
    ("grading", "ordinal", "resnet18"),
    ("detection", "fasterrcnn", "resnet18"),
    ("detection", "retinanet", "mobilenet_v2"),
    *(("classification", "classifier", backbone) for backbone in TESTED),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def taught(folder: Path, plan: Recipe, task: str, ct: bool = False) -> Bundle:
    """A bundle that learnt a few steps."""
    parts = {
        "train": samples(task, 8, ct=ct),
        "val": samples(task, 6, 100, ct),
        "test": samples(task, 6, 200, ct),
    }
    run = Run.open(folder / "run", plan)
    learnt = finetune(plan, parts["train"], parts["val"], run, weights=None)
    evaluate(plan, learnt, parts, {}, run.folder)
    return export(plan, run.folder, folder / "bundle", parts["train"])


def answers(
    node: Node, clock: Clock, folder: Path, bundle: Bundle, *study: Dataset
) -> tuple[Job, list[Dataset]]:
    """Push a study through a node with this model; its job, and the objects that were sent."""
    add_bundle(node, signed(bundle.path))
    registry.add_destination(node, "out", "folder", {"path": str(folder / "out")})
    route(node, models=[bundle.manifest.name])
    store(node, list(study))
    clock.pass_(60)
    settle(node, WarmEngines(node))
    job = one(node, Job)
    found = [pydicom.dcmread(path) for path in sorted((folder / "out").rglob("*.dcm"))]
    return job, found


def radiograph(seed: int) -> Dataset:
    picture, _, _ = discs(seed, 2)
    return dx_image((picture * 1000).astype("uint16"), bits=12, study_uid=uid("taught", seed))


@pytest.mark.parametrize(("task", "network", "backbone"), TASKS, ids=["-".join(t) for t in TASKS])
def test_what_learnt_a_few_steps_answers_in_the_node(
    task: str, network: str, backbone: str, sqlite_node: Node, clock: Clock, tmp_path: Path
) -> None:
    told = keys(task, network, backbone)
    told["evaluation"]["input_check"] = False  # a few steps' features tell nothing apart
    bundle = taught(tmp_path, Recipe.model_validate(told), task)
    job, objects = answers(sqlite_node, clock, tmp_path, bundle, radiograph(1000))
    assert (job.state, job.error) == ("done", "")
    assert job.summary is not None
    assert job.summary["not_analysed"] is None
    kinds = {ds.Modality for ds in objects}
    assert "SR" in kinds
    assert kinds <= {"SR", "SEG"}
    (report,) = (ds for ds in objects if ds.Modality == "SR")
    said = {str(e.value) for e in report.iterall() if e.keyword in ("CodeMeaning", "TextValue")}
    assert any("Lesion" in words for words in said), "the report names what was looked for"


def test_neighbouring_slices_are_learnt_from_and_served(
    sqlite_node: Node, clock: Clock, tmp_path: Path
) -> None:
    plan = Recipe.model_validate(keys("segmentation", ct=True))
    bundle = taught(tmp_path, plan, "segmentation", ct=True)
    assert bundle.manifest.preprocessing.neighbours == 1
    picture, _, _ = discs(1, 2)
    study = [
        ct_slice((picture * 1000 + 1024).astype("int16"), (0, 0, 5.0 * i), number=i + 1)
        for i in range(4)
    ]
    job, objects = answers(sqlite_node, clock, tmp_path, bundle, *study)
    assert (job.state, job.error) == ("done", "")
    assert {"SR"} <= {ds.Modality for ds in objects}
    assert study[0].Rows == SIZE


def test_a_taught_bundle_passes_the_checks_of_models_add(sqlite_node: Node, tmp_path: Path) -> None:
    plan = keys("grading")
    plan["evaluation"]["input_check"] = False  # as above: rounding decides how unlike a picture is
    bundle = signed(taught(tmp_path, Recipe.model_validate(plan), "grading").path)
    told = add_model(sqlite_node, bundle.path)
    assert told["digest"] == bundle.digest
    assert told["golden_difference"] < 1e-3
