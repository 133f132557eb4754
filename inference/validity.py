"""Owns which pixels count: not padding, not behind a shutter. Refuses to change any pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.attributes import Frame, get, integer, numbers
from inference.errors import ReadingError
from inference.pixels import Layout


def hidden(frame: Frame, declared: Layout, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """(rows, columns), True where a pixel does not count; None when all count.

    Raises:
        ReadingError: an attribute that says so is malformed.
    """
    parts = [
        part
        for part in (
            padding(frame, declared, stored),
            shutter(frame, declared.rows, declared.columns),
        )
        if part is not None
    ]
    if not parts:
        return None
    found = parts[0] if len(parts) == 1 else parts[0] | parts[1]
    return found if found.any() else None


def padding(frame: Frame, declared: Layout, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """(rows, columns), True where the stored value is padding; None where none is declared.

    The padding value and its range limit are stored values, in either order, both included
    (PS3.3 C.7.5.1.1.2).

    Raises:
        ReadingError: the attributes are not numbers.
    """
    if declared.colour or declared.floating or "PixelPaddingValue" not in frame.dataset:
        return None
    value = integer(frame.dataset, "PixelPaddingValue")
    limit = integer(frame.dataset, "PixelPaddingRangeLimit", value)
    low, high = sorted(_as_stored(bound, declared) for bound in (value, limit))
    bounds = np.iinfo(stored.dtype)
    if high < bounds.min or low > bounds.max:
        return None
    if low == high:
        return np.asarray(stored == low)
    return (stored >= max(low, bounds.min)) & (stored <= min(high, bounds.max))


def _as_stored(value: int, declared: Layout) -> int:
    """A padding value that was written as unsigned (US) although pixels are signed (SS)."""
    if declared.signed and value >= 2 ** (declared.allocated - 1):
        return value - (1 << declared.allocated)
    return value


def shutter(frame: Frame, rows: int, columns: int) -> NDArray[np.bool_] | None:
    """(rows, columns), True where a display shutter hides the pixel; None without one.

    Rectangular, circular and polygonal shapes hide what any of them hides (PS3.3 C.7.6.11).
    Rows and columns count from 1, edges are seen. The radius counts pixels along a row; pixels
    that are not square make the circle an ellipse. Bitmap shutters are not part of an image. A
    shutter that hides all is taken for a mistake and ignored.

    Raises:
        ReadingError: the attributes of a shape are absent or not numbers.
    """
    shapes = get(frame, "ShutterShape")
    if shapes is None:
        return None
    shapes = {shapes} if isinstance(shapes, str) else set(shapes)
    seen = np.ones((rows, columns), dtype=bool)
    if "RECTANGULAR" in shapes:
        seen &= _rectangle(frame, rows, columns)
    if "CIRCULAR" in shapes:
        seen &= _circle(frame, rows, columns)
    if "POLYGONAL" in shapes:
        seen &= _polygon(frame, rows, columns)
    return ~seen if seen.any() and not seen.all() else None


def _rectangle(frame: Frame, rows: int, columns: int) -> NDArray[np.bool_]:
    seen = np.zeros((rows, columns), dtype=bool)
    top = max(1, integer(frame, "ShutterUpperHorizontalEdge"))
    left = max(1, integer(frame, "ShutterLeftVerticalEdge"))
    bottom = max(0, integer(frame, "ShutterLowerHorizontalEdge"))
    right = max(0, integer(frame, "ShutterRightVerticalEdge"))
    seen[top - 1 : bottom, left - 1 : right] = True
    return seen


def _circle(frame: Frame, rows: int, columns: int) -> NDArray[np.bool_]:
    row, column = _required(frame, "CenterOfCircularShutter", 2)
    (radius,) = _required(frame, "RadiusOfCircularShutter", 1)
    spacing = next(
        (
            found
            for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")
            if (found := numbers(frame, keyword, 2)) is not None and min(found) > 0
        ),
        (1.0, 1.0),
    )
    down = (np.arange(1, rows + 1) - row)[:, None] * (spacing[0] / spacing[1])
    across = np.arange(1, columns + 1) - column
    return np.asarray(down**2 + across**2 <= radius**2)


def _polygon(frame: Frame, rows: int, columns: int) -> NDArray[np.bool_]:
    vertices = numbers(frame, "VerticesOfThePolygonalShutter")
    if vertices is None or len(vertices) < 6 or len(vertices) % 2:
        raise ReadingError("VerticesOfThePolygonalShutter is no polygon")
    corners = [
        (column - 1, row - 1) for row, column in zip(vertices[::2], vertices[1::2], strict=True)
    ]
    canvas = Image.new("1", (columns, rows), 0)
    ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
    return np.array(canvas, dtype=bool)


def _required(frame: Frame, keyword: str, count: int) -> tuple[float, ...]:
    found = numbers(frame, keyword, count)
    if found is None:
        raise ReadingError(f"{keyword} is absent")
    return found
