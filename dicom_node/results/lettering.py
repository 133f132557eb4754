"""Owns the letters on a picture: which can be drawn, how wide they are, where lines break.

Pillow's own font is the only one: none is shipped, and none of the machine's is trusted to be
there. Refuses to know what the words say.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]
"""sRGB."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LONGEST_TEXT = 2000
"""Characters that are looked at; no page shows more of one text."""

UNDRAWABLE = "?"


def drawable(words: str) -> bool:
    """Whether `written` loses nothing that a reader needs."""
    return UNDRAWABLE not in written(words.replace(UNDRAWABLE, ""))


@lru_cache(maxsize=4096)
def written(words: str) -> str:
    """``words`` in characters that Pillow's own font has; never an empty box.

    Ligatures and accents are written plainly (é becomes e). Each run of what it cannot write at
    all (Japanese, Cyrillic) becomes one question mark.
    """
    found: list[str] = []
    for raw in words:
        if raw in _RAISED:
            found.append(raw)
            continue
        for character in _PLAIN.get(raw) or unicodedata.normalize("NFKD", raw):
            if unicodedata.combining(character):
                continue  # an accent without its letter
            if character in _DRAWABLE:
                found.append(character)
            elif unicodedata.category(character)[0] in "ZC":
                found.append("\n" if character == "\n" else " ")
            elif found[-1:] != [UNDRAWABLE]:
                found.append(UNDRAWABLE)
    return "".join(found)


_DRAWABLE = frozenset(map(chr, range(0x20, 0x7F))) | set("©«°±´·»‘’“”…‹›⁄™")
_RAISED = {"²": "2", "³": "3"}
_AT_RAISED = re.compile("([²³])")
_PLAIN = {
    "Æ": "AE",
    "æ": "ae",
    "Ø": "O",
    "ø": "o",
    "Œ": "OE",
    "œ": "oe",
    "ß": "ss",
    "Ł": "L",
    "ł": "l",
    "Đ": "D",
    "đ": "d",
    "ı": "i",
    "µ": "u",  # the prefix micro, as UCUM writes it
    "μ": "u",
    "×": "x",
    "÷": "/",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "→": "->",
    "−": "-",
    "‐": "-",
    "–": "-",
    "—": "-",
    "•": "·",
    "、": ", ",
    "。": ". ",
}


@lru_cache(maxsize=2048)
def wrapped(words: str, size: int, width: int, most: int | None = None) -> tuple[str, ...]:
    """Lines no wider than ``width``, `written`; at most ``most``, the last then ends in "…".

    Broken at spaces; a word that is longer than a line is broken anywhere.
    """
    lines: list[str] = []
    enough = math.inf if most is None else most
    for part in written(words[:LONGEST_TEXT]).split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}" if line else word
            if length(longer, size) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            while length(line, size) > width and len(lines) <= enough:
                fits = _fitting(line, size, width)
                lines.append(line[:fits])
                line = line[fits:]
            if len(lines) > enough:
                break
        lines.append(line)
    if len(lines) > enough:
        lines = lines[:most]
        while lines[-1] and length(lines[-1] + "…", size) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return tuple(lines)


def _fitting(word: str, size: int, width: int) -> int:
    """How many of its characters are no wider than ``width``; one at least."""
    return 1 + bisect_right(range(2, len(word)), width, key=lambda n: length(word[:n], size))


def length(line: str, size: int) -> int:
    """Columns that a `written` line takes."""
    return sum(math.ceil(font.getlength(piece)) for piece, font in _pieces(line, size))


def put(draw: ImageDraw.ImageDraw, x: int, y: int, line: str, ink: Colour, size: int) -> None:
    """Draws a `written` line from its upper left corner."""
    for piece, font in _pieces(line, size):
        draw.text((x, y), piece, ink, font)
        x += math.ceil(font.getlength(piece))


def _pieces(line: str, size: int) -> Iterator[tuple[str, Font]]:
    """A line by its fonts: raised digits, which the font lacks, are small ones at the top."""
    for piece in filter(None, _AT_RAISED.split(line)):
        raised = _RAISED.get(piece)
        yield (raised, font_of(round(size * 0.65))) if raised else (piece, font_of(size))


@lru_cache
def font_of(size: int) -> Font:
    """Pillow's own, in pixels."""
    return ImageFont.load_default(size)
