"""Owns TID 1500 reports as truth: what they draw becomes boxes, what they judge becomes labels.

Reads Enhanced, Comprehensive and Comprehensive 3D SR (PS3.16 TID 1500, 1501, 1410, 1411).
Understood are, wherever they stand: measurement groups with their Finding, the regions below them
(SCOORD POLYLINE, CIRCLE, ELLIPSE), and evaluations whose value is Present or Absent. Refuses to
guess: a finding that is said to be there and drawn nowhere is no negative, and one that a report
does not speak of is not absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference.errors import ReadingError
from training.errors import RecipeError
from training.readers.archive import Archive, archive
from training.readers.common import Problems, Unusable, by_licence, dicom_header, frame_numbers
from training.recipe import Bundle, DicomSr
from training.samples import Sample, Samples, TrueBox, Truth

REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (22, 33, 34))
"""Enhanced, Comprehensive, Comprehensive 3D SR Storage."""

MEASUREMENT_GROUP, FINDING, SERIES = "125007", "121071", "112002"
VERDICTS = {"52101004": True, "G-A203": True, "2667000": False, "G-A206": False}
"""Present and Absent in SNOMED CT, and in the SNOMED RT of older reports."""

MARKS = ("POINT", "MULTIPOINT")
AREA = 3
"""Points that an outline has at least: two are a length, one is a mark."""


@dataclass(frozen=True)
class Outline:
    """The bounding box of what was drawn on a frame, in pixels, edges not centres (C.18.6.1.2)."""

    image: str
    frames: tuple[int, ...]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Statement:
    """What one group or evaluation says of one finding.

    Attributes:
        code: value of the finding's code.
        present: the verdict; None where it only draws or measures.
        images: SOP Instance UIDs it refers to.
        series: Series Instance UIDs it refers to.
        outlines: what it draws.
    """

    code: str
    present: bool | None = None
    images: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    outlines: tuple[Outline, ...] = ()


@dataclass
class _Told:
    """All that the report on one sample says, by channel."""

    report: str
    boxes: list[tuple[int, Outline]] = field(default_factory=list)
    verdicts: dict[int, set[bool]] = field(default_factory=dict)


def read(data: DicomSr, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Single images (or series, as the bundle selects) with what their report says.

    Images that no report lists are passed over; one that a report lists without drawing on it
    is one on which there is nothing. Reports that a later one replaces are passed over.

    Raises:
        DataError: there is no such folder.
        RecipeError: the task is neither classification nor detection, or codes are ambiguous.
    """
    if bundle.task not in ("classification", "detection"):
        raise RecipeError(
            f"data.kind: dicom-sr gives boxes and classes, not what {bundle.task} needs: grades "
            "come from a table, masks from dicom-seg"
        )
    wanted = _wanted(data, bundle)
    found = archive(root / data.folder, REPORTS, problems)
    told: dict[str, _Told] = {}
    headers: dict[str, Dataset] = {}
    for uid, instance in found.objects.items():
        try:
            headers[uid] = dicom_header(instance.path)
        except Unusable as error:
            problems.add(str(error), uid)
    replaced = {uid for ds in headers.values() for uid in _cited(ds, "PredecessorDocuments")}
    for uid, header in headers.items():
        if uid in replaced:
            continue
        try:
            units = _heard(uid, header, wanted, found, bundle)
        except Unusable as error:
            problems.add(str(error), uid)
            continue
        for unit, said in units.items():
            if unit in told:
                problems.add("images with several reports (keep one)", unit)
            told[unit] = said
    samples = []
    for unit, said in told.items():
        try:
            samples.append(_sample(unit, said, found, bundle, data.licence))
        except (Unusable, ReadingError) as error:
            problems.add(str(error), f"{unit} (report {said.report})")
    return by_licence(samples, data.licences)


def _wanted(data: DicomSr, bundle: Bundle) -> dict[str, int]:
    """Code value to channel."""
    count = bundle.architecture.classes
    named = dict(enumerate(data.findings)) or {f.channel: f.code.value for f in bundle.findings}
    if sorted(named) != list(range(count)) or len(set(named.values())) < count:
        raise RecipeError(
            f"data.findings: name a code value for each of the {count} channels, no two the same"
        )
    return {value: channel for channel, value in named.items()}


# --- what a report says -------------------------------------------------------------------------


def statements(report: Dataset) -> Iterator[Statement]:
    """All statements of a report, in its order.

    Raises:
        Unusable: an outline cannot be understood.
    """
    for item in report.get("ContentSequence") or []:
        if _code(item, "ConceptNameCodeSequence") == MEASUREMENT_GROUP:
            yield from _group(item)
        elif (verdict := VERDICTS.get(_code(item, "ConceptCodeSequence"))) is not None:
            below = list(_below(item))
            yield Statement(
                _code(item, "ConceptNameCodeSequence"), verdict, _images(below), _series(below)
            )
        else:
            yield from statements(item)


def _group(group: Dataset) -> Iterator[Statement]:
    """A measurement group: one finding that it measures or draws, and verdicts."""
    rows = list(group.get("ContentSequence") or [])
    below = list(_below(group))
    images, series = _images(below), _series(below)
    for row in rows:
        if _code(row, "ConceptNameCodeSequence") == FINDING:
            drawn = tuple(line for item in below if (line := _outline(item)) is not None)
            yield Statement(_code(row, "ConceptCodeSequence"), None, images, series, outlines=drawn)
        elif (verdict := VERDICTS.get(_code(row, "ConceptCodeSequence"))) is not None:
            yield Statement(_code(row, "ConceptNameCodeSequence"), verdict, images, series)


def _outline(item: Dataset) -> Outline | None:
    """The box around a region; None where the item is none, or a mark or a length."""
    if item.get("GraphicType") in MARKS:
        return None
    if item.get("ValueType") == "SCOORD3D":
        raise Unusable("reports with regions in space (SCOORD3D; draw them on images)")
    if item.get("ValueType") != "SCOORD":
        return None
    points = np.array(item.GraphicData, dtype=np.float64).reshape(-1, 2)
    box = _around(str(item.GraphicType), points)
    if box is None:
        return None
    on = [row for row in item.get("ContentSequence") or [] if row.get("ValueType") == "IMAGE"]
    if len(on) != 1:
        raise Unusable("reports with outlines that do not name their image (leave them out)")
    (cited,) = on[0].ReferencedSOPSequence
    if box[0] >= box[2] or box[1] >= box[3]:
        raise Unusable("reports with outlines without an area (leave them out)")
    return Outline(str(cited.ReferencedSOPInstanceUID), tuple(frame_numbers(cited)), box)


def _around(kind: str, points: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of a region of ``points`` (n, 2), each column and row (C.18.6.1.2).

    A CIRCLE is centre and one point of it, an ELLIPSE the ends of its axes.
    """
    if kind == "POLYLINE" and len(points) >= AREA:
        low, high = points.min(axis=0), points.max(axis=0)
    elif kind == "CIRCLE":
        radius = np.linalg.norm(points[1] - points[0])
        low, high = points[0] - radius, points[0] + radius
    elif kind == "ELLIPSE":
        middle = (points[0] + points[1]) / 2
        reach = np.hypot(points[1] - points[0], points[3] - points[2]) / 2
        low, high = middle - reach, middle + reach
    else:
        return None
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _code(item: Dataset, keyword: str) -> str:
    found = item.get(keyword)
    return str(found[0].get("CodeValue") or "") if found else ""


def _below(item: Dataset) -> Iterator[Dataset]:
    for row in item.get("ContentSequence") or []:
        yield row
        yield from _below(row)


def _images(items: list[Dataset]) -> tuple[str, ...]:
    return tuple(
        str(ref.ReferencedSOPInstanceUID)
        for item in items
        if item.get("ValueType") == "IMAGE"
        for ref in item.get("ReferencedSOPSequence") or []
    )


def _series(items: list[Dataset]) -> tuple[str, ...]:
    return tuple(
        str(item.UID) for item in items if _code(item, "ConceptNameCodeSequence") == SERIES
    )


def _cited(report: Dataset, what: str) -> list[str]:
    """SOP Instance UIDs of a hierarchy of references (PS3.3 C.17.2.1)."""
    return [
        str(ref.ReferencedSOPInstanceUID)
        for study in report.get(f"{what}Sequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for ref in series.get("ReferencedSOPSequence") or []
    ]


# --- of what ------------------------------------------------------------------------------------


def _heard(
    uid: str, report: Dataset, wanted: Mapping[str, int], found: Archive, bundle: Bundle
) -> dict[str, _Told]:
    """What a report says of each sample that it is about.

    Raises:
        Unusable: it says nothing of what the recipe knows, or of images that are not there; or
            it is malformed.
    """
    try:
        said = [s for s in statements(report) if s.code in wanted]
        evidence = _cited(report, "CurrentRequestedProcedureEvidence")
    except (AttributeError, ValueError, TypeError, IndexError, RecursionError):
        raise Unusable("reports that are malformed (replace them)") from None
    if not said:
        raise Unusable(
            f"reports of nothing that the recipe knows (it knows the codes {', '.join(wanted)}; "
            "correct data.findings or leave them out)"
        )
    drawn = {line.image for statement in said for line in statement.outlines}
    about = found.known([*evidence, *(image for s in said for image in s.images)])
    if not about or drawn - set(found.images):
        raise Unusable("reports on images that are missing (add the images)")
    of = bundle.select.unit
    told = {found.unit(image, of): _Told(uid) for image in about}
    for statement in said:
        channel = wanted[statement.code]
        for line in statement.outlines:
            told[found.unit(line.image, of)].boxes.append((channel, line))
        if statement.present is None:
            continue
        named = [*statement.images, *(i for s in statement.series for i in found.series.get(s, []))]
        units = {found.unit(image, of) for image in found.known(named)} or set(told)
        for unit in units:
            told[unit].verdicts.setdefault(channel, set()).add(statement.present)
    _check_drawn(told, bundle)
    return told


def _check_drawn(told: Mapping[str, _Told], bundle: Bundle) -> None:
    """What is there for a detection to learn must be drawn somewhere."""
    drawn = {channel for said in told.values() for channel, _ in said.boxes}
    present = {c for said in told.values() for c, v in said.verdicts.items() if True in v}
    if bundle.task == "detection" and present - drawn:
        raise Unusable("reports that find what they do not draw (draw it, or leave them out)")


def _sample(unit: str, said: _Told, found: Archive, bundle: Bundle, licence: str) -> Sample:
    if bundle.task == "detection":
        truth = Truth(boxes=_boxes(unit, said, found))
    else:
        truth = Truth(classes=_classes(said, bundle))
    return found.sample(unit, truth, licence)


def _boxes(unit: str, said: _Told, found: Archive) -> tuple[TrueBox, ...]:
    """Boxes with the index of their frame.

    Only reading tells in which order frames come, so samples of several frames with boxes are read
    here.

    Raises:
        Unusable: an outline on a multi-frame image does not say on which frame.
        ReadingError: the images cannot be read.
    """
    if not said.boxes:
        return ()
    members = found.members(unit)
    single = len(members) == 1 and int(members[0].header.get("NumberOfFrames") or 1) == 1
    frames = [] if single else found.stack(unit).frames
    places = {(ref.sop_instance_uid, ref.frame): i for i, ref in enumerate(frames)}
    boxes = []
    for channel, line in said.boxes:
        several = int(found.images[line.image].header.get("NumberOfFrames") or 1) > 1
        if several and not line.frames:
            raise Unusable("outlines on clips that name no frame (redraw them)")
        for number in line.frames or (1,):
            at = 0 if single else places.get((line.image, number))
            if at is None:
                raise Unusable("outlines on frames that their image does not have (redraw them)")
            boxes.append(TrueBox(channel, *line.box, frame=at))
    return tuple(boxes)


def _classes(said: _Told, bundle: Bundle) -> tuple[float, ...]:
    """0 or 1 a channel: what is drawn is there; of exclusive classes one settles all.

    Raises:
        Unusable: a class is said to be both, or nothing is said of it.
    """
    verdicts = {channel: set(told) for channel, told in said.verdicts.items()}
    for channel, _ in said.boxes:
        verdicts.setdefault(channel, set()).add(True)
    if any(len(told) > 1 for told in verdicts.values()):
        raise Unusable("reports that say both present and absent of one finding (keep one)")
    present = {channel for channel, told in verdicts.items() if True in told}
    if bundle.activation == "softmax" and bundle.architecture.classes > 1:
        if len(present) != 1:
            raise Unusable("reports without exactly one of classes that exclude each other")
    elif len(verdicts) < bundle.architecture.classes:
        raise Unusable("reports that do not speak of every class (say present or absent of each)")
    return tuple(float(channel in present) for channel in range(bundle.architecture.classes))
