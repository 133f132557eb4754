"""The command: train, then export, on the shipped recipe with its learning cut short."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import torch
from torchvision.models import get_model
from typer.testing import CliRunner

from inference.bundle import open_bundle
from tests.unit.training.recipes import SHIPPED, drawn
from training import datasets
from training.cli import app


def short_recipe(folder):
    text = next(path for path in SHIPPED if path.stem == "cxr-lungs").read_text()
    for long, short in (
        ("epochs = 45", "epochs = 1\nfolds = 2"),
        ("size = [256, 256]", "size = [64, 64]"),
        ("weights/mobilenet_v2_imagenet_qat_fp16.pth", "w.pth"),
    ):
        assert long in text
        text = text.replace(long, short)
    (folder / "short.toml").write_text(text)
    torch.save(get_model("mobilenet_v2", weights=None).state_dict(), folder / "w.pth")
    return str(folder / "short.toml")


def test_train_cross_validate_and_export_make_a_bundle(tmp_path, monkeypatch):
    samples = [*drawn(8), *drawn(4, generated=False, start=30)]
    held = {"others": [replace(s, generated=False) for s in drawn(1, start=90)]}
    found = datasets.Samples(samples, held)
    monkeypatch.setitem(datasets.LOADERS, "chest-lungs", lambda *_: found)
    recipe = short_recipe(tmp_path)
    common = [recipe, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for command in (
        ["train", *common],
        ["cross-validate", *common],
        ["export", *common, "--bundle", str(tmp_path / "bundle")],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.digest in result.output
    assert bundle.manifest.name == "cxr-lungs"


def test_a_recipe_that_is_not_there_is_told(tmp_path):
    result = CliRunner().invoke(app, ["train", "none.toml", "--data", str(tmp_path), "--out", "o"])
    assert result.exit_code == 2


def test_asking_for_help_loads_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from training.cli import app;"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
