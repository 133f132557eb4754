"""Owns how a batch is varied; every draw comes from the generator that is passed in."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Training


def augment(
    images: Tensor, truths: Tensor, how: Training, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One variation of each image with its truth.

    Args:
        images: ``(n, 1, rows, columns)`` in 0..1.
        truths: ``(n, classes, rows, columns)`` in 0..1.
        how: the recipe's strengths.
        generator: of the draws, on the CPU.

    Returns:
        Both, turned, scaled and shifted alike; the image also changed in gamma, contrast and
        noise, still in 0..1.
    """
    n = len(images)

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = draw(-how.degrees, how.degrees) * math.pi / 180
    scale = 1 / draw(*how.zoom)
    mirror = torch.ones(n)
    if how.flips:
        mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [
        torch.stack([cos * mirror, -sin, draw(-how.shift, how.shift) * 2], 1),
        torch.stack([sin * mirror, cos, draw(-how.shift, how.shift) * 2], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    both = functional.grid_sample(
        torch.cat([images, truths], 1), grid.to(images), align_corners=False
    )
    image, truth = both[:, :1], both[:, 1:]

    s = how.intensity

    def column(low: float, high: float) -> Tensor:
        return draw(low, high).view(n, 1, 1, 1).to(image)

    image = image.clamp(1e-4, 1) ** torch.exp(column(-s, s))
    image = (image - 0.5) * torch.exp(column(-s, s)) + 0.5 + column(-s, s) * 0.3
    noise = torch.randn(image.shape, generator=generator).to(image)
    image = image + noise * column(0, 0.06 * s)
    return image.clamp(0, 1), truth
