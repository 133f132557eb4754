"""A grid asks every cell once, pairs them, and is no surer of the answer than it may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from tests.learning import samples, table_keys, toml, write_table
from training import claims, transfer
from training.claims import Cell, read_grid, share
from training.errors import RecipeError

CELL = Cell("d", "frozen", "b", "pretrained", 1.0, 0, 0, 80, 20, 0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    write_table(folder, 24)
    torch.manual_seed(0)
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), folder / "w.pth")
    (folder / "discs.toml").write_text(toml(table_keys()))
    return folder


def grid(data: Path, mode: str, fractions: str = "[0.5, 1.0]") -> Path:
    path = data / f"{mode}.toml"
    path.write_text(
        f'title = "t"\nmode = "{mode}"\nfractions = {fractions}\nfolds = 2\nseeds = [0]\n'
        '[recipes]\ndiscs = "discs.toml"\n[backbones]\nsqueezenet1_1 = "w.pth"\n'
    )
    return path


def test_frozen_features_are_asked_cell_by_cell_and_none_twice(data: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    path = grid(data, "frozen")
    cells = claims.run(path, data, tmp_path, report=lambda done, *_: heard.append(done))
    assert len(cells) == len({cell.key for cell in cells}) == 8
    assert heard == list(range(1, 9))
    assert all(0 <= cell.auc <= 1 for cell in cells)
    assert claims.run(path, data, tmp_path, report=lambda *_: pytest.fail("repeated")) == cells
    transfer.write(cells, read_grid(path), tmp_path)
    assert "| discs | squeezenet1_1 | 50% |" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_grid_goes_on(data: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, *_: object) -> None:
        if done == 3:
            raise Killed

    path = grid(data, "frozen")
    with pytest.raises(Killed):
        claims.run(path, data, tmp_path / "a", report=kill)
    assert len(claims.read_cells(tmp_path / "a" / "cells.csv")) == 3
    again = claims.run(path, data, tmp_path / "a")
    assert again == claims.run(path, data, tmp_path / "b")


def test_fine_tuning_is_asked_in_the_same_way(data: Path, tmp_path: Path) -> None:
    cells = claims.run(grid(data, "finetune", "[1.0]"), data, tmp_path)
    assert [(cell.init, cell.fold) for cell in cells] == [
        ("pretrained", 0),
        ("pretrained", 1),
        ("scratch", 0),
        ("scratch", 1),
    ]


def test_a_larger_share_holds_the_smaller_one_and_both_classes() -> None:
    offered = [
        replace(s, truth=replace(s.truth, classes=(1 - s.truth.classes[0], s.truth.classes[0])))
        for s in samples("classification", 40)
        if s.truth.classes
    ]
    few = {sample.name for sample in share(offered, 0.1, 3)}
    more = {sample.name for sample in share(offered, 0.5, 3)}
    assert few < more
    assert len(few) == 4
    assert few != {sample.name for sample in share(offered, 0.1, 4)}
    assert len(share(offered, 1.0, 3)) == 40


def test_folds_that_share_data_make_an_interval_wider() -> None:
    values = np.array([0.8, 0.9, 0.85, 0.95, 0.9])
    low, high = transfer.corrected_interval(values, 80, 20)
    # By hand: t of 4 degrees is 2.776, the variance 0.00325, and 1/5 + 20/80 instead of 1/5.
    assert (low, high) == pytest.approx((0.88 - 0.10617, 0.88 + 0.10617), abs=1e-4)
    plain = transfer.corrected_interval(values, 80, 0)
    assert plain[1] - plain[0] < high - low


def test_gains_are_paired_and_lonely_cells_are_left_out() -> None:
    cells = [
        replace(CELL, fold=fold, init=init, auc=auc)
        for fold, init, auc in [
            (0, "pretrained", 0.9),
            (0, "scratch", 0.7),
            (1, "pretrained", 0.8),
            (1, "scratch", 0.85),
            (2, "pretrained", 0.99),
        ]
    ]
    (line,) = transfer.summary(cells)
    assert line.cells == 2
    assert line.gain[0] == pytest.approx(0.075)
    assert line.wins == 0.5


def test_a_misspelt_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text('title = "t"\nmode = "forzen"\n')
    with pytest.raises(RecipeError, match="mode"):
        read_grid(path)
