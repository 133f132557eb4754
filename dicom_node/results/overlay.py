"""Owns the picture of a result for people: the image, what was found drawn over it, a legend.

Refuses to measure or to window: it draws the grey values and the words that it is given. The
legend stands beside the image, so that no pixel of the patient is covered by text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from dicom_node.errors import ResultError
from dicom_node.results.header import RESEARCH_USE

Layer = tuple[NDArray[np.bool_], tuple[int, int, int], str]
"""``(rows, columns)`` mask on the image's grid, sRGB colour, and the words for the legend."""

LONGEST_SIDE = 900
"""Pixels of the drawn image; small images are enlarged to it, large ones reduced."""
FILL = 0.18
"""Opacity inside a structure: its texture must stay readable."""
LINE = 3
PANEL = 340
MARGIN = 24

_BACKGROUND, _RULE = (16, 18, 22), (58, 64, 74)
_TEXT, _SOFT, _WARNING = (236, 239, 244), (160, 168, 180), (255, 183, 77)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def overlay_png(
    image: NDArray[np.uint8],
    layers: Sequence[Layer],
    title: str,
    note: str = RESEARCH_USE,
) -> bytes:
    """Draws ``layers`` over ``image`` with a legend.

    Args:
        image: ``(rows, columns)`` grey, already windowed; its pixels are taken as square.
        layers: what to draw, the first at the bottom; an empty mask stands in the legend only.
        title: what was done, above the legend.
        note: the warning below it.

    Returns:
        a PNG file.

    Raises:
        ResultError: ``image`` is not grey, or a mask is of another shape.
    """
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ResultError(f"picture of shape {image.shape} and type {image.dtype} is not grey")
    rows, columns = image.shape
    scale = LONGEST_SIDE / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    for mask, colour, _ in layers:
        if mask.shape != image.shape:
            raise ResultError(f"mask of shape {mask.shape} on a picture of {image.shape}")
        if mask.any():
            _draw(picture, mask, colour)

    height = max(size[1], _legend_height(layers, title, note)) + 2 * MARGIN
    page = Image.new("RGB", (size[0] + PANEL + 3 * MARGIN, height), _BACKGROUND)
    page.paste(picture, (MARGIN, (height - size[1]) // 2))
    _legend(page, size[0] + 2 * MARGIN, layers, title, note)
    buffer = BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw(picture: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """A translucent fill and a line along its border, drawn inside so that its place is true."""
    shape = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = shape.resize(picture.size, Image.Resampling.BICUBIC)
    inside = inside.filter(ImageFilter.GaussianBlur(1)).point([255 * (v > 127) for v in range(256)])
    core = inside.filter(ImageFilter.MinFilter(2 * LINE + 1))
    line = ImageChops.subtract(inside, core).filter(ImageFilter.GaussianBlur(0.6))
    picture.paste(colour, mask=core.point([round(v * FILL) for v in range(256)]))
    picture.paste(colour, mask=line)


def _legend(
    page: Image.Image,
    left: int,
    layers: Sequence[Layer],
    title: str,
    note: str,
) -> None:
    draw = ImageDraw.Draw(page)
    large, normal, small = _font(26), _font(19), _font(17)
    y = MARGIN
    for line in _wrapped(title, large):
        draw.text((left, y), line, _TEXT, large)
        y += 34
    y += 10
    draw.line((left, y, left + PANEL, y), _RULE, 1)
    y += 18
    for mask, colour, words in layers:
        found = bool(mask.any())
        box = (left, y + 3, left + 20, y + 23)
        draw.rounded_rectangle(box, 4, colour if found else None, colour, 2)
        for line in _wrapped(words, normal, PANEL - 34):
            draw.text((left + 34, y), line, _TEXT if found else _SOFT, normal)
            y += 27
        y += 10
    warning = _wrapped(note, small)
    y = page.height - MARGIN - 24 * len(warning)
    for line in warning:
        draw.text((left, y), line, _WARNING, small)
        y += 24


def _legend_height(layers: Sequence[Layer], title: str, note: str) -> int:
    lines = sum(27 * len(_wrapped(words, _font(19), PANEL - 34)) + 10 for _, _, words in layers)
    return (
        34 * len(_wrapped(title, _font(26)))
        + 28
        + lines
        + 24 * (len(_wrapped(note, _font(17))) + 1)
    )


def _wrapped(words: str, font: _Font, width: int = PANEL) -> list[str]:
    """Lines no wider than ``width``, broken at spaces; a longer word stays whole."""
    lines: list[str] = []
    # Pillow's own font has no superscripts and ligatures: cm² becomes cm2 rather than a box.
    for part in unicodedata.normalize("NFKC", words).split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)
