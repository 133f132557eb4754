"""Owns the outline of a mask: the border of its pixels as closed polygons.

Refuses to know what the mask shows. Coordinates are (column, row) at pixel edges: (0, 0) is the
outer corner of the first pixel, as SCOORD counts (PS3.3 C.18.6.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MAX_POINTS = 200
"""Of one outline. More are no clearer to a reader, and slow some viewers down."""

Polygon = NDArray[np.float64]
"""``(n, 2)`` columns and rows; the first point comes again at the end."""

_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
"""(column, row) of the four directions: right, down, left, up."""


@dataclass(frozen=True)
class Region:
    """Pixels that hang together by their edges.

    Attributes:
        pixels: how many, holes not counted.
        outline: its outer border.
    """

    pixels: int
    outline: Polygon


def regions(mask: NDArray[np.bool_], max_points: int = MAX_POINTS) -> list[Region]:
    """The regions of ``mask``, the one of most pixels first; see `outlines`."""
    labels, _ = ndimage.label(mask)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[place] == number
        (outline,) = outlines(part, max_points)
        corner = np.array([place[1].start, place[0].start], np.float64)
        found.append(Region(int(part.sum()), outline + corner))
    return sorted(found, key=lambda region: -region.pixels)


def outlines(mask: NDArray[np.bool_], max_points: int = MAX_POINTS) -> list[Polygon]:
    """The outer border of every region of ``mask``, that around the largest area first.

    Regions hang together by pixel edges, not corners. Holes are not told. An outline of up to
    ``max_points`` corners is exact; a longer one is simplified (Douglas and Peucker, 1973).

    Args:
        mask: ``(rows, columns)``.
        max_points: at least 4.

    Returns:
        closed polygons, clockwise on the screen; empty when the mask is.
    """
    loops = [_corners(loop) for loop in _loops(mask)]
    outer = [(area, i) for i, loop in enumerate(loops) if (area := enclosed(loop)) > 0]
    return [_simplified(loops[i], max_points) for _, i in sorted(outer, key=lambda x: -x[0])]


def enclosed(polygon: Polygon) -> float:
    """Pixels enclosed by a closed polygon, negative where it runs counter-clockwise (a hole)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2


def _loops(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Closed walks along the pixel edges, region on the right hand, ``(n, 2)`` column and row.

    Every pixel edge between inside and outside is one directed step; each step has one next step,
    and following them falls into loops.
    """
    if not mask.any():
        return []
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    width = mask.shape[1] + 1
    starts, directions = [], []
    # The top edge of a pixel runs right, the right edge down, and so on round the clock.
    for heading, (outside, column, row) in enumerate(
        (
            (padded[:-2, 1:-1], 0, 0),
            (padded[1:-1, 2:], 1, 0),
            (padded[2:, 1:-1], 1, 1),
            (padded[1:-1, :-2], 0, 1),
        )
    ):
        r, c = np.nonzero(inner & ~outside)
        starts.append((r + row) * width + c + column)
        directions.append(np.full(len(r), heading))
    start, direction = np.concatenate(starts), np.concatenate(directions)
    end = start + _STEPS[direction, 0] + _STEPS[direction, 1] * width

    # A corner where two pixels touch has two ways on: turning right stays with the same pixel.
    keys = start * 4 + direction
    order = np.argsort(keys)
    following = np.full(len(start), -1)
    for turn in (3, 0, 1):  # left, straight, right: the last that exists wins
        wanted = end * 4 + (direction + turn) % 4
        found = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        hit = keys[order[found]] == wanted
        following[hit] = order[found[hit]]

    next_step = following.tolist()
    seen = bytearray(len(next_step))
    loops = []
    for first in range(len(next_step)):
        if seen[first]:
            continue
        walk, step = [], first
        while not seen[step]:
            seen[step] = 1
            walk.append(step)
            step = next_step[step]
        corners = start[walk]
        loops.append(np.stack([corners % width, corners // width], axis=1))
    return loops


def _corners(loop: NDArray[np.int64]) -> Polygon:
    """Without the points on straight runs, and closed."""
    step = np.diff(loop, axis=0, append=loop[:1])
    turns = np.any(step != np.roll(step, 1, axis=0), axis=1)
    corners = loop[turns].astype(np.float64)
    return np.concatenate([corners, corners[:1]])


def _simplified(polygon: Polygon, max_points: int) -> Polygon:
    tolerance = 0.5  # pixels: what the staircase of pixel edges itself adds
    result = polygon
    while len(result) - 1 > max_points:
        # From two far corners on, because a closed line has no ends to hold it.
        far = int(np.argmax(np.sum((polygon - polygon[0]) ** 2, axis=1)))
        halves = polygon[: far + 1], polygon[far:]
        first, second = (half[_douglas_peucker(half, tolerance)] for half in halves)
        result = np.concatenate([first, second[1:]])
        tolerance *= 1.5
    return result


def _douglas_peucker(line: Polygon, tolerance: float) -> NDArray[np.bool_]:
    """Which points of an open line to keep so that none lies further from it than ``tolerance``."""
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:
        a, b = spans.pop()
        if b - a < 2:
            continue
        chord, between = line[b] - line[a], line[a + 1 : b] - line[a]
        length = float(np.hypot(*chord))
        across = np.abs(chord[0] * between[:, 1] - chord[1] * between[:, 0])
        distance = across / length if length else np.hypot(between[:, 0], between[:, 1])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = a + 1 + worst
            keep[middle] = True
            spans += [(a, middle), (middle, b)]
    return keep
