"""Owns the words that data sets, models and reports share: arrays with their meaning.

Refuses to know how an array was read, which network looked at it, or how DICOM will write it
down. Every object is frozen; a change means a new one.

Array axes are always ``(frames, rows, columns)``, frames in reading order along the normal
``row direction x column direction``, index ``[0, 0, 0]`` the centre of the first voxel. World
coordinates are DICOM's patient coordinate system, LPS, in millimetres (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["[hnsf'U]", "1", "raw"]
"""Of pixel values: Hounsfield units; normalised to 0..1; or the modality's own, unnamed values."""


@dataclass(frozen=True)
class Code:
    """A coded concept (PS3.3 section 8): value, scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class FrameRef:
    """Which frame of which instance an array's frame came from; ``frame`` counts from 1."""

    sop_instance_uid: str
    sop_class_uid: str
    frame: int = 1


@dataclass(frozen=True)
class ImageStack:
    """Frames of one series on one grid, in their stated unit.

    Attributes:
        pixels: ``(frames, rows, columns)`` float32 or integer; ``(..., 3)`` RGB uint8 for colour.
        unit: of ``pixels``.
        modality: DICOM Modality of the source.
        frames: for each frame where it came from, same order as ``pixels``.
        positions: ``(frames, 3)`` Image Position (Patient) in LPS mm; None for projections.
        orientation: ``(6,)`` row then column direction cosines; None for projections.
        spacing: ``(between rows, between columns)`` in mm; None when the source gives none that
            can be trusted (then nothing may be told in millimetres).
        spacing_source: the attribute that ``spacing`` came from, or why there is none.
        patient_orientation: ``(row direction, column direction)`` of a projection image, such as
            ``("L", "F")`` (PS3.3 C.7.6.1.1.1); None when not told.
        frame_of_reference_uid: None for projections.
        valid: ``(frames, rows, columns)`` bool, False where the source is padding or lies behind
            a shutter; None when every pixel counts.
        presentation_intent: Presentation Intent Type of a digital radiograph. FOR PROCESSING
            values may be linear in dose and of either polarity; most models want neither.
        photometric: Photometric Interpretation of the source. MONOCHROME1 is turned over where
            the unit is ``1`` and left alone elsewhere.
    """

    pixels: NDArray[np.generic]
    unit: Unit
    modality: str
    frames: tuple[FrameRef, ...]
    positions: NDArray[np.float64] | None = None
    orientation: NDArray[np.float64] | None = None
    spacing: tuple[float, float] | None = None
    spacing_source: str = ""
    patient_orientation: tuple[str, str] | None = None
    frame_of_reference_uid: str | None = None
    valid: NDArray[np.bool_] | None = None
    presentation_intent: str | None = None
    photometric: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(frames, rows, columns)``."""
        frames, rows, columns = self.pixels.shape[:3]
        return frames, rows, columns

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """``(4, 4)`` from (frame, row, column) to LPS mm, or None.

        Exact for evenly spaced stacks; for uneven ones it carries the mean step, and
        ``positions`` says where each frame really lies.
        """
        if self.positions is None or self.orientation is None or self.spacing is None:
            return None
        affine = np.eye(4)
        row_direction, column_direction = self.orientation[:3], self.orientation[3:]
        normal = np.cross(row_direction, column_direction)
        steps = len(self.positions) - 1
        affine[:3, 0] = (self.positions[-1] - self.positions[0]) / steps if steps else normal
        affine[:3, 1] = column_direction * self.spacing[0]
        affine[:3, 2] = row_direction * self.spacing[1]
        affine[:3, 3] = self.positions[0]
        return affine


@dataclass(frozen=True)
class Measurement:
    """A number with what it measures and its UCUM unit.

    Attributes:
        frame: where it holds for one frame only.
        line: the two ends between which a length was measured on ``frame``, each (column, row) in
            pixels of the input grid, counted at edges as `Box` counts; None for all but lengths.
    """

    name: Code
    value: float
    unit: Code
    frame: int | None = None
    line: tuple[tuple[float, float], tuple[float, float]] | None = None


@dataclass(frozen=True)
class Segment:
    """One structure, on the grid of the input.

    Attributes:
        label: what a reader sees, at most 64 characters.
        category: property category (CID 7150), such as Anatomical Structure.
        type: property type, such as Lung.
        laterality: Right or Left (CID 244), or None.
        colour: recommended display colour, sRGB 0..255.
        mask: ``(frames, rows, columns)`` bool. May overlap other segments.
        measurements: what was measured on ``mask``.
        probability: ``(frames, rows, columns)`` float32 in 0..1, or None.
    """

    label: str
    category: Code
    type: Code
    colour: tuple[int, int, int]
    mask: NDArray[np.bool_]
    laterality: Code | None = None
    measurements: tuple[Measurement, ...] = ()
    probability: NDArray[np.float32] | None = None

    @property
    def empty(self) -> bool:
        """True when the model looked and found none of it."""
        return not bool(self.mask.any())


@dataclass(frozen=True)
class Box:
    """An axis-aligned region on one frame, in pixels of the input grid.

    Edges, not centres: ``left = 0`` is the outer edge of the first column, so that ``right -
    left`` is the width (PS3.3 C.10.5.1.2: SCOORD counts the same way).
    """

    frame: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Finding:
    """Something that the model says is there, or is not.

    Attributes:
        label: what a reader sees.
        code: the condition or structure.
        present: the verdict at ``threshold``.
        probability: calibrated, 0..1, or None.
        threshold: what ``probability`` was held against.
        severity: Mild, Moderate or Severe (SCT), for grading.
        score: the number behind a grade.
        boxes: where, for detection.
        site: anatomical location.
        saliency: ``(frames, rows, columns)`` float32 in 0..1 on the input's grid, how much each
            pixel spoke for the finding (Grad-CAM); None where nobody asked.
    """

    label: str
    code: Code
    present: bool
    probability: float | None = None
    threshold: float | None = None
    severity: Code | None = None
    score: float | None = None
    boxes: tuple[Box, ...] = ()
    site: Code | None = None
    saliency: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Prediction:
    """All that one model says of one input.

    ``not_analysed`` holds the reason when the input did not suit the model; then nothing else is
    asserted. ``notes`` are sentences for the report ("spacing unknown: areas in pixels").
    """

    segments: tuple[Segment, ...] = ()
    findings: tuple[Finding, ...] = ()
    not_analysed: str | None = None
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict, compare=False)
