"""Owns how a sample is varied; refuses to know which sample it is, or what is learnt from it.

torchvision's v2 transforms do it, on its tv_tensors, so that image, masks and boxes move together.
Every draw comes from the seed that is passed in: a variation depends neither on the batch, nor on
the process, nor on what was drawn before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image, Mask

from training.recipe import Augment

NOISE = 0.06  # standard deviation at full intensity, where the image is 0..1
PATCH = (0.02, 0.2)  # share of the image that is blanked
LEFT = 0.25  # a box that keeps less of its area inside the image is no example of its kind


@dataclass(frozen=True)
class Varied:
    """One image with its truth, on the network's grid.

    Attributes:
        image: ``(C, rows, columns)`` float32 in 0..1.
        masks: ``(classes, rows, columns)`` uint8, or None.
        boxes: ``{"boxes": (k, 4) left, top, right, bottom, "labels": (k,)}``, or None.
    """

    image: Tensor
    masks: Tensor | None = None
    boxes: dict[str, Tensor] | None = None


def seed_of(*numbers: int) -> int:
    """One seed of several numbers; others give another one."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(state[0]) << 31) | (int(state[1]) >> 1)


def generator(*numbers: int) -> torch.Generator:
    """Draws that depend on these numbers alone."""
    return torch.Generator().manual_seed(seed_of(*numbers))


def augment(one: Varied, how: Augment, seeds: tuple[int, ...], rgb: bool = False) -> Varied:
    """One variation, always the same for the same seeds.

    First brightness, then place, so that what is moved in from outside stays 0 as the service's
    padding is. Gamma, contrast and brightness are drawn evenly in their logarithm.

    Args:
        one: what is varied; not altered.
        how: the recipe's strengths.
        seeds: such as (recipe's seed, epoch, place in the epoch).
        rgb: channels are colours; else each is a grey image.
    """
    draw = generator(*seeds)
    u: list[float] = torch.rand(14, generator=draw, dtype=torch.float64).tolist()

    def within(i: int, low: float, high: float) -> float:
        return low + (high - low) * u[i]

    image = one.image
    s = how.intensity
    if s:
        grey = image if rgb else image[:, None]  # v2 knows one or three channels
        grey = v2.adjust_gamma(grey, math.exp(within(0, -s, s)))
        grey = v2.adjust_contrast(grey, math.exp(within(1, -s, s)))
        grey = v2.adjust_brightness(grey, math.exp(within(2, -s, s) / 2))
        image = grey if rgb else grey[:, 0]
        noise = torch.randn(image.shape, generator=draw)
        image = torch.add(image, noise, alpha=NOISE * s * u[3]).clamp_(0, 1)
    rows, columns = image.shape[-2:]
    varied: list[Tensor] = [Image(image)]
    if one.masks is not None:
        varied.append(Mask(one.masks))
    if one.boxes is not None:
        varied.append(_tv(one.boxes["boxes"], rows, columns))
    if how.flips and u[4] < 0.5:
        varied = [v2.horizontal_flip(x) for x in varied]
    zoom = within(8, *how.zoom)
    if how.degrees or how.shift or how.zoom != (1.0, 1.0):
        shift = [within(5, -how.shift, how.shift), within(6, -how.shift, how.shift)]
        varied = [
            v2.affine(
                x,
                angle=within(7, -how.degrees, how.degrees),
                translate=[shift[0] * columns, shift[1] * rows],
                scale=zoom,
                shear=[0.0, 0.0],
                interpolation=InterpolationMode.NEAREST
                if isinstance(x, Mask)
                else InterpolationMode.BILINEAR,
            )
            for x in varied
        ]
    image = varied[0].as_subclass(torch.Tensor)
    if how.erase and u[9] < how.erase:
        area = within(10, *PATCH) * rows * columns
        aspect = math.exp(within(11, -1, 1))
        high = max(1, min(rows, round(math.sqrt(area * aspect))))
        wide = max(1, min(columns, round(math.sqrt(area / aspect))))
        top, left = int(u[12] * (rows - high + 1)), int(u[13] * (columns - wide + 1))
        image = v2.erase(image, top, left, high, wide, torch.zeros(1))
    return Varied(
        image,
        None if one.masks is None else varied[1].as_subclass(torch.Tensor),
        None if one.boxes is None else _kept(varied[-1], one.boxes, zoom, (rows, columns)),
    )


def _tv(boxes: Tensor, rows: int, columns: int) -> BoundingBoxes:
    return BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=(rows, columns))


def _kept(
    moved: Tensor, before: dict[str, Tensor], zoom: float, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Boxes cut at the image's edges, less those of which too little is left."""
    boxes = v2.clamp_bounding_boxes(_tv(moved.as_subclass(torch.Tensor), *size))
    cut = boxes.as_subclass(torch.Tensor)
    sides = cut[:, 2:] - cut[:, :2]
    # Not of `moved`: some versions of v2 have cut it already.
    whole = (before["boxes"][:, 2:] - before["boxes"][:, :2]).prod(1) * zoom**2
    good = (sides.min(1).values >= 1) & (sides.prod(1) >= LEFT * whole)
    return {"boxes": cut[good], "labels": before["labels"][good]}
