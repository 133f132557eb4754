"""Owns what training minimises, task by task, and how rare classes are made to count.

Refuses to know networks, batches and optimisers. All losses are scalars, the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.errors import RecipeError
from training.prepare import Prepared
from training.recipe import Recipe

Objective = Callable[[Any, Any], Tensor]
"""Of what a network gives and what is true: a scalar."""


def objective(recipe: Recipe, train: Prepared, judging: bool = False) -> Objective:
    """What the recipe's task minimises.

    Args:
        recipe: task, activation, balance, smoothing.
        train: what classes are counted in.
        judging: of validation: never smoothed, and weighted under both ways to balance, since
            drawing rare classes more often weights them too.

    Raises:
        RecipeError: the task knows nothing that could be balanced.
    """
    how, bundle = recipe.training, recipe.bundle
    weighted = how.balance == "loss" or (judging and how.balance == "sampler")
    if bundle.task == "segmentation":
        _unbalanced(recipe)
        return lambda logits, truth: segmentation_loss(logits, truth, bundle.activation)
    if bundle.task == "detection":
        _unbalanced(recipe)
        return lambda parts, _: detection_loss(parts)
    if bundle.task == "grading":
        assert train.grade is not None  # noqa: S101  # what grading is prepared with
        ordinal = coral_loss if how.ordinal_loss == "coral" else cumulative_loss
        grades = bundle.architecture.classes + 1
        by_grade = grade_weights(train.grade, grades) if weighted else None
        return lambda logits, truth: ordinal(logits, truth, _beside(by_grade, logits))
    assert train.classes is not None  # noqa: S101  # what classification is prepared with
    weights = class_weights(train.classes, bundle.activation) if weighted else None
    smoothing = 0.0 if judging else how.label_smoothing
    return lambda logits, truth: classification_loss(
        logits, truth, bundle.activation, smoothing, _beside(weights, logits)
    )


def drawing(recipe: Recipe, train: Prepared) -> Tensor | None:
    """``(N,)`` how often each frame is drawn under ``balance = "sampler"``; None: once each."""
    if recipe.training.balance != "sampler":
        return None
    if train.grade is not None:
        grades = recipe.bundle.architecture.classes + 1
        return draw_weights(functional.one_hot(train.grade, grades).float(), "softmax")
    if train.classes is not None:
        return draw_weights(train.classes, recipe.bundle.activation)
    return None


def _unbalanced(recipe: Recipe) -> None:
    if recipe.training.balance != "none":
        raise RecipeError(
            f"training.balance: a {recipe.bundle.task} has no classes of samples to balance; take "
            "none"
        )


def _beside(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(logits.device)


def segmentation_loss(logits: Tensor, truth: Tensor, activation: str) -> Tensor:
    """Cross-entropy plus ``1 - Dice`` (Milletari et al. 2016), a scalar.

    Args:
        logits: ``(n, classes, rows, columns)``.
        truth: the same shape, in 0..1.
        activation: the manifest's; ``sigmoid`` lets classes overlap, ``softmax`` does not.
    """
    if activation == "sigmoid":
        entropy = functional.binary_cross_entropy_with_logits(logits, truth)
        probability = torch.sigmoid(logits)
    else:
        entropy = functional.cross_entropy(logits, truth)
        probability = torch.softmax(logits, 1)
    return entropy + 1 - soft_dice(probability, truth).mean()


def soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice of each class over the whole batch, ``(classes,)``; 1 where both are empty."""
    both = (probability * truth).sum((0, 2, 3))
    each = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return (2 * both + 1) / (each + 1)


def classification_loss(
    logits: Tensor,
    truth: Tensor,
    activation: str,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of classes that exclude each other (softmax) or do not (sigmoid).

    Args:
        logits: ``(n, classes)``.
        truth: the same shape, 0 or 1.
        activation: the manifest's.
        smoothing: share of the truth that is spread evenly (Szegedy et al. 2016).
        weights: ``(classes,)`` of ``class_weights``.
    """
    if activation == "softmax":
        return functional.cross_entropy(logits, truth, weights, label_smoothing=smoothing)
    soft = truth * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights)


def coral_loss(logits: Tensor, grade: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the binary cross-entropies of ``grade >= k`` (CORAL, Cao et al. 2020).

    Args:
        logits: ``(n, grades - 1)``; logit k-1 belongs to ``P(grade >= k)``.
        grade: ``(n,)`` int64 from 0.
        weights: ``(grades,)`` of ``grade_weights``.
    """
    steps = torch.arange(logits.shape[1], device=logits.device)
    reached = (grade[:, None] > steps).to(logits)
    each = functional.binary_cross_entropy_with_logits(logits, reached, reduction="none").sum(1)
    return each.mean() if weights is None else (each * weights[grade]).mean()


def cumulative_loss(logits: Tensor, grade: Tensor, weights: Tensor | None = None) -> Tensor:
    """Negative log likelihood of the cumulative link model with logit link (McCullagh 1980).

    ``P(grade = k) = s(a) - s(b) = s(a) s(-b) (1 - exp(b - a))`` with the logits a of ``>= k`` and
    b of ``>= k + 1``, which stays exact where both are far from 0. Arguments as ``coral_loss``;
    logits fall from one step to the next.
    """
    far = torch.full_like(logits[:, :1], 1e4)
    edges = torch.cat([far, logits, -far], 1)
    a = edges.gather(1, grade[:, None])[:, 0]
    b = edges.gather(1, grade[:, None] + 1)[:, 0]
    gap = (a - b).clamp_min(1e-6)  # equal cut points: nothing lies between them
    likely = functional.logsigmoid(a) + functional.logsigmoid(-b) + torch.log(-torch.expm1(-gap))
    return -likely.mean() if weights is None else -(likely * weights[grade]).mean()


def detection_loss(parts: Mapping[str, Tensor]) -> Tensor:
    """Sum of torchvision's own losses: classes, boxes, and where there is one the proposals."""
    return torch.stack(list(parts.values())).sum()


def class_weights(truth: Tensor, activation: str) -> Tensor:
    """How much each class counts, from ``(n, classes)`` of the training data alone.

    Exclusive classes: inverse frequency, 1 on the average sample. Others: how many times as often
    a class is absent as it is there, which is what its presence counts.
    """
    there = truth.sum(0).clamp_min(1)
    if activation == "softmax":
        return len(truth) / (truth.shape[1] * there)
    return (len(truth) - there).clamp_min(1) / there


def grade_weights(grade: Tensor, grades: int) -> Tensor:
    """``(grades,)`` inverse frequency, 1 on the average sample of the training data."""
    return class_weights(functional.one_hot(grade, grades).float(), "softmax")


def draw_weights(truth: Tensor, activation: str) -> Tensor:
    """``(n,)`` how often each sample is drawn against rare classes, from ``(n, classes)``.

    Exclusive classes are drawn equally often; of others, a sample's weight is the mean over the
    classes of the inverse frequency of what it says of each.
    """
    n = len(truth)
    there = truth.sum(0).clamp_min(1)
    if activation == "softmax":
        return (truth / there).sum(1)
    absent = (n - truth.sum(0)).clamp_min(1)
    return (truth / there + (1 - truth) / absent).mean(1)
