"""Owns how a frame looks to people: from values in their unit to grey levels or RGB.

Refuses to know what is drawn over it, and what a network sees: that is ``preprocessing``, whose
windows are a model's and not a reader's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference.attributes import get, numbers
from inference.errors import ReadingError
from inference.pixels import BRIGHTNESS, PROJECTIONS
from inference.types import ImageStack

Window = tuple[float, float]
"""Center and width, in the unit of the values (PS3.3 C.11.2.1.2)."""

SOFT_TISSUE: Window = (40.0, 400.0)
"""In Hounsfield units: what a CT is shown with when it does not say."""

PERCENTILES = (0.5, 99.5)
"""Of the pixels that count, shown black and white where there is no window."""

SAMPLES = 1 << 18
"""Pixels of a frame that percentiles are taken from; more changes nothing."""

LARGEST = 1e9
"""No center and no width of an image is larger; far larger ones would overflow."""

_MADE_FOR_EYES = BRIGHTNESS - PROJECTIONS


def shown(stack: ImageStack, frame: int, window: Window | None = None) -> NDArray[np.uint8]:
    """One frame as people look at it; a copy, the stack is not touched.

    - Colour comes back as it is.
    - Hounsfield units and raw values: ``window``, where it makes sense and leaves anything to
      see; else soft tissue for Hounsfield units, percentiles for raw values.
    - Brightness: percentiles. A source writes its window in stored values, which brightness no
      longer is, so ``window`` is not asked. Ultrasound is shown as stored: its gain was set by
      someone who looked at it.
    - MONOCHROME1 turns over what reading has not turned over already (all but brightness).
    - Pixels that are not valid, or not finite, are black.

    Args:
        stack: any.
        frame: index into it, from 0.
        window: center and width in ``stack.unit``, as `window_of` finds them.

    Returns:
        ``(rows, columns)``, 0 black and 255 white; ``(rows, columns, 3)`` RGB for colour.

    Raises:
        IndexError: there is no such frame.
    """
    if not 0 <= frame < len(stack.pixels):
        raise IndexError(f"frame {frame} of {len(stack.pixels)}")
    pixels = stack.pixels[frame]
    counts = None if stack.valid is None else stack.valid[frame]
    if pixels.ndim == 3:
        picture = np.array(pixels, dtype=np.uint8)
    else:
        values = np.asarray(pixels, dtype=np.float32)
        if pixels.dtype.kind == "f" and not np.isfinite(values).all():
            finite = np.isfinite(values)
            counts = finite if counts is None else counts & finite
            values = np.where(finite, values, np.float32(0))
        picture = _grey(stack, values, counts, window)
    if counts is not None:
        picture[~counts] = 0
    return picture


def window_of(dataset: Dataset, frame_number: int = 1) -> Window | None:
    """The first window that a source gives for a frame: center and width.

    In the frame's functional groups, else in the shared ones, else in the data set itself
    (PS3.3 C.7.6.16.2.10, C.11.2). Whatever is there that makes no sense counts as absent.

    Args:
        dataset: its header; nothing is changed.
        frame_number: from 1, as DICOM counts.
    """
    for item in _voi_items(dataset, frame_number):
        try:
            center, width = numbers(item, "WindowCenter"), numbers(item, "WindowWidth")
        except ReadingError:
            continue
        if center and width and _sensible((center[0], width[0])):
            return center[0], width[0]
    return None


def _voi_items(dataset: Dataset, frame_number: int) -> Iterator[Dataset]:
    for keyword, index in (
        ("PerFrameFunctionalGroupsSequence", frame_number - 1),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        try:
            groups = get(dataset, keyword) or ()
            if 0 <= index < len(groups):
                item = (get(groups[index], "FrameVOILUTSequence") or (None,))[0]
                if isinstance(item, Dataset):
                    yield item
        except (ReadingError, TypeError):
            continue  # written as something other than a sequence
    yield dataset


def _sensible(window: Window) -> bool:
    center, width = window
    return (
        math.isfinite(center)
        and math.isfinite(width)
        and abs(center) <= LARGEST
        and 0 < width <= LARGEST
    )


def _grey(
    stack: ImageStack,
    values: NDArray[np.float32],
    counts: NDArray[np.bool_] | None,
    window: Window | None,
) -> NDArray[np.uint8]:
    if stack.unit == "1":
        made_for_eyes = stack.modality in _MADE_FOR_EYES
        return _between(values, *((0.0, 1.0) if made_for_eyes else _percentiles(values, counts)))
    grey = None
    if window is not None and _sensible(window):
        grey = _between(values, *_bounds(window))
        seen = grey if counts is None else grey[counts]
        if seen.size and seen.min() == seen.max():
            grey = None  # all black or all white: a window of other values than these
    if grey is None:
        default = _bounds(SOFT_TISSUE) if stack.unit == "[hnsf'U]" else None
        grey = _between(values, *(default or _percentiles(values, counts)))
    return 255 - grey if stack.photometric == "MONOCHROME1" else grey


def _bounds(window: Window) -> tuple[float, float]:
    """The values that become black and white: LINEAR, which wants a width of 1 or more, else
    LINEAR_EXACT (PS3.3 C.11.2.1.2.1, C.11.2.1.3.2)."""
    center, width = window
    if width < 1:
        return center - width / 2, center + width / 2
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _percentiles(
    values: NDArray[np.float32], counts: NDArray[np.bool_] | None
) -> tuple[float, float]:
    counted = values.reshape(-1) if counts is None else values[counts]
    if not counted.size:
        return 0.0, 1.0
    low, high = np.percentile(counted[:: max(1, counted.size // SAMPLES)], PERCENTILES)
    return float(low), float(high)


def _between(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """``low`` and what is below black, ``high`` and what is above white, straight between."""
    if not high > low:
        return np.where(values > low, 255, 0).astype(np.uint8)
    # float64 for the two numbers only: in float32 low and high may fall together.
    with np.errstate(over="ignore"):  # what overflows is far outside, and clipped
        scaled = (values - np.float32(low)) * np.float32(min(255 / (high - low), 3e38))
    np.clip(scaled, 0, 255, out=scaled)
    scaled += 0.5
    return scaled.astype(np.uint8)
