"""Losses: least where right, equal to their definitions, and fair to the rare where asked."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.unit.training.learning import recipe, samples
from training.errors import RecipeError
from training.losses import (
    class_weights,
    classification_loss,
    coral_loss,
    cumulative_loss,
    detection_loss,
    draw_weights,
    drawing,
    grade_weights,
    objective,
    segmentation_loss,
    soft_dice,
)
from training.prepare import prepare


def truth():
    t = torch.zeros(2, 2, 8, 8)
    t[:, 0, :4] = 1
    t[:, 1, 4:] = 1
    return t


def one_hot(*classes):
    return functional.one_hot(torch.tensor(classes)).float()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_right_mask_costs_almost_nothing_and_the_wrong_one_much(activation):
    right = (truth() * 2 - 1) * 20
    assert float(segmentation_loss(right, truth(), activation)) < 0.01
    assert float(segmentation_loss(-right, truth(), activation)) > 2


def test_dice_of_each_class_is_counted_over_the_batch():
    half = truth()
    half[1, 0] = 0
    expected = 2 * 32 / (32 + 64)
    assert float(soft_dice(half, truth())[0]) == pytest.approx(expected, abs=0.01)
    assert float(soft_dice(half, truth())[1]) == pytest.approx(1)


def test_a_mask_that_is_absent_and_not_found_is_right():
    nothing = torch.zeros(1, 1, 8, 8)
    assert float(soft_dice(nothing, nothing)[0]) == 1


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_right_class_costs_almost_nothing_and_the_wrong_one_much(activation):
    right = (one_hot(0, 1, 1) * 2 - 1) * 20
    assert float(classification_loss(right, one_hot(0, 1, 1), activation)) < 0.01
    assert float(classification_loss(-right, one_hot(0, 1, 1), activation)) > 10


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_smoothing_makes_utter_certainty_cost_more(activation):
    sure, fair = (one_hot(0, 1) * 2 - 1) * 20, (one_hot(0, 1) * 2 - 1) * 1.5
    assert classification_loss(sure, one_hot(0, 1), activation, 0.1) > classification_loss(
        fair, one_hot(0, 1), activation, 0.1
    )


def test_smoothed_binary_truth_is_half_the_smoothing_from_the_ends():
    logits = torch.tensor([[0.3], [-0.7]])
    soft = torch.tensor([[0.95], [0.05]])
    expected = functional.binary_cross_entropy_with_logits(logits, soft)
    found = classification_loss(logits, torch.tensor([[1.0], [0.0]]), "sigmoid", 0.1)
    assert float(found) == pytest.approx(float(expected))


def test_coral_sums_the_binary_losses_of_its_steps():
    logits = torch.tensor([[2.0, -1.0, -3.0]])
    said = torch.sigmoid(logits)[0]
    expected = -(said[0].log() + said[1].log() + (1 - said[2]).log())
    assert float(coral_loss(logits, torch.tensor([2]))) == pytest.approx(float(expected))


def test_the_cumulative_link_is_the_likelihood_of_the_grade():
    logits = torch.tensor([[2.0, -1.0, -3.0]]).repeat(4, 1)
    reached = torch.cat([torch.ones(1), torch.sigmoid(logits[0]), torch.zeros(1)])
    each = reached[:-1] - reached[1:]
    assert float(each.sum()) == pytest.approx(1)
    for grade in range(4):
        found = float(cumulative_loss(logits[:1], torch.tensor([grade])))
        assert found == pytest.approx(-float(each[grade].log()), rel=1e-4)


@pytest.mark.parametrize("logits", [[[500.0, 400.0]], [[-400.0, -500.0]], [[1.0, 1.0]]])
@pytest.mark.parametrize("grade", [0, 1, 2])
def test_the_cumulative_link_stays_a_number_far_out(logits, grade):
    x = torch.tensor(logits, requires_grad=True)
    loss = cumulative_loss(x, torch.tensor([grade]))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("loss", [coral_loss, cumulative_loss])
def test_a_grade_further_off_costs_more(loss):
    far, near, right = (
        loss(torch.tensor([[4.0, 2.0, -2.0]]), torch.tensor([g])) for g in (0, 1, 2)
    )
    assert far > near > right


def test_detection_adds_what_its_network_tells():
    assert float(detection_loss({"a": torch.tensor(1.5), "b": torch.tensor(2.0)})) == 3.5


def test_weights_of_exclusive_classes_even_out_their_counts():
    found = one_hot(0, 0, 0, 1)
    weights = class_weights(found, "softmax")
    assert (found.sum(0) * weights).tolist() == pytest.approx([2, 2])
    assert torch.allclose(grade_weights(torch.tensor([0, 0, 0, 1]), 2), weights)


def test_presence_counts_as_much_as_absence_where_classes_are_independent():
    found = torch.tensor([[1.0, 1], [0, 1], [0, 1], [0, 0]])
    assert class_weights(found, "sigmoid").tolist() == pytest.approx([3, 1 / 3])


def test_drawing_shows_rare_classes_as_often_as_common_ones():
    found = one_hot(0, 0, 0, 0, 0, 0, 0, 1)
    draws = torch.multinomial(
        draw_weights(found, "softmax"), 4000, True, generator=torch.Generator().manual_seed(0)
    )
    assert float(found[draws].mean(0)[1]) == pytest.approx(0.5, abs=0.03)
    many = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 3 + [[0.0, 0.0]] * 4)
    weights = draw_weights(many, "sigmoid")
    assert weights[0] > weights[1]
    assert weights[0] > weights[-1]


def ready(task, **how):
    plan = recipe(task, **how)
    some = samples(task, 12)
    return plan, prepare([some[0], *some], plan.bundle)


def test_an_unbalanced_loss_is_weighted_and_a_drawn_one_only_when_it_judges():
    logits, known = torch.tensor([[0.5, -0.5]]), torch.tensor([[0.0, 1.0]])
    plain, by_loss, by_draw = (
        ready("classification", balance=b) for b in ("none", "loss", "sampler")
    )
    base = float(objective(*plain)(logits, known))
    assert float(objective(*by_loss)(logits, known)) == pytest.approx(base * 13 / 12)
    assert float(objective(*by_draw)(logits, known)) == pytest.approx(base)
    assert float(objective(*by_draw, judging=True)(logits, known)) == pytest.approx(base * 13 / 12)
    assert drawing(*plain) is None
    assert drawing(*by_loss) is None
    assert drawing(*by_draw) is not None


def test_grades_are_balanced_too():
    plan, prepared = ready("grading", balance="sampler")
    weights = drawing(plan, prepared)
    assert weights is not None
    sums = torch.zeros(3).index_add(0, prepared.grade, weights)
    assert sums.tolist() == pytest.approx([float(sums[0])] * 3)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_what_has_no_classes_of_samples_is_not_balanced(task):
    with pytest.raises(RecipeError, match=r"training\.balance"):
        objective(*ready(task, balance="loss"))


def test_validation_is_not_smoothed():
    smooth, plain = ready("classification", label_smoothing=0.3), ready("classification")
    logits, known = torch.tensor([[3.0, -3.0]]), torch.tensor([[1.0, 0.0]])
    assert objective(*smooth)(logits, known) > objective(*plain)(logits, known)
    assert torch.equal(
        objective(*smooth, judging=True)(logits, known), objective(*plain)(logits, known)
    )
