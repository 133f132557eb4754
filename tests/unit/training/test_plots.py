"""Every plot is a picture, or is left out where there is nothing to draw."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.unit.training import said
from tests.unit.training.test_metrics import random_boxes, simulated_exclusive
from training import plots
from training.gallery import Case, worst
from training.metrics import measured


def opened(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image


def drawn(png):
    """Whether more than the paper is there."""
    return len(np.unique(np.asarray(opened(png).convert("L")))) > 20


SETS = {
    "binary": (said.simulated_binary(60), said.BINARY),
    "exclusive": (said.exclusive(*simulated_exclusive(60)), said.EXCLUSIVE),
    "grades": (said.grades([0, 1, 2, 2, 0], [0, 2, 2, 1, 0]), said.GRADES),
    "lungs": (said.lungs([(0.9, 0.8), (0.95, 0.7)]), said.LUNGS),
    "boxes": (said.boxes(*random_boxes()), said.BOXES),
}


@pytest.mark.parametrize("name", SETS)
def test_every_task_has_its_plots(name):
    outcomes, of = SETS[name]
    found = plots.of_set(outcomes, of)
    expected = {"lungs": {"Dice"}, "boxes": {"Precision and recall"}}.get(
        name, {"ROC", "Precision and recall", "Reliability", "Confusion"}
    )
    assert set(found) == expected
    assert all(drawn(png) for png in found.values())


def test_one_class_has_no_curve_but_a_confusion():
    found = plots.of_set(said.binary([1, 1], [0.4, 0.9]), said.BINARY)
    assert set(found) == {"Reliability", "Confusion"}


def test_the_same_outcomes_are_the_same_bytes():
    outcomes, of = SETS["binary"]
    assert plots.of_set(outcomes, of) == plots.of_set(outcomes, of)


def test_a_learning_curve_needs_a_loss():
    rows = [{"epoch": str(i), "loss": f"{1 / i}", "auc": "", "seconds": "3"} for i in (1, 2, 3)]
    assert drawn(plots.learning_curve(rows))
    assert plots.learning_curve([{"epoch": "1", "loss": "nan"}]) is None
    assert plots.learning_curve([]) is None


def test_a_forest_has_a_line_for_each_subgroup():
    attributes = [{"sex": "FM"[i % 2], "view": ("AP", "PA")[i // 20]} for i in range(40)]
    told = measured(said.simulated_binary(40, attributes=attributes), said.BINARY, 100)
    assert drawn(plots.forest(told, "AUC"))
    assert plots.forest(measured(said.simulated_binary(40), said.BINARY, 100), "AUC") is None


def test_scores_of_the_input_check_are_drawn_by_set():
    outcomes = said.simulated_binary(30)
    assert plots.unlikeness(outcomes, 2.0) is None
    scored = [replace(one, unlike=1.0 + i / 30) for i, one in enumerate(outcomes)]
    assert drawn(plots.unlikeness(scored, 1.9))
    assert drawn(plots.unlikeness([scored[0]], None))


def masks(shift):
    mask = np.zeros((48, 40), bool)
    mask[10 : 30 + shift, 8:20] = True
    return mask


@pytest.mark.parametrize(
    "case",
    [
        Case("test", "a", np.full((48, 40), 0.5, np.float32)),
        Case("test", "b", np.full((48, 40, 3), 0.5, np.float32), 2.0),
        Case("test", "c", np.zeros((48, 40), np.float32), 1.0, (masks(0),), (masks(5),)),
        Case("test", "c", np.zeros((48, 40), np.float32), 1.0, (masks(0),), (masks(0) & False,)),
        Case(
            "test",
            "d",
            np.zeros((48, 40), np.float32),
            true_boxes=((0, 1, 1, 20, 20),),
            found_boxes=((0, 2, 2, 21, 21, 0.9),),
        ),
    ],
)
def test_a_case_is_drawn_with_truth_and_output(case):
    assert drawn(plots.cases([case, case], ["Lung"]))


def test_no_failure_no_gallery():
    assert plots.cases([], ["Lung"]) is None


def test_the_most_confident_mistake_comes_first():
    outcomes = said.binary([1, 0, 1, 0, 1], [0.45, 0.97, 0.02, 0.1, 0.9])
    assert [one.name for one in worst(outcomes, said.BINARY, 2)] == ["s0002", "s0001"]
    assert len(worst(outcomes, said.BINARY, 9)) == 3


def test_the_grade_that_is_furthest_off_comes_first():
    outcomes = said.grades([0, 0, 1], [1, 2, 1])
    assert [one.name for one in worst(outcomes, said.GRADES, 9)] == ["s1", "s0"]


def test_the_lowest_overlap_comes_first():
    outcomes = said.lungs([(0.9, 0.9), (0.5, 0.9), (1.0, 1.0)])
    assert [one.name for one in worst(outcomes, said.LUNGS, 9)] == ["s1", "s0"]


def test_missed_and_false_boxes_come_first():
    there = [(0, 0, 0, 20, 20)]
    outcomes = said.boxes(
        [there, there, there],
        [[(0, 0, 0, 20, 20, 0.9)], [(0, 0, 0, 20, 19, 0.9)], [(1, 0, 0, 20, 20, 0.9)]],
    )
    assert [one.name for one in worst(outcomes, said.BOXES, 9)] == ["s2", "s1"]
