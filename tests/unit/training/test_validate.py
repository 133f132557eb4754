"""An epoch's verdict: equal to what is counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.training.learning import recipe, samples
from training.losses import objective
from training.prepare import prepare
from training.validate import HEADLINES, Verdict, auc, average_precision, kappa, validate


class Says(nn.Module):
    """Gives these answers, batch after batch."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.at = answers, 0

    def forward(self, x):
        found = self.answers[self.at : self.at + len(x)]
        self.at += len(x)
        return found


def verdict(task, answer, count=5, batch=2, **more):
    plan = recipe(task, **more)
    ready = prepare(samples(task, count), plan.bundle)
    judge = objective(plan, ready, judging=True)
    network = Says(answer(ready)).train()
    found = validate(network, ready, judge, plan.bundle, "cpu", batch)
    assert not network.training
    return found, judge, ready


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_loss_is_the_mean_over_all_frames_however_they_are_batched(batch):
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    found, judge, ready = verdict("classification", lambda _: logits, batch=batch)
    assert found.loss == pytest.approx(float(judge(logits, ready.classes)), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("classification", lambda ready: ready.classes * 8 - 4),
        ("grading", lambda ready: (ready.grade[:, None] > torch.arange(2)).float() * 8 - 4),
        ("segmentation", lambda ready: ready.masks.float() * 8 - 4),
    ],
)
def test_the_right_answers_get_the_highest_headline_and_the_wrong_ones_less(task, answer):
    how = {"activation": "sigmoid"} if task == "segmentation" else {}
    assert verdict(task, answer, **how)[0].headline == pytest.approx(1)
    assert verdict(task, lambda ready: -answer(ready), **how)[0].headline < 0.5


def test_masks_count_over_all_frames_together():
    def half(ready):
        masks = ready.masks.float()
        masks[::2, 0, :28] = 0
        return masks * 8 - 4

    found, _, ready = verdict("segmentation", half, activation="sigmoid", batch=3)
    true, said = ready.masks.float(), half(ready) > 0
    expected = 2 * (true * said).sum((0, 2, 3)) / (true + said).sum((0, 2, 3))
    assert found.headline == pytest.approx(float(expected.mean()), abs=1e-5)


def test_detection_has_no_loss_and_is_judged_by_its_precision():
    def answers(ready):
        return [{**frame, "scores": torch.ones(len(frame["labels"]))} for frame in ready.boxes]

    found, _, _ = verdict("detection", answers)
    assert math.isnan(found.loss)
    assert found.score == found.headline == pytest.approx(1)


def test_precision_falls_with_each_false_box():
    box = torch.tensor([[0.0, 0, 10, 10]])
    true = [{"boxes": box, "labels": torch.tensor([0])}]
    for labels, expected in (([0], 1.0), ([1], 0.0)):
        found = [{"boxes": box, "labels": torch.tensor(labels), "scores": torch.ones(1)}]
        assert average_precision(found, true) == pytest.approx(expected)
    wrong_first = [
        {
            "boxes": torch.cat([box + 20, box]),
            "labels": torch.tensor([0, 0]),
            "scores": torch.tensor([0.9, 0.8]),
        }
    ]
    assert average_precision(wrong_first, true) == pytest.approx(0.5, abs=0.01)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert average_precision([{**nothing, "scores": torch.zeros(0)}], [nothing]) == 0


def test_a_lower_loss_is_a_higher_score():
    assert Verdict(0.2, 0.1).score > Verdict(0.3, 0.9).score


def test_ranks_make_the_area_under_the_curve():
    truth = np.array([[1.0, 0.0], [0, 0], [1, 0], [0, 0]])
    logits = np.array([[3.0, 1.0], [2, 1], [1, 1], [0, 1]])
    assert auc(logits, truth, "sigmoid") == 0.75  # the class that is never there is left out
    assert math.isnan(auc(logits, truth[:, 1:], "sigmoid"))


def test_the_area_of_exclusive_classes_is_that_of_their_probabilities():
    truth = np.array([[1.0, 0.0], [0, 1]])
    assert auc(np.array([[5.0, 4.0], [6.0, 9.0]]), truth, "softmax") == 1
    assert auc(np.array([[5.0, 4.0], [6.0, 9.0]]), truth, "sigmoid") == 0.5


def test_kappa_counts_the_reached_grades():
    logits = np.array([[-1.0, -2.0], [1.0, -1.0], [3.0, 1.0]])
    assert kappa(logits, np.array([0, 1, 2])) == pytest.approx(1)
    assert kappa(logits, np.array([2, 1, 0])) == pytest.approx(-1)
    assert math.isnan(kappa(logits[:1], np.array([0])))


def test_every_task_has_a_headline():
    assert set(HEADLINES) == {"classification", "grading", "segmentation", "detection"}
