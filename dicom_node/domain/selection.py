"""Owns which series or images of a study a model takes, and why it passes over the others.

Refuses to know manifests: a model's wishes arrive as ``Criteria``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dicom_node.domain.study import Candidate, InstanceFacts, by_series

Orientation = Literal["any", "axial", "coronal", "sagittal"]
_PLANES = ("sagittal", "coronal", "axial")  # by the axis of the normal: x, y, z


@dataclass(frozen=True)
class Criteria:
    """A model's wishes; empty asks nothing.

    Lengths in mm. Body part, kernel and description are case-insensitive regular expressions.
    """

    unit: Literal["image", "series"]
    modality: tuple[str, ...]
    sop_class: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    view_position: tuple[str, ...] = ()
    image_type_excludes: tuple[str, ...] = ("LOCALIZER", "SCOUT")
    allow_derived: bool = False
    orientation: Orientation = "any"
    thickness_mm: tuple[float, float] | None = None
    kernel: tuple[str, ...] = ()
    description_excludes: tuple[str, ...] = ()
    instances: tuple[int, int] = (1, 100_000)
    rank: tuple[str, ...] = ("thinnest", "most_instances", "first_acquired")
    take: Literal["best", "all"] = "best"


@dataclass(frozen=True)
class Choice:
    """What became of one candidate."""

    candidate: Candidate
    taken: bool
    reason: str


def candidates(instances: Iterable[InstanceFacts], criteria: Criteria) -> list[Candidate]:
    """What the study offers: each image, or each series without what is no part of its stack."""
    images = [instance for instance in instances if instance.is_image]
    if criteria.unit == "image":
        return [Candidate(image.sop_instance_uid, (image,)) for image in images]
    return [_stack(uid, members, criteria) for uid, members in by_series(images).items()]


def choose(criteria: Criteria, offered: Sequence[Candidate]) -> list[Choice]:
    """Judge every candidate; the best, or all, of those that fit are taken.

    Returns:
        One choice per candidate, in the order offered.
    """
    faults = {candidate.uid: _fault(candidate, criteria) for candidate in offered}
    fitting = sorted(
        (candidate for candidate in offered if faults[candidate.uid] is None),
        key=lambda candidate: _rank(candidate, criteria),
    )
    taken = {c.uid for c in (fitting if criteria.take == "all" else fitting[:1])}
    choices = []
    for candidate in offered:
        fault = faults[candidate.uid]
        if fault is not None:
            choices.append(Choice(candidate, False, fault))
        elif candidate.uid in taken:
            place = f"first of {len(fitting)} by {', '.join(criteria.rank)}"
            why = "fits" if len(fitting) == 1 or criteria.take == "all" else place
            choices.append(Choice(candidate, True, "; ".join((why, *candidate.left_out))))
        else:
            reason = f"fits, but another comes before it by {', '.join(criteria.rank)}"
            choices.append(Choice(candidate, False, reason))
    return choices


def plane(orientation: tuple[float, ...] | None) -> str | None:
    """Axial, coronal or sagittal, by the axis that the slice normal is nearest to."""
    if orientation is None:
        return None
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    return _PLANES[max(range(3), key=lambda axis: abs(normal[axis]))]


def _stack(uid: str, members: list[InstanceFacts], criteria: Criteria) -> Candidate:
    """The members of a series that stand on one grid; a series may hold its own localiser."""
    wanted = [m for m in members if not _excluded(m, criteria)]
    left_out = []
    if len(wanted) < len(members) and wanted:
        left_out.append(f"{len(members) - len(wanted)} localiser or derived instances left out")
    grids = Counter(_grid(member) for member in wanted or members)
    grid, count = grids.most_common(1)[0]
    if len(grids) > 1:
        other = sum(grids.values()) - count
        left_out.append(f"{other} instances of another size or orientation left out")
    kept = tuple(m for m in wanted or members if _grid(m) == grid)
    return Candidate(uid, kept, tuple(left_out))


def _grid(instance: InstanceFacts) -> tuple[object, ...]:
    cosines = instance.orientation
    rounded = tuple(round(cosine, 3) + 0.0 for cosine in cosines) if cosines else None
    return instance.rows, instance.columns, rounded


def _excluded(instance: InstanceFacts, criteria: Criteria) -> str | None:
    types = {value.upper() for value in instance.image_type}
    if unwanted := sorted(types & {value.upper() for value in criteria.image_type_excludes}):
        return f"image type {', '.join(unwanted)}"
    # Lossy compression alone makes an image derived (PS3.3 C.7.6.1.1.2): its content is the same.
    only_compressed = instance.lossy and "PRIMARY" in types
    if "DERIVED" in types and not criteria.allow_derived and not only_compressed:
        return "derived image"
    return None


def _fault(candidate: Candidate, criteria: Criteria) -> str | None:
    """The first reason why a candidate does not fit, or None."""
    first = candidate.first
    words: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
        ("modality", candidate.values("modality"), criteria.modality),
        ("SOP class", candidate.values("sop_class_uid"), criteria.sop_class),
    )
    for name, found, wanted in words:
        if wanted and not found & set(wanted):
            return f"{name} {' or '.join(sorted(found)) or 'not told'}"
    if fault := _excluded(first, criteria):
        return fault
    # Modalities leave these out so often that an absent value cannot count against an image.
    part, view = first.body_part, first.view
    if part and criteria.body_part and not any(_found(p, part) for p in criteria.body_part):
        return f"body part {part}"
    views = {word.upper() for word in criteria.view_position}
    if view and views and view.upper() not in views:
        return f"view position {view}"
    if criteria.orientation != "any" and plane(first.orientation) != criteria.orientation:
        return f"orientation {plane(first.orientation) or 'not told'}"
    return _number_fault(candidate, criteria) or _text_fault(first, criteria)


def _number_fault(candidate: Candidate, criteria: Criteria) -> str | None:
    thickness = candidate.first.thickness_mm
    if criteria.thickness_mm and thickness is not None:
        low, high = criteria.thickness_mm
        if not low <= thickness <= high:
            return f"slice thickness {thickness:g} mm, not {low:g} to {high:g} mm"
    count, (fewest, most) = candidate.number("frames") or 0, criteria.instances
    if not fewest <= count <= most:
        return f"{count:g} images, not {fewest} to {most}"
    return None


def _text_fault(first: InstanceFacts, criteria: Criteria) -> str | None:
    if criteria.kernel and not any(_found(p, first.kernel) for p in criteria.kernel):
        return f"kernel {first.kernel or 'not told'}"
    for pattern in criteria.description_excludes:
        if _found(pattern, first.series_description):
            return f"series description matches /{pattern}/"
    return None


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def _rank(candidate: Candidate, criteria: Criteria) -> tuple[object, ...]:
    """Sort key; the UID last, so that the same study is always chosen from alike."""
    first = candidate.first
    keys: dict[str, object] = {
        "thinnest": first.thickness_mm if first.thickness_mm is not None else float("inf"),
        "most_instances": -(candidate.number("frames") or 0),
        "kernel_order": next(
            (n for n, p in enumerate(criteria.kernel) if _found(p, first.kernel)),
            len(criteria.kernel),
        ),
        "first_acquired": (first.acquired or "9", first.series_number or 0),
    }
    return (*(keys[name] for name in criteria.rank), candidate.uid)
