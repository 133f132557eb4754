"""The run folder: belongs to one recipe and its data, and every file in it is whole."""

from __future__ import annotations

import getpass
import json
import platform
from dataclasses import replace

import pytest
import torch

from tests.unit.training.learning import recipe, samples
from training.errors import RunError
from training.prepare import prepare
from training.run import Checkpoint, Run

PLAN = recipe()


def prepared(*chosen, **changes):
    found = [replace(sample, **changes) for sample in samples("classification", 4)]
    return prepare([found[i] for i in chosen], PLAN.bundle)


def test_a_run_keeps_its_recipe_as_it_was_written(tmp_path):
    run = Run.open(tmp_path / "r", PLAN, "# why\nkey = 1\n")
    assert (run.folder / "recipe.toml").read_text() == "# why\nkey = 1\n"
    assert Run.open(tmp_path / "r", PLAN, "# why\nkey = 1\n") == run


def test_another_recipe_in_the_same_folder_is_refused_by_what_differs(tmp_path):
    Run.open(tmp_path / "r", PLAN)
    with pytest.raises(RunError, match=r"training\.epochs was 2 and is 9.*another --out"):
        Run.open(tmp_path / "r", recipe(epochs=9))


def test_words_that_nothing_learns_from_may_change(tmp_path):
    Run.open(tmp_path / "r", PLAN, "old")
    other = PLAN.model_copy(
        update={"bundle": PLAN.bundle.model_copy(update={"title": "Better squares"})}
    )
    Run.open(tmp_path / "r", other)
    assert (tmp_path / "r" / "recipe.toml").read_text() == "old"
    assert "Better" not in (tmp_path / "r" / "recipe.json").read_text()
    Run.open(tmp_path / "r", other, "new")
    assert (tmp_path / "r" / "recipe.toml").read_text() == "new"
    assert "Better" in (tmp_path / "r" / "recipe.json").read_text()
    softer = PLAN.bundle.model_copy(update={"activation": "sigmoid"})
    with pytest.raises(RunError, match=r"bundle\.activation"):
        Run.open(tmp_path / "r", PLAN.model_copy(update={"bundle": softer}))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty"):
        Run.open(tmp_path, PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_kill_while_a_run_is_opened_does_not_bar_the_folder(tmp_path):
    (tmp_path / "recipe.json.new").write_text("{")
    run = Run.open(tmp_path, PLAN)
    for name in ("recipe.json.new", "checkpoint"):
        assert not (run.folder / name).is_file()
    (run.folder / "checkpoint").rmdir()
    assert Run.open(tmp_path, PLAN).load() is None


def test_other_data_are_refused_by_what_differs(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    run.data({"train": prepared(0, 1), "val": prepared(2)})
    run.data({"train": prepared(0, 1), "val": prepared(2)})
    with pytest.raises(RunError, match=r"train lacks s1; train has new s3.*another --out"):
        run.data({"train": prepared(0, 3), "val": prepared(2)})
    with pytest.raises(RunError, match="train has the same names with other pixels, labels"):
        run.data({"train": prepared(0, 1, group="x"), "val": prepared(2)})
    with pytest.raises(RunError, match="val lacks s2"):
        run.data({"train": prepared(0, 1)})
    told = json.loads((run.folder / "data.json").read_text())
    assert told["parts"]["train"]["names"] == ["s0", "s1"]
    assert told["parts"]["val"]["frames"] == 1


def test_the_environment_names_versions_and_neither_host_nor_user(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    run.environment("cpu")
    run.environment("cpu")
    text = (run.folder / "environment.json").read_text()
    (told,) = json.loads(text)
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_run_that_goes_on_elsewhere_tells_of_both(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    run.environment("cpu")
    path = run.folder / "environment.json"
    (first,) = json.loads(path.read_text())
    path.write_text(json.dumps([first | {"torch": "1.0"}]))
    run.environment("cpu")
    assert [told["torch"] for told in json.loads(path.read_text())] == ["1.0", torch.__version__]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    assert run.load() is None
    tensors = {"a": torch.rand(2, 3), "n": torch.tensor(7), "h": torch.rand(2).bfloat16()}
    scalars = {"score": float("-inf"), "history": [{"loss": 0.1 + 0.2}], "done": 3}
    run.save(Checkpoint(tensors, scalars))
    kept = run.load()
    assert kept is not None
    assert kept.scalars == scalars
    assert all(torch.equal(kept.tensors[k], tensors[k]) for k in tensors)


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    run.save(Checkpoint({"a": torch.ones(1)}, {"done": 1}))
    (run.folder / "checkpoint" / "last.safetensors.new").write_bytes(b"half of")
    assert run.load().scalars == {"done": 1}
    run.save(Checkpoint({"a": torch.ones(1)}, {"done": 2}))
    assert run.load().scalars == {"done": 2}
    assert [p.name for p in (run.folder / "checkpoint").iterdir()] == ["last.safetensors"]


def test_a_broken_checkpoint_says_what_to_do(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    (run.folder / "checkpoint" / "last.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"last\.safetensors is broken.*remove it"):
        run.load()


def test_metrics_have_a_line_an_epoch(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    run.metrics([{"epoch": 1, "loss": 0.5}])
    run.metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    assert (run.folder / "metrics.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"


def test_a_run_is_finished_once_its_weights_are_written(tmp_path):
    run = Run.open(tmp_path / "r", PLAN)
    assert not run.finished
    with pytest.raises(RunError, match="train first"):
        run.weights()
    run.finish({"w": torch.ones(2)})
    assert run.finished
    assert torch.equal(run.weights()["w"], torch.ones(2))


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = Run.open(tmp_path / "r", PLAN)
    run.environment("cpu")
    run.data({"train": prepared(0)})
    run.finish({"w": torch.ones(2)})
    assert not (tmp_path / "r").exists()
