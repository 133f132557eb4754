"""Owns the short words in which reports are written: one function per kind of content item.

Wraps highdicom's value types so that a template reads as a list of its rows, and so that our
`Code` need not be converted at each. Refuses to know any template.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from numpy.typing import NDArray

from dicom_node.errors import ResultError
from inference.types import Code

CONTAINS = "CONTAINS"
HAS_ACQ_CONTEXT = "HAS ACQ CONTEXT"
HAS_CONCEPT_MOD = "HAS CONCEPT MOD"
HAS_OBS_CONTEXT = "HAS OBS CONTEXT"
HAS_PROPERTIES = "HAS PROPERTIES"
INFERRED_FROM = "INFERRED FROM"
SELECTED_FROM = "SELECTED FROM"

SIGNIFICANT_DIGITS = 6
"""Of measured values: more than any of them deserves, few enough to read."""


LONG_STRING = 64
"""Characters of a Long String (PS3.5 6.2)."""


def coded(code: Code) -> CodedConcept:
    """An item of a code sequence (PS3.3 8.8)."""
    return CodedConcept(code.value, code.scheme, long_string(code.meaning))


def long_string(value: str) -> str:
    """``value`` as one Long String: no control characters, no backslash (it would make it two).

    Words of a model come from its bundle, and a bundle is not trusted.
    """
    clean = "".join(c if c.isprintable() and c != "\\" else " " for c in value)
    return " ".join(clean.split())[:LONG_STRING].strip() or "-"


def code(
    relationship: str, name: Code, value: Code, children: Iterable[ContentItem] = ()
) -> ContentItem:
    """CODE."""
    return _with(CodeContentItem(coded(name), coded(value), relationship), children)


def text(
    relationship: str, name: Code, value: str, children: Iterable[ContentItem] = ()
) -> ContentItem:
    """TEXT; what Unlimited Text cannot hold is replaced, an empty value becomes a dash."""
    clean = "".join(c if c.isprintable() or c in "\r\n\t" else " " for c in value).strip()
    return _with(TextContentItem(coded(name), clean or "-", relationship), children)


def uid(relationship: str, name: Code, value: str) -> ContentItem:
    """UIDREF."""
    return UIDRefContentItem(coded(name), value, relationship)


def number(
    relationship: str, name: Code, value: float, unit: Code, children: Iterable[ContentItem] = ()
) -> ContentItem:
    """NUM, rounded to `SIGNIFICANT_DIGITS`; raises ResultError unless it is finite."""
    if not math.isfinite(value):
        raise ResultError(f"{name.meaning} is {value}")
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    item = NumContentItem(coded(name), rounded, coded(unit), relationship_type=relationship)
    return _with(item, children)


def image(
    relationship: str,
    name: Code,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    frames: Sequence[int] = (),
    segment: int | None = None,
) -> ContentItem:
    """IMAGE. Frames or a segment, never both (PS3.3 C.18.4)."""
    return ImageContentItem(
        coded(name),
        sop_class_uid,
        sop_instance_uid,
        list(frames) or None,
        segment,
        relationship,
    )


def polyline(
    relationship: str, name: Code, points: NDArray[np.float64], on: ContentItem
) -> ContentItem:
    """SCOORD POLYLINE.

    Args:
        relationship: to the parent.
        name: the purpose.
        points: ``(n, 2)`` column and row, edges not centres: (0, 0) is the outer corner of the
            first pixel (PS3.3 C.18.6.1.2). The first point comes again at the end.
        on: the IMAGE that they are selected from.
    """
    item = ScoordContentItem(coded(name), "POLYLINE", points, relationship_type=relationship)
    return _with(item, [on])


def container(
    relationship: str | None,
    name: Code,
    children: Iterable[ContentItem],
    *,
    template: str | None = None,
) -> ContentItem:
    """CONTAINER; ``template`` where the standard gives its content a Template ID (PS3.16)."""
    item = ContainerContentItem(coded(name), False, template, relationship)
    return _with(item, children)


def _with(item: ContentItem, children: Iterable[ContentItem]) -> ContentItem:
    items = ContentSequence(list(children))
    if items:
        item.ContentSequence = items
    return item
