"""Owns pictures as they should not come: turned, inverted; an input check learns to refuse them.

Refuses to know whether a model minds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.types import ImageStack
from training.recipe import Augment

Pixels = NDArray[Any]
Change = Callable[[Pixels], Pixels]
QUARTER = 90.0


def turned(quarters: int) -> Change:
    """Each frame ``(frames, rows, columns[, 3])`` turned anticlockwise by so many right angles."""
    return lambda pixels: np.rot90(pixels, quarters, axes=(1, 2))


def inverted(pixels: Pixels) -> Pixels:
    """Dark for bright, within the range of what is there."""
    return np.asarray(pixels.max() - (pixels - pixels.min()))


def kinds(learnt: Augment) -> dict[str, Change]:
    """What a model that learnt from samples varied like that has never seen, by name."""
    never: dict[str, Change] = {}
    if learnt.degrees < QUARTER:
        never = {f"turned by {90 * n}°": turned(n) for n in (1, 2, 3)}
    return {**never, "inverted": inverted}


def made(stack: ImageStack, change: Change) -> ImageStack:
    """The stack as it would come, its padding with it."""
    valid = stack.valid
    if valid is not None and change is not inverted:
        valid = np.ascontiguousarray(change(valid))
    return replace(stack, pixels=np.ascontiguousarray(change(stack.pixels)), valid=valid)
