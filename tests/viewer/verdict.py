"""Owns the verdict on what a viewer shows: pixels and their place against what should be there.

Pure functions of arrays. They answer with complaints, an empty list when all is well, so that a
test can also ask that something wrong is found out. Refuses to know browsers and DICOM.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tests.viewer.reader import Painted, Pixels, Place

Grey = NDArray[np.generic]

COUNT = 0.02
"""Share by which the number of painted pixels may differ from what is expected."""
DICE = 0.98
HUE = 8 / 360
LINE = 2.5
"""Canvas pixels between a line and its place: half of the gap in a dashed line, and its width."""
ALONG = 0.98
"""Share of a line that must be drawn, and of what is drawn that must belong to a line."""


def mask_on_canvas(mask: NDArray[np.bool_], place: Place) -> NDArray[np.bool_]:
    """Which canvas pixels lie in a mask of the image."""
    pixel = np.floor(place.on_image()).astype(int)
    rows, columns = mask.shape
    column, row = pixel[..., 0], pixel[..., 1]
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    covered = np.zeros(inside.shape, dtype=bool)
    covered[inside] = mask[row[inside], column[inside]]
    return covered


def segment(
    painted: Painted, number: int, mask: NDArray[np.bool_], colour: Sequence[int]
) -> list[str]:
    """A segment that is painted in its colour, there and only there."""
    shown = painted.segments[number]
    found = (shown != painted.bare).any(axis=-1)
    wanted = mask_on_canvas(mask, painted.place)
    count, expected = int(found.sum()), int(wanted.sum())
    if not expected:
        return [f"segment {number}: {count} pixels painted where there is nothing"] if count else []
    complaints = []
    if abs(count - expected) > COUNT * expected:
        complaints.append(f"segment {number}: {count} pixels painted instead of {expected}")
    dice = 2 * int((found & wanted).sum()) / (count + expected)
    if dice < DICE:
        complaints.append(f"segment {number}: painted elsewhere, Dice {dice:.3f}")
    if count:
        middle = np.median(shown[found], axis=0)
        if not _same_colour(middle, colour):
            complaints.append(f"segment {number}: painted in {middle} instead of {colour}")
    return complaints


def _same_colour(one: Sequence[float], other: Sequence[float]) -> bool:
    (h, s, _), (wanted, saturation, _) = (
        colorsys.rgb_to_hsv(*(float(v) / 255 for v in c)) for c in (one, other)
    )
    apart = abs(h - wanted)
    return min(apart, 1 - apart) < HUE and abs(s - saturation) < 0.1


def image(
    bare: Pixels, place: Place, frames: Sequence[NDArray[np.generic]], index: int
) -> list[str]:
    """That the canvas shows frame ``index`` of an image, and shows it where ``place`` says."""
    seen, inside = _seen(bare, place, frames[index])
    if inside.mean() < 0.9:
        return [f"only {inside.mean():.0%} of the image is on the canvas"]
    likeness = [_likeness(seen, frame, inside) for frame in frames]
    if int(np.argmax(likeness)) != index:
        return [f"frame {int(np.argmax(likeness))} is shown instead of {index}"]
    grey = frames[index]
    moved = [_likeness(seen, np.roll(grey, s, axis=a), inside) for a in (0, 1) for s in (-1, 1)]
    if likeness[index] < max(0.9, *moved):
        return [f"the image is not where it is said to be: {likeness[index]:.3f}, moved {moved}"]
    return []


def picture(bare: Pixels, place: Place, pixels: NDArray[np.uint8]) -> list[str]:
    """That the canvas shows the whole of a colour picture, in its colours."""
    seen, inside = _seen(bare, place, pixels)
    if inside.mean() < 0.98:
        return [f"only {inside.mean():.0%} of the picture is on the canvas"]
    complaints = []
    if (alike := _likeness(seen, pixels, inside)) < 0.9:
        complaints.append(f"the picture is not what is shown: {alike:.3f}")
    means = [
        float(array.reshape(-1, 3).astype(float).std(axis=-1).mean()) for array in (bare, pixels)
    ]
    if not 0.5 < (means[0] + 0.1) / (means[1] + 0.1) < 2:
        complaints.append(f"colourfulness is {means[0]:.1f} instead of {means[1]:.1f}")
    return complaints


def _seen(
    bare: Pixels, place: Place, frame: NDArray[np.generic]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Grey of the canvas at the centres of an image's pixels, and which of them are on it."""
    rows, columns = frame.shape[:2]
    column, row = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    at = np.floor(place.on_canvas(np.stack([column, row], axis=-1))).astype(int)
    inside = ((at >= 0) & (at < place.size)).all(axis=-1)
    return bare.mean(axis=-1)[at[inside][:, 1], at[inside][:, 0]], inside


def _likeness(
    seen: NDArray[np.float64], frame: NDArray[np.generic], at: NDArray[np.bool_]
) -> float:
    grey = frame if frame.ndim == 2 else frame.mean(axis=-1)
    return abs(float(np.corrcoef(seen, grey[at].astype(float))[0, 1]))


def lines(
    drawn: NDArray[np.bool_], place: Place, polygons: Sequence[NDArray[np.float64]]
) -> list[str]:
    """Polygons of image coordinates that are all drawn, and nothing else."""
    if not polygons:
        return [f"{int(drawn.sum())} pixels drawn where there is nothing"] if drawn.any() else []
    complaints = []
    to_drawing = distance_transform_edt(~drawn) if drawn.any() else np.full(drawn.shape, np.inf)
    wanted = np.zeros_like(drawn)
    for number, polygon in enumerate(polygons, 1):
        at = _along(place.on_canvas(polygon)).astype(int)
        at = at[((at >= 0) & (at < place.size)).all(axis=-1)]
        if not len(at):
            complaints.append(f"line {number}: off the canvas")
            continue
        wanted[at[:, 1], at[:, 0]] = True
        share = float((to_drawing[at[:, 1], at[:, 0]] <= LINE).mean())
        if share < ALONG:
            complaints.append(f"line {number}: only {share:.0%} of it drawn in its place")
    if drawn.any() and wanted.any():
        belongs = float((distance_transform_edt(~wanted)[drawn] <= LINE).mean())
        if belongs < ALONG:
            complaints.append(f"{1 - belongs:.0%} of what is drawn lies elsewhere")
    return complaints


def _along(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points on a line, at most half a pixel apart."""
    pieces = [
        a + (b - a) * np.linspace(0, 1, max(2, math.ceil(2 * float(np.hypot(*(b - a))))))[:, None]
        for a, b in pairwise(points)
    ]
    return np.concatenate(pieces)


def same_points(
    one: NDArray[np.float64], other: NDArray[np.float64], within: float = 0.5
) -> list[str]:
    """Two sets of corners that lie within half a pixel of each other, in whatever order."""
    apart = np.linalg.norm(one[:, None] - other[None], axis=-1)
    worst = max(float(apart.min(axis=0).max()), float(apart.min(axis=1).max()))
    return [f"{worst:.2f} pixels from its place"] if worst > within else []
