"""Owns what training minimises: cross-entropy and overlap together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
