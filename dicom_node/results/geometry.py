"""Owns where the frames of a source lie: the numbers that a result must repeat exactly.

Refuses to compute positions: it hands on the source's own digits, so that a result lies where its
source lies whatever the order, tilt or spacing. Knows nothing of arrays or results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicom_node.results.types import Source
from inference.attributes import frames_of
from inference.errors import ReadingError
from inference.geometry import pixel_spacing
from inference.types import FrameRef

Digits = tuple[str, ...]
"""Decimal strings (DS), at most 16 characters each."""

EVEN = 1e-3
"""mm by which slice distances may differ for Spacing Between Slices to be told."""


@dataclass(frozen=True)
class Geometry:
    """Of the frames of a source, in mask order.

    Attributes:
        positions: Image Position (Patient) of each frame, LPS mm; None when the source has no
            patient geometry (projections, ultrasound).
        orientations: Image Orientation (Patient) of each frame; None likewise.
        spacing: Pixel Spacing, (between rows, between columns) mm; None where the source gives
            none, or zero, and for projections: theirs holds in some plane, nobody knows which.
        at_detector: of a source without patient geometry, the spacing that its areas are measured
            by (`inference.geometry.pixel_spacing`); None where it gives none.
        thickness: Slice Thickness in mm, or the distance of the frames where the source is
            silent; None for projections.
        distance: between neighbouring frames in mm, where it is the same for all; else None.
        frame_of_reference_uid: None where the source has none.
    """

    positions: tuple[Digits, ...] | None
    orientations: tuple[Digits, ...] | None
    spacing: Digits | None
    thickness: str | None
    distance: str | None
    frame_of_reference_uid: str | None
    at_detector: Digits | None = None

    @property
    def pixel_area(self) -> float | None:
        """mm² of one pixel in the patient, None where there is no spacing."""
        if self.spacing is None:
            return None
        return float(self.spacing[0]) * float(self.spacing[1])


def is_multi_frame(header: Dataset) -> bool:
    """Whether a reference to one of its images must tell the frame (PS3.3 10.3)."""
    try:
        return int(header.get("NumberOfFrames") or 1) > 1
    except (TypeError, ValueError):
        return False


def geometry(source: Source) -> Geometry:
    """Where the frames of ``source`` lie."""
    datasets = source.by_uid
    frames = [(datasets[ref.sop_instance_uid], ref) for ref in source.frames]
    positions = [
        _digits(_group(ds, ref, "PlanePositionSequence"), "ImagePositionPatient", 3)
        for ds, ref in frames
    ]
    orientations = [
        _digits(_group(ds, ref, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        for ds, ref in frames
    ]
    placed = tuple(p for p in positions if p), tuple(o for o in orientations if o)
    if not frames or any(len(found) != len(frames) for found in placed):
        nominal = _at_detector(*frames[0]) if frames else None
        return Geometry(None, None, None, None, None, None, nominal)

    distances = _distances(*placed)
    measures = _group(*frames[0], "PixelMeasuresSequence")
    told = _positive(_digits(measures, "SliceThickness", 1))
    thickness = told[0] if told else None
    if thickness is None and distances:
        thickness = _positive_string(float(np.median(distances)))
    even = bool(distances) and max(distances) - min(distances) < EVEN
    uid = frames[0][0].get("FrameOfReferenceUID")
    return Geometry(
        positions=placed[0],
        orientations=placed[1],
        spacing=_positive(_digits(measures, "PixelSpacing", 2)),
        thickness=thickness,
        distance=_positive_string(float(np.mean(distances))) if even else None,
        frame_of_reference_uid=str(uid) if uid else None,
    )


def _at_detector(dataset: Dataset, ref: FrameRef) -> Digits | None:
    try:
        frame = frames_of(dataset, int(dataset.get("NumberOfFrames") or 1))[ref.frame - 1]
        spacing, _ = pixel_spacing(frame, str(dataset.get("Modality") or ""))
    except (ReadingError, TypeError, ValueError, IndexError):
        return None
    return tuple(map(format_number_as_ds, spacing)) if spacing else None


def _group(dataset: Dataset, ref: FrameRef, sequence: str) -> Dataset:
    """The functional group of a multi-frame source (PS3.3 C.7.6.16); else the data set itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[ref.frame - 1 : ref.frame], *shared[:1]):
        if groups.get(sequence):
            group: Dataset = groups[sequence].value[0]
            return group
    return dataset


def _digits(dataset: Dataset, keyword: str, count: int) -> Digits | None:
    """``count`` finite numbers in the source's own digits, None where it has not just that."""
    try:
        value = dataset.get(keyword)
        values = [value] if count == 1 else list(value or [])
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        return None
    if len(numbers) != count or not all(math.isfinite(n) for n in numbers):
        return None
    # Longer strings than DS allows come as they are from careless sources: 16 characters keep
    # more than a nanometre.
    return tuple(
        str(v) if len(str(v)) <= 16 else format_number_as_ds(n)
        for v, n in zip(values, numbers, strict=True)
    )


def _positive(digits: Digits | None) -> Digits | None:
    return digits if digits and all(float(d) > 0 for d in digits) else None


def _positive_string(number: float) -> str | None:
    return format_number_as_ds(number) if number > 0 else None


def _distances(positions: Sequence[Digits], orientations: Sequence[Digits]) -> list[float]:
    """Of neighbouring frames along the normal, mm."""
    orientation = np.array(orientations[0], dtype=float)
    normal = np.cross(orientation[:3], orientation[3:])
    heights = np.array(positions, dtype=float) @ normal
    return [abs(float(b - a)) for a, b in pairwise(heights)]
