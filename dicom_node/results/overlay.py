"""Owns the picture of a result for people: the image, what was found drawn over it, a legend.

Refuses to measure, to window or to choose: it draws the grey values, the marks and the words that
it is given. The legend stands beside the image, so that no pixel of the patient is covered by
words; on the image itself there is nothing but shapes and, beside a box, its number.

Coordinates of marks are (column, row) in pixels of the image, counted at edges: (0, 0) is the
outer corner of the first pixel (PS3.3 C.18.6.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dicom_node.errors import ResultError
from dicom_node.results.header import RESEARCH_USE
from dicom_node.results.lettering import Colour, drawable, font_of, length, put, wrapped, written
from dicom_node.results.marks import GAP, HALO, Mark, Region, draw_marks, scale_table

Layer = tuple[NDArray[np.bool_], Colour, str]
"""``(rows, columns)`` mask on the image's grid, its colour, and the words for the legend."""

LONGEST_SIDE = 900
"""Pixels of the picture on a page that grows with its legend; small images are enlarged to it."""
PANEL = 340
MARGIN = 24
MOST_FOOTER_LINES = 16

_BACKGROUND, _RULE = (16, 18, 22), (58, 64, 74)
_TEXT, _SOFT, _WARNING = (236, 239, 244), (168, 176, 188), (255, 183, 77)


@dataclass(frozen=True)
class Entry:
    """One thing in the legend.

    Attributes:
        words: its first line; wraps.
        plain: stands for ``words`` where those have characters that cannot be drawn.
        details: below it, smaller.
        colour: of its swatch; None for what is never drawn, which has a plain bullet.
        swatch: full when it is drawn on this image or is so, hollow when it is not; none for a
            heading.
        scale: with the colours of a heat map below it.
        key: the number that stands beside its box.
        faded: it says that something is not there.
    """

    words: str
    details: tuple[str, ...] = ()
    plain: str = ""
    colour: Colour | None = None
    swatch: Literal["full", "hollow", "none"] = "none"
    scale: bool = False
    key: str = ""
    faded: bool = False


@dataclass(frozen=True)
class Sides:
    """What of the patient the picture's edges point to, such as R and L; "" where unknown."""

    left: str
    top: str
    right: str
    bottom: str


@dataclass(frozen=True)
class Sheet:
    """A page of a fixed size: ``columns`` x ``rows`` pixels, the legend ``panel`` wide."""

    rows: int
    columns: int
    panel: int = PANEL

    @property
    def room(self) -> tuple[int, int]:
        """Columns and rows that a picture may take."""
        return self.columns - self.panel - 3 * MARGIN, self.rows - 2 * MARGIN


def overlay_png(
    image: NDArray[np.uint8],
    layers: Sequence[Layer],
    title: str,
    note: str = RESEARCH_USE,
) -> bytes:
    """Draws ``layers`` over ``image`` with a legend, on a page as high as it needs to be.

    Args:
        image: ``(rows, columns)`` grey or ``(rows, columns, 3)`` RGB, already windowed.
        layers: what to draw, the first at the bottom; an empty mask stands in the legend only.
        title: what was done, above the legend.
        note: the warning below it.

    Returns:
        a PNG file.

    Raises:
        ResultError: ``image`` is no picture, or a mask is of another shape.
    """
    legend = [
        Entry(
            words,
            colour=colour,
            swatch="full" if mask.any() else "hollow",
            faded=not mask.any(),
        )
        for mask, colour, words in layers
    ]
    marks = [Region(mask, colour) for mask, colour, _ in layers]
    page = overlay(image, marks, legend, title, note)
    buffer = BytesIO()
    Image.fromarray(page).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def overlay(
    image: NDArray[np.uint8] | None,
    marks: Sequence[Mark],
    legend: Sequence[Entry],
    title: str,
    note: str = "",
    *,
    footer: Sequence[str] = (),
    sheet: Sheet | None = None,
    aspect: float = 1.0,
    sides: Sides | None = None,
) -> NDArray[np.uint8]:
    """Draws a page.

    Args:
        image: ``(rows, columns)`` grey or ``(rows, columns, 3)`` RGB, already windowed; None for
            a page of words.
        marks: what to draw over it. Heat maps lie at the bottom, then regions, boxes, lines; among
            their like the first lies lowest.
        legend: in order; what a sheet has no room for is counted at the end.
        title: what was done, above the legend.
        note: the warning, in a frame of its own; none when empty.
        footer: lines above the warning, such as which image this is.
        sheet: the size of the page; None for one that grows with its legend.
        aspect: height of a pixel by its width in the patient.
        sides: letters to set around the picture, None for none.

    Returns:
        ``(rows, columns, 3)`` RGB.

    Raises:
        ResultError: ``image`` is no picture, or a mark does not lie on it.
    """
    picture, left = None, MARGIN
    field = 0  # columns that the picture is centred in
    if image is not None:
        room = (LONGEST_SIDE, LONGEST_SIDE) if sheet is None else sheet.room
        picture = _enlarged(image, room, aspect)
        draw_marks(picture, image.shape[:2], marks)
        field = picture.width if sheet is None else room[0]
        left = field + 2 * MARGIN
    width = PANEL if sheet is None else sheet.columns - left - MARGIN
    panel = _Panel(width, title, legend, footer, note)
    rows = max(panel.height(), picture.height if picture else 0) + 2 * MARGIN
    if sheet is not None:
        rows = sheet.rows
    page = Image.new("RGB", (left + width + MARGIN, rows), _BACKGROUND)
    if picture is not None:
        x, y = MARGIN + (field - picture.width) // 2, (page.height - picture.height) // 2
        page.paste(picture, (x, y))
        if sides is not None:
            _draw_sides(page, (x, y, x + picture.width, y + picture.height), sides)
    panel.draw(page, left)
    return np.array(page)


def _enlarged(image: NDArray[np.uint8], room: tuple[int, int], aspect: float) -> Image.Image:
    """The picture, as large as ``room`` (width, height) allows, its pixels as the patient is."""
    grey, colour = image.ndim == 2, image.ndim == 3 and image.shape[-1] == 3
    if not (grey or colour) or image.dtype != np.uint8 or not image.size:
        raise ResultError(f"a picture of shape {image.shape} and type {image.dtype}")
    rows, columns = image.shape[:2]
    scale = min(room[0] / columns, room[1] / (rows * aspect))
    size = max(1, round(columns * scale)), max(1, round(rows * aspect * scale))
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=GAP)
    return resized.convert("RGB")


def _draw_sides(page: Image.Image, around: tuple[int, int, int, int], sides: Sides) -> None:
    """Letters in the margin, beside the middle of each edge: none of them lies on the picture."""
    left, top, right, bottom = around
    across, down = (left + right) // 2, (top + bottom) // 2
    draw, font = ImageDraw.Draw(page), font_of(17)
    draw.text((left - 4, down), written(sides.left), _TEXT, font, anchor="rm")
    draw.text((right + 5, down), written(sides.right), _TEXT, font, anchor="lm")
    draw.text((across, top - 5), written(sides.top), _TEXT, font, anchor="mb")
    draw.text((across, bottom + 5), written(sides.bottom), _TEXT, font, anchor="mt")


class _Panel:
    """The legend: title, entries, footer, warning; wraps and, on a sheet, ends in time."""

    INDENT = 34
    STEP = 27  # from line to line of an entry's words
    SMALL_STEP = 22
    GAP = 10

    def __init__(
        self,
        width: int,
        title: str,
        legend: Sequence[Entry],
        footer: Sequence[str],
        note: str,
    ) -> None:
        self.width = width
        self.title = wrapped(title, 26, width, most=4)
        self.entries = [(entry, *self._lines(entry)) for entry in legend]
        lines = (line for words in footer for line in wrapped(words, 16, width, most=4))
        self.footer = list(lines)[:MOST_FOOTER_LINES]
        self.note = wrapped(note, 19, width - 32) if note else ()

    def height(self) -> int:
        """Of all of it."""
        return self._head() + sum(map(self._entry_height, self.entries)) + self._foot()

    def draw(self, page: Image.Image, left: int) -> None:
        """Draws it from the top of the page, the footer and the warning at its end."""
        draw = ImageDraw.Draw(page)
        y = MARGIN
        for line in self.title:
            put(draw, left, y, line, _TEXT, 26)
            y += 34
        y += 10
        draw.line((left, y, left + self.width, y), _RULE, 1)
        y += 18
        end = page.height - MARGIN - self._foot()
        for index, entry in enumerate(self.entries):
            last = index == len(self.entries) - 1
            if y + self._entry_height(entry) > end - (0 if last else self.STEP):
                more = len(self.entries) - index
                draw.text((left, y), f"and {more} more in the report", _SOFT, font_of(17))
                break
            y = self._draw_entry(draw, left, y, *entry)
        y = page.height - MARGIN - self._foot() + self.GAP
        for line in self.footer:
            put(draw, left, y, line, _SOFT, 16)
            y += 21
        if self.note:
            box = (
                left,
                page.height - MARGIN - self._note(),
                left + self.width,
                page.height - MARGIN,
            )
            draw.rounded_rectangle(box, 6, None, _WARNING, 2)
            y = box[1] + 11
            for line in self.note:
                x = left + (self.width - length(line, 19)) // 2
                put(draw, x, y, line, _WARNING, 19)
                y += 25

    def _lines(self, entry: Entry) -> tuple[tuple[str, ...], list[str]]:
        indent = 0 if entry.swatch == "none" else self.INDENT
        width = self.width - indent
        small = [line for words in entry.details for line in wrapped(words, 16, width, most=8)]
        words = entry.words if drawable(entry.words) or not entry.plain else entry.plain
        return wrapped(words, 19, width, most=3), small

    def _entry_height(self, entry: tuple[Entry, Sequence[str], Sequence[str]]) -> int:
        scale = self.STEP if entry[0].scale else 0
        lines = self.STEP * len(entry[1]) + self.SMALL_STEP * len(entry[2])
        return lines + scale + self.GAP

    def _draw_entry(
        self,
        draw: ImageDraw.ImageDraw,
        left: int,
        y: int,
        entry: Entry,
        words: Sequence[str],
        details: Sequence[str],
    ) -> int:
        x = left + (0 if entry.swatch == "none" else self.INDENT)
        if entry.swatch in ("full", "hollow"):
            box = (left, y + 1, left + 21, y + 22)
            full = entry.swatch == "full"
            if entry.colour is None:
                bullet = (left + 6, y + 7, left + 15, y + 16)
                draw.ellipse(bullet, _SOFT if full else None, _SOFT, 2)
            else:
                draw.rounded_rectangle(box, 4, entry.colour if full else None, entry.colour, 2)
            if entry.key and entry.colour:
                ink = HALO if full and _light(entry.colour) else _TEXT
                draw.text((left + 11, y + 12), written(entry.key), ink, font_of(15), anchor="mm")
        for line in words:
            put(draw, x, y, line, _SOFT if entry.faded else _TEXT, 19)
            y += self.STEP
        for line in details:
            put(draw, x, y, line, _SOFT, 16)
            y += self.SMALL_STEP
        if entry.scale:
            self._draw_scale(draw, x, y, self.width - (x - left))
            y += self.STEP
        return y + self.GAP

    def _draw_scale(self, draw: ImageDraw.ImageDraw, x: int, y: int, width: int) -> None:
        font, table = font_of(15), scale_table()
        start = x + int(font.getlength("less")) + 8
        end = x + width - int(font.getlength("more")) - 8
        draw.text((x, y + 3), "less", _SOFT, font)
        for column in range(start, end):
            colour = table[255 * (column - start) // max(1, end - start - 1)]
            draw.line((column, y + 4, column, y + 18), tuple(map(int, colour)))
        draw.text((end + 8, y + 3), "more", _SOFT, font)

    def _head(self) -> int:
        return 34 * len(self.title) + 28

    def _note(self) -> int:
        return 25 * len(self.note) + 18 if self.note else 0

    def _foot(self) -> int:
        footer = 21 * len(self.footer) + self.GAP if self.footer else 0
        return footer + self._note() + self.GAP


def _light(colour: Colour) -> bool:
    """Whether black is easier to read on it than white (ITU-R BT.601 luma)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
