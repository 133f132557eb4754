"""Export: what is written is what was learnt and measured; anything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from inference.bundle import Bundle, load_tensors, open_bundle
from inference.engine import Engine
from inference.errors import BundleError
from inference.types import ImageStack
from tests.learning import recipe, samples
from training import export as exporting
from training.calibration import Decisions
from training.drafts import FAMILIAR, weights_digest
from training.errors import ExportRefused
from training.evaluate import evaluate
from training.export import export, golden_pixels
from training.finetune import finetune
from training.run import Run

TASKS = ("classification", "grading", "detection", "segmentation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task that learnt a few steps and was measured."""
    found = {}
    for task in TASKS:
        plan, folder = recipe(task), tmp_path_factory.mktemp(task) / "run"
        parts = {
            "train": samples(task, 8),
            "val": samples(task, 6, 100),
            "test": samples(task, 6, 200),
        }
        learnt = finetune(plan, parts["train"], parts["val"], Run.open(folder, plan), weights=None)
        evaluate(plan, learnt, parts, {}, folder)
        found[task] = folder
    return found


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """The classifier's, to be spoilt."""
    return Path(shutil.copytree(runs["classification"], tmp_path / "run"))


def exported(run: Path, folder: Path, task: str = "classification") -> Bundle:
    return export(recipe(task), run, folder, samples(task, 4))


@pytest.mark.parametrize("task", TASKS)
def test_an_exported_bundle_opens_runs_and_matches_its_golden_example(
    task: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    bundle = exported(runs[task], tmp_path / "b", task)
    assert open_bundle(bundle.path) == bundle
    assert Engine(bundle).check_golden() < 1e-4
    assert bundle.manifest.task == task


def test_what_validation_decided_stands_in_the_manifest(run: Path, tmp_path: Path) -> None:
    decided = Decisions(1.7, {"Disc": 0.31}, 2.5)
    decided.write(run / "decisions.json")
    manifest = exported(run, tmp_path / "b").manifest
    assert manifest.temperature == 1.7
    assert manifest.findings[0].threshold == 0.31
    assert manifest.input_check is not None
    assert manifest.input_check.threshold == 2.5
    assert manifest.input_check.file == FAMILIAR


def test_the_figures_are_those_of_the_weights_in_the_bundle(run: Path, tmp_path: Path) -> None:
    bundle = exported(run, tmp_path / "b")
    told = json.loads((bundle.path / "evaluation.json").read_text())
    stored = load_tensors(bundle, "weights.safetensors")
    assert told["weights_sha256"] == weights_digest(stored)
    assert all(t.dtype == torch.float16 for t in stored.values() if t.is_floating_point())


def test_the_card_tells_use_data_figures_and_limits(run: Path, tmp_path: Path) -> None:
    card = (exported(run, tmp_path / "b").path / "card.md").read_text()
    for words in ("not for diagnosis", "Pictures that a test drew", "## Limits", "AUC"):
        assert words in card


def test_a_recipe_without_a_card_is_not_exported(run: Path, tmp_path: Path) -> None:
    plan = recipe("classification").model_copy(update={"card": None})
    with pytest.raises(ExportRefused, match=r"no \[card\]"):
        export(plan, run, tmp_path / "b", samples("classification", 4))
    assert not (tmp_path / "b").exists()


def test_weights_that_were_not_measured_are_not_exported(run: Path, tmp_path: Path) -> None:
    weights = load_file(run / "weights.safetensors")
    weights["head.bias"] = weights["head.bias"] + 1
    save_file(weights, run / "weights.safetensors")
    with pytest.raises(ExportRefused, match="run evaluate again"):
        exported(run, tmp_path / "b")


@pytest.mark.parametrize(
    ("missing", "said"),
    [("weights.safetensors", "run train first"), ("evaluation.json", "run evaluate first")],
)
def test_a_run_that_is_not_there_yet_is_not_exported(
    missing: str, said: str, run: Path, tmp_path: Path
) -> None:
    (run / missing).unlink()
    with pytest.raises(ExportRefused, match=said):
        exported(run, tmp_path / "b")


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_that_does_not_do_what_training_did_is_refused(
    task: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.raw
    apart = [0.0]

    def other(self: Engine, stacks: Sequence[ImageStack]) -> list[dict[str, NDArray[Any]]]:
        found = real(self, stacks)
        for one in found:
            if task != "detection":
                one["probability"] += apart[0]
            elif apart[0] > 1e-4:  # a box that training does not see
                one["scores"][0, 0] = 1
        return found

    monkeypatch.setattr(exporting.Engine, "raw", other)
    apart[0] = 5e-5
    exported(runs[task], tmp_path / "near", task)
    apart[0] = 2e-4
    with pytest.raises(ExportRefused, match="differ"):
        exported(runs[task], tmp_path / "b", task)
    assert not (tmp_path / "b").exists()


def test_a_folder_in_use_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "b")
    with pytest.raises(BundleError, match="not empty"):
        exported(run, tmp_path / "b")


def test_golden_pixels_are_drawn_and_survive_float16(run: Path, tmp_path: Path) -> None:
    manifest = exported(run, tmp_path / "b").manifest
    pixels = golden_pixels(manifest)
    assert pixels.ndim == 3
    assert torch.equal(torch.from_numpy(pixels).half().float(), torch.from_numpy(pixels))
    assert pixels.std() > 0.05
