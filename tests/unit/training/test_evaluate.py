"""Figures: counted by hand once, told with their interval, and from what the service would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.engine import Runner
from tests.unit.training.recipes import drawn, small_recipe
from training.evaluate import (
    MEAN,
    UNION,
    Row,
    cast,
    cross_validate,
    dice,
    measured,
    read_rows,
    summary,
    write_rows,
)
from training.export import draft
from training.finetune import start


def rows(values, groups=None):
    names = groups or [str(i) for i in range(len(values))]
    return [
        Row(f"s{i}", group, "CC0", None, {"lung": value})
        for i, (value, group) in enumerate(zip(values, names, strict=True))
    ]


def test_dice_is_twice_the_overlap_by_the_sum():
    one, other = np.zeros((2, 4, 4), bool)
    one[:2] = True
    other[1:3] = True
    assert dice(one, other) == 0.5
    assert dice(one, one) == 1
    assert dice(one, ~one) == 0


def test_nothing_found_where_nothing_is_counts_as_right():
    assert dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1


def test_a_summary_tells_mean_median_worst():
    found = summary(rows([0.5, 0.9, 1.0]))
    assert found["samples"] == 3
    assert found["dice"]["lung"]["mean"] == 0.8
    assert found["dice"]["lung"]["median"] == 0.9
    assert found["dice"]["lung"]["worst"] == 0.5


def test_the_interval_is_wider_when_samples_come_from_few_patients():
    values = [0.6] * 10 + [1.0] * 10
    many = summary(rows(values))["dice"]["lung"]["interval_95"]
    few = summary(rows(values, ["a"] * 10 + ["b"] * 10))["dice"]["lung"]["interval_95"]
    assert few == [0.6, 1.0]
    assert 0.6 < many[0] < 0.8 < many[1] < 1.0


def test_what_does_not_fit_half_precision_is_refused():
    with pytest.raises(OverflowError, match="w"):
        cast({"w": torch.tensor([1e6])}, "float16")
    assert cast({"n": torch.tensor(1_000_000)}, "float16")["n"].dtype == torch.int64


def test_rows_come_back_from_their_file(tmp_path):
    written = rows([0.25, 0.75])
    write_rows(written, tmp_path / "rows.csv")
    assert read_rows(tmp_path / "rows.csv") == written


def test_a_network_is_measured_on_the_samples_own_grid():
    recipe = small_recipe()
    runner = Runner(draft(recipe), cast(start(recipe, None).state_dict(), "float16"))
    (row,) = measured(runner, drawn(1))
    assert set(row.dice) == {"Right lung", "Left lung", UNION, MEAN}
    assert row.dice[MEAN] == pytest.approx((row.dice["Right lung"] + row.dice["Left lung"]) / 2)


def test_cross_validation_measures_each_real_sample_once_and_no_generated_one():
    recipe = small_recipe(epochs=1)
    samples = [*drawn(4, generated=False), *drawn(4, start=20)]
    found = cross_validate(recipe, draft(recipe), samples, None)
    assert sorted(row.name for row in found) == sorted(s.name for s in samples[:4])
    assert {row.fold for row in found} == {0, 1}


def test_folds_that_are_known_are_not_learnt_again():
    recipe = small_recipe(epochs=1)
    samples = drawn(4, generated=False)
    whole = cross_validate(recipe, draft(recipe), samples, None)
    first = [row for row in whole if row.fold == 0]
    told = []
    again = cross_validate(
        recipe,
        draft(recipe),
        samples,
        None,
        known=first,
        finished=lambda fold, rows: told.append((fold, len(rows))),
    )
    assert told == [(1, 4)]
    assert again == whole


def test_labels_of_different_kinds_have_no_union():
    recipe = small_recipe()
    keys = recipe.model_dump()
    keys["bundle"]["labels"][1]["type"] = {"value": "1", "scheme": "99T", "meaning": "Other"}
    other = type(recipe).model_validate(keys)
    runner = Runner(draft(other), cast(start(other, None).state_dict(), "float16"))
    assert UNION not in measured(runner, drawn(1))[0].dice
