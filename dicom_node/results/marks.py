"""Owns the marks on a picture: structures, heat maps, boxes and measured lines.

Refuses to know the legend and what a mark stands for. Coordinates are (column, row) in pixels of
the image, counted at edges: (0, 0) is the outer corner of the first pixel (PS3.3 C.18.6.1.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from dicom_node.errors import ResultError
from dicom_node.results.lettering import Colour, font_of, written
from inference.stored import to_byte

Point = tuple[float, float]
"""Column, row."""

FILL = 0.18
"""Opacity inside a structure: its texture must stay readable."""
HEAT = 0.5
"""Opacity where a heat map is highest."""
LINE = 3
GAP = 1.5
"""Images of more than so many times the picture's size are halved and so on first: as clear, and
faster."""

SCALE: tuple[Colour, ...] = (
    (126, 3, 168),
    (168, 34, 150),
    (204, 71, 120),
    (229, 107, 93),
    (248, 149, 64),
    (253, 196, 39),
    (240, 249, 33),
)
"""Even steps of "plasma" (Smith and van der Walt, 2015; CC0): lightness grows with the value at
the same pace, also for those who do not tell red from green, and no step of it is grey. Its dark
first quarter is left out, since it would darken what it lies on."""

HALO = (0, 0, 0)
"""Around lines, so that they are seen on white too."""


@dataclass(frozen=True)
class Region:
    """A structure: ``mask`` is ``(rows, columns)`` on the image's grid. May be empty."""

    mask: NDArray[np.bool_]
    colour: Colour


@dataclass(frozen=True)
class Heat:
    """A heat map: ``values`` is ``(rows, columns)`` in 0..1 on the image's grid."""

    values: NDArray[np.float32]


@dataclass(frozen=True)
class Rectangle:
    """A box, with a few characters (a number) that stand beside it."""

    left: float
    top: float
    right: float
    bottom: float
    colour: Colour
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A measured length between two ends."""

    ends: tuple[Point, Point]
    colour: Colour


Mark = Region | Heat | Rectangle | Line
_ORDER = (Heat, Region, Rectangle, Line)  # from the bottom to the top


def draw_marks(picture: Image.Image, shape: tuple[int, ...], marks: Sequence[Mark]) -> None:
    """Draws over a picture of an image whose grid is ``shape``, the lowest kind first.

    Raises:
        ResultError: a mark does not lie on the image.
    """
    for mark in sorted(marks, key=lambda mark: _ORDER.index(type(mark))):
        if isinstance(mark, Region | Heat):
            grid = mark.mask if isinstance(mark, Region) else mark.values
            if grid.shape != shape:
                raise ResultError(f"a mark of shape {grid.shape} on a picture of {shape}")
            if grid.any():
                _draw_region(picture, mark) if isinstance(mark, Region) else _draw_heat(
                    picture, mark
                )
            continue
        across, down = picture.width / shape[1], picture.height / shape[0]
        if isinstance(mark, Rectangle):
            _draw_rectangle(picture, mark, across, down)
        else:
            _draw_line(picture, mark, across, down)


def _draw_region(picture: Image.Image, region: Region) -> None:
    """A translucent fill and a line along its border, drawn inside so that its place is true."""
    rows, columns = region.mask.shape
    across, down = picture.width / columns, picture.height / rows
    filled = np.flatnonzero(region.mask.any(1)), np.flatnonzero(region.mask.any(0))
    (top, bottom), (left, right) = ((int(f[0]), int(f[-1]) + 1) for f in filled)
    pad = 8  # more than the filters below reach, so that the cut is not seen
    x0, y0 = max(0, int(left * across) - pad), max(0, int(top * down) - pad)
    x1 = min(picture.width, math.ceil(right * across) + pad)
    y1 = min(picture.height, math.ceil(bottom * down) + pad)
    shape = Image.fromarray(region.mask.astype(np.uint8) * 255)
    resized = shape.resize(
        (x1 - x0, y1 - y0),
        Image.Resampling.BICUBIC,
        box=(x0 / across, y0 / down, min(columns, x1 / across), min(rows, y1 / down)),
        reducing_gap=GAP,
    )
    smooth = resized.filter(ImageFilter.GaussianBlur(1))
    inside = smooth.point([255 * (v > 127) for v in range(256)])
    if inside.getbbox() is None:  # thinner than a pixel of the picture: seen all the same
        inside = resized.point([255 * (v > 0) for v in range(256)])
    # Only where all of the neighbourhood is inside does its mean stay 255: an erosion, and fast.
    core = inside.filter(ImageFilter.BoxBlur(LINE)).point([255 * (v == 255) for v in range(256)])
    line = ImageChops.subtract(inside, core).filter(ImageFilter.GaussianBlur(0.6))
    picture.paste(region.colour, (x0, y0), core.point([round(v * FILL) for v in range(256)]))
    picture.paste(region.colour, (x0, y0), line)


def _draw_heat(picture: Image.Image, heat: Heat) -> None:
    """Blends the scale over the picture, the more the higher the value: low values hide nothing."""
    # Smooth by nature: every second pixel and so on is enough where there are far too many.
    rows, columns = heat.values.shape
    step = max(1, min(rows // (2 * picture.height), columns // (2 * picture.width)))
    values = heat.values[step // 2 :: step, step // 2 :: step]
    levels = Image.fromarray(to_byte(np.fmin(np.fmax(values, 0), 1)))
    levels = levels.resize(picture.size, Image.Resampling.BICUBIC, reducing_gap=GAP)
    table = scale_table()
    coloured = Image.merge("RGB", [levels.point(table[:, i].tolist()) for i in range(3)])
    opacity = [round(255 * HEAT * (v / 255) ** 1.2) for v in range(256)]  # begins without an edge
    picture.paste(coloured, mask=levels.point(opacity))


def scale_table() -> NDArray[np.uint8]:
    """``(256, 3)``: the colours of the heat scale from 0 to 1."""
    steps = np.linspace(0, len(SCALE) - 1, 256)
    known = np.array(SCALE, dtype=float)
    found = [np.interp(steps, np.arange(len(SCALE)), known[:, i]) for i in range(3)]
    return np.stack(found, 1).round().astype(np.uint8)


def _draw_rectangle(picture: Image.Image, box: Rectangle, across: float, down: float) -> None:
    edges = (box.left, box.top, box.right, box.bottom)
    if not all(map(math.isfinite, edges)) or box.right <= box.left or box.bottom <= box.top:
        raise ResultError(f"a box from {edges[:2]} to {edges[2:]}")
    x0, x1 = (min(max(v * across, 0), picture.width) for v in (box.left, box.right))
    y0, y1 = (min(max(v * down, 0), picture.height) for v in (box.top, box.bottom))
    if x0 == x1 or y0 == y1:
        raise ResultError(f"a box from {edges[:2]} to {edges[2:]} lies beside the picture")
    # Outwards, so that what is in the box stays as it was; but never out of the picture.
    around = (
        max(round(x0) - LINE, 0),
        max(round(y0) - LINE, 0),
        min(round(x1) + LINE - 1, picture.width - 1),
        min(round(y1) + LINE - 1, picture.height - 1),
    )
    draw = ImageDraw.Draw(picture)
    draw.rectangle([around[0] - 1, around[1] - 1, around[2] + 1, around[3] + 1], None, HALO, 1)
    draw.rectangle(around, None, box.colour, LINE)
    if box.label:
        _draw_key(picture, written(box.label), around, box.colour)


def _draw_key(
    picture: Image.Image, key: str, around: tuple[int, int, int, int], colour: Colour
) -> None:
    """The box's number outside it where there is room: above, below, beside, else inside."""
    font = font_of(20)
    width, height = int(font.getlength(key)), 18
    left, top, right, bottom = around
    x = min(max(left, 2), picture.width - width - 2)
    places = (
        (x, top - height - 6),
        (x, bottom + 4),
        (left - width - 6, max(top, 2)),
        (right + 6, max(top, 2)),
        (left + 8, top + 6),
    )
    place = next(
        (
            (x, y)
            for x, y in places
            if 0 <= x <= picture.width - width and 0 <= y <= picture.height - height - 4
        ),
        places[-1],
    )
    ImageDraw.Draw(picture).text(
        place, key, colour, font, stroke_width=2, stroke_fill=HALO, anchor="la"
    )


def _draw_line(picture: Image.Image, line: Line, across: float, down: float) -> None:
    """A thin line with a short tick at right angles at either end, as callipers are drawn."""
    ends = np.array(line.ends, dtype=float) * (across, down)
    if ends.shape != (2, 2) or not np.isfinite(ends).all():
        raise ResultError(f"a line between {line.ends}")
    ends = np.clip(ends, -1e5, 1e5)
    length = float(np.hypot(*(ends[1] - ends[0])))
    along = (ends[1] - ends[0]) / length if length else np.array([1.0, 0.0])
    tick = np.array([-along[1], along[0]]) * 9
    strokes = [(ends[0], ends[1]), *((end - tick, end + tick) for end in ends)]
    # Drawn at four times the size and reduced: thin slanted lines are ragged otherwise.
    low = np.floor(np.clip(ends.min(0) - 14, 0, picture.size)).astype(int)
    high = np.ceil(np.clip(ends.max(0) + 14, 0, picture.size)).astype(int)
    size = high - low
    if not (size > 0).all():
        return
    for colour, width in ((HALO, 4.5), (line.colour, 2.2)):
        stencil = Image.new("L", (4 * int(size[0]), 4 * int(size[1])))
        pen = ImageDraw.Draw(stencil)
        for start, end in strokes:
            pen.line([tuple(4 * (p - low)) for p in (start, end)], 255, round(4 * width))
        stencil = stencil.resize((int(size[0]), int(size[1])), Image.Resampling.BOX)
        picture.paste(colour, (int(low[0]), int(low[1])), stencil)
