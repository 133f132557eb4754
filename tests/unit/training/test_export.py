"""Export: what is written is what was learnt, and says what was measured on it."""

from __future__ import annotations

import json

import pytest
import torch

from inference.bundle import open_bundle
from inference.engine import Engine
from inference.errors import BundleError
from tests.unit.training import recipes
from tests.unit.training.recipes import small_recipe, small_samples
from training import export as exporting
from training.evaluate import Row, measured
from training.export import ExportRefused, draft, export
from training.finetune import finetune, start
from training.recipe import read

ROWS = [Row("s", "p", "CC BY 4.0", 0, {"Right lung": 0.9, "Left lung": 0.8})]


@pytest.fixture(scope="module")
def learnt():
    return finetune(small_recipe(), small_samples().learn, None)


def exported(learnt, folder, rows=ROWS):
    samples = small_samples()
    return export(small_recipe(), learnt, folder, samples, cross_validation=rows, made={"by": "t"})


def test_an_exported_bundle_opens_runs_and_matches_its_golden_example(learnt, tmp_path):
    bundle = exported(learnt, tmp_path / "b")
    assert open_bundle(bundle.path) == bundle
    assert Engine(bundle).check_golden() < 1e-4
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) < 8e6


def test_the_evaluation_file_holds_what_these_weights_gave(learnt, tmp_path):
    bundle = exported(learnt, tmp_path / "b")
    evaluation = json.loads((bundle.path / "evaluation.json").read_text())
    again = measured(Engine(bundle), small_samples().test["others"])
    told = evaluation["sets"]["others"]["rows"]
    assert [row["dice"]["Left lung"] for row in told] == [
        round(row.dice["Left lung"], 4) for row in again
    ]
    assert evaluation["made"] == {"by": "t"}


def test_the_card_tells_use_data_figures_and_limits(learnt, tmp_path):
    card = (exported(learnt, tmp_path / "b").path / "card.md").read_text()
    for words in ("not for diagnosis", "CC BY", "| Right lung | 0.900 |", "## Limits", "Others: 2"):
        assert words in card


def test_without_cross_validation_none_is_claimed(learnt, tmp_path):
    bundle = exported(learnt, tmp_path / "b", rows=[])
    assert "ross-validation" not in (bundle.path / "evaluation.json").read_text()


def test_a_bundle_that_does_not_do_what_training_did_is_refused(learnt, tmp_path, monkeypatch):
    real = exporting.normalise
    monkeypatch.setattr(exporting, "normalise", lambda x, spec: real(x, spec) + 50)
    with pytest.raises(ExportRefused, match="differ"):
        exported(learnt, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_folder_in_use_is_not_overwritten(learnt, tmp_path):
    exported(learnt, tmp_path / "b")
    with pytest.raises(BundleError, match="not empty"):
        exported(learnt, tmp_path / "b")


@pytest.mark.parametrize("path", recipes.SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_a_manifest_that_its_network_fits(path):
    recipe = read(path)
    manifest = draft(recipe)
    assert manifest.name == path.stem
    assert manifest.research_only
    network = start(recipe, None).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape[1] == manifest.architecture.classes
