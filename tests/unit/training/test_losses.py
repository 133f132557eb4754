"""The loss: least where right, and equal to its definition."""

from __future__ import annotations

import pytest
import torch

from training.losses import segmentation_loss, soft_dice


def truth():
    t = torch.zeros(2, 2, 8, 8)
    t[:, 0, :4] = 1
    t[:, 1, 4:] = 1
    return t


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_right_answer_costs_almost_nothing_and_the_wrong_one_much(activation):
    right = (truth() * 2 - 1) * 20
    assert float(segmentation_loss(right, truth(), activation)) < 0.01
    assert float(segmentation_loss(-right, truth(), activation)) > 2


def test_dice_of_each_class_is_counted_over_the_batch():
    half = truth()
    half[1, 0] = 0
    expected = 2 * 32 / (32 + 64)
    assert float(soft_dice(half, truth())[0]) == pytest.approx(expected, abs=0.01)
    assert float(soft_dice(half, truth())[1]) == pytest.approx(1)


def test_a_class_that_is_absent_and_not_found_is_right():
    nothing = torch.zeros(1, 1, 8, 8)
    assert float(soft_dice(nothing, nothing)[0]) == 1
