"""The commands, one after the other, as a data scientist types them; and what they say when not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from inference.bundle import open_bundle
from tests.learning import table_keys, toml, write_table
from training.cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_table(folder, 40)
    (folder / "mine.toml").write_text(toml(table_keys()))
    return folder


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained and evaluated."""
    run = tmp_path_factory.mktemp("out") / "run"
    said(["train", str(data / "mine.toml"), "--data", str(data), "--out", str(run)])
    said(["evaluate", str(run), "--data", str(data)])
    return run


def said(command: list[str], code: int = 0) -> Result:
    result = CliRunner().invoke(app, command)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_a_run_is_evaluated_reported_and_exported(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    page = (evaluated / "report.html").read_text()
    assert "<html" in page
    result = said(
        ["export", str(evaluated), "--data", str(data), "--bundle", str(tmp_path / "bundle")]
    )
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.digest in result.output
    assert bundle.manifest.name == "tiny-classification"
    said(["report", str(evaluated), "--out", str(tmp_path / "r.html"), "--no-pictures"])
    assert len((tmp_path / "r.html").read_text()) < len(page)


def test_other_words_need_no_other_training(data: Path, evaluated: Path, tmp_path: Path) -> None:
    keys = table_keys()
    keys["bundle"]["title"] = "A better title"
    keys["card"]["limits"] = "All of it, and more than that."
    (tmp_path / "words.toml").write_text(toml(keys))
    words = ["--data", str(data), "--recipe", str(tmp_path / "words.toml")]
    said(["export", str(evaluated), *words, "--bundle", str(tmp_path / "b")])
    assert open_bundle(tmp_path / "b").manifest.title == "A better title"
    said(
        ["evaluate", str(evaluated), "--data", str(data), "--recipe", str(tmp_path / "words.toml")]
    )


def test_another_learning_in_the_same_folder_is_refused(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.toml").write_text(toml(table_keys(epochs=2)))
    result = said(
        ["train", str(tmp_path / "other.toml"), "--data", str(data), "--out", str(evaluated)], 1
    )
    assert "training.epochs was 1 and is 2" in result.output


def test_folds_are_held_out_and_told_beside_a_run(
    data: Path, evaluated: Path, tmp_path: Path
) -> None:
    folds = tmp_path / "folds"
    recipe = str(data / "mine.toml")
    result = said(["cross-validate", recipe, "--data", str(data), "--out", str(folds), "--json"])
    (title,) = json.loads(result.stdout)
    assert "cross-validation" in title
    said(["evaluate", str(evaluated), "--data", str(data), "--cross-validation", str(folds)])
    assert title in (evaluated / "evaluation.json").read_text()


def test_runs_are_compared(evaluated: Path) -> None:
    result = said(["compare", str(evaluated), str(evaluated), "--json"])
    told = json.loads(result.stdout)
    assert all(row["b_minus_a"]["value"] == 0 for row in told["differences"])


def test_shipped_recipes_are_listed_and_printed() -> None:
    listed = said(["recipes"]).output
    assert "us-breast-grade" in listed
    assert said(["recipes", "us-breast-grade"]).output.startswith("# ")
    assert "no such recipe" in said(["recipes", "none"], 2).output


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda k, _: k["training"].update(epoch=3), 2, "did you mean 'epochs'"),
        (lambda k, _: k["training"].update(weights="none.pth"), 1, "none.pth"),
        (lambda k, _: k["data"].update(file="none.csv"), 1, "none.csv"),
        (lambda _, d: (d / "3.png").unlink(), 1, "3.png"),
        (lambda _, d: (d / "3.png").write_bytes(b"\x89PNG nothing"), 1, "3.png"),
        (lambda k, _: k["training"].update(head_rate=1e30, encoder_rate=1e30), 1, "loss"),
        (
            lambda k, d: (
                k["data"].update(part="part"),
                (d / "labels.csv").write_text(
                    "path,label,patient,sex,part\n"
                    + "".join(
                        f"{i}.png,{'Disc' if i % 2 else 'Empty'},p{i // 4},F,"
                        f"{'train' if i < 18 else 'val' if i < 30 else 'test'}\n"
                        for i in range(40)
                    )
                ),
            ),
            1,
            "both sides of a split",
        ),
    ],
    ids=["key", "weights", "table", "absent", "corrupt", "diverges", "leak"],
)
def test_bad_input_is_told_in_a_line_with_what_to_do(
    spoil, code: int, words: str, tmp_path: Path
) -> None:
    write_table(tmp_path, 40)
    keys = table_keys()
    spoil(keys, tmp_path)
    (tmp_path / "r.toml").write_text(toml(keys))
    result = said(
        ["train", str(tmp_path / "r.toml"), "--data", str(tmp_path), "--out", str(tmp_path / "o")],
        code,
    )
    assert words in result.output
    assert "Traceback" not in result.output


def test_asking_for_help_loads_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from training.cli import app;"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0;"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
