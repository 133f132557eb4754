"""Owns where frames lie: grid, position, order, spacing. Refuses to look at any pixel.

Distances are millimetres in DICOM's patient coordinates (LPS, PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.attributes import UID, Frame, get, integer, number, numbers, text
from inference.errors import ReadingError
from inference.pixels import BRIGHTNESS, PROJECTIONS, Layout

TOLERANCE = 1e-4
"""Of direction cosines and of spacing in mm, for two frames to lie on the same grid."""

_UNIT = 1e-3  # how far directions may be from perpendicular unit vectors
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_INTENTS = frozenset({"FOR PRESENTATION", "FOR PROCESSING"})
_DIRECTION = re.compile(r"[ALRPHF]{1,3}")
_CENTIMETRES = 3
_TWO_DIMENSIONAL = 1


@dataclass(frozen=True)
class Grid:
    """What frames share that can be stacked.

    Attributes:
        modality: DICOM Modality, "OT" when not told.
        rows: of each frame.
        columns: of each frame.
        colour: frames become RGB.
        orientation: row and column direction cosines; None without a position in the patient.
        spacing: (between rows, between columns) in mm, or None.
        spacing_source: where it came from, or why there is none.
        frame_of_reference_uid: None without positions.
        patient_orientation: of images without positions.
        presentation_intent: FOR PRESENTATION or FOR PROCESSING, or None.
        photometric: Photometric Interpretation.
    """

    modality: str
    rows: int
    columns: int
    colour: bool
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    spacing_source: str
    frame_of_reference_uid: str | None
    patient_orientation: tuple[str, str] | None
    presentation_intent: str | None
    photometric: str

    def difference(self, other: Grid) -> str | None:
        """The first attribute in which two grids differ too much to be stacked, or None."""
        exact = (
            ("Modality", self.modality, other.modality),
            ("Rows", self.rows, other.rows),
            ("Columns", self.columns, other.columns),
            ("colour", self.colour, other.colour),
            ("having a position", self.orientation is None, other.orientation is None),
            ("Frame of Reference", self.frame_of_reference_uid, other.frame_of_reference_uid),
            ("Patient Orientation", self.patient_orientation, other.patient_orientation),
            ("Presentation Intent Type", self.presentation_intent, other.presentation_intent),
        )
        for name, mine, theirs in exact:
            if mine != theirs:
                return name
        if not _close(self.orientation, other.orientation):
            return "Image Orientation (Patient)"
        if not _close(self.spacing, other.spacing):
            return "pixel spacing"
        return None


def _close(mine: Sequence[float] | None, theirs: Sequence[float] | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return all(abs(a - b) <= TOLERANCE for a, b in zip(mine, theirs, strict=True))


def grid(frame: Frame, declared: Layout) -> Grid:
    """The grid on which a frame lies.

    Raises:
        ReadingError: an attribute of the geometry is malformed.
    """
    modality = text(frame, "Modality") or "OT"
    if not _CODE_STRING.fullmatch(modality):
        raise ReadingError("Modality is not a code string")
    orientation = None if position(frame) is None else direction(frame)
    spacing, source = pixel_spacing(frame, modality)
    intent = text(frame, "PresentationIntentType")
    return Grid(
        modality=modality,
        rows=declared.rows,
        columns=declared.columns,
        colour=declared.colour,
        orientation=orientation,
        spacing=spacing,
        spacing_source=source,
        frame_of_reference_uid=_frame_of_reference(frame) if orientation else None,
        patient_orientation=None if orientation else patient_orientation(frame),
        presentation_intent=intent if intent in _INTENTS else None,
        photometric=declared.photometric,
    )


def _frame_of_reference(frame: Frame) -> str | None:
    found = text(frame, "FrameOfReferenceUID")
    if found and not UID.fullmatch(found):
        raise ReadingError("FrameOfReferenceUID is no UID")
    return found or None


def position(frame: Frame) -> tuple[float, ...] | None:
    """Image Position (Patient): x, y, z of the centre of the first voxel.

    A position that a multi-frame image gives once for all is that of no particular frame, and
    projections have none whatever they say: both give None. None too without an orientation.

    Raises:
        ReadingError: it is not three finite numbers.
    """
    per_frame = frame.macro("ImagePositionPatient") is not None
    if not per_frame and (frame.of > 1 or text(frame, "Modality") in BRIGHTNESS):
        return None
    if get(frame, "ImageOrientationPatient") is None:
        return None
    return numbers(frame, "ImagePositionPatient", 3)


def direction(frame: Frame) -> tuple[float, ...] | None:
    """Image Orientation (Patient): direction cosines of a row, then of a column.

    Raises:
        ReadingError: they are not two perpendicular unit vectors.
    """
    cosines = numbers(frame, "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > _UNIT:
        raise ReadingError("ImageOrientationPatient is not two perpendicular unit vectors")
    return cosines


def order(
    frames: Sequence[Frame], positions: Sequence[tuple[float, ...] | None], lies: Grid
) -> list[int]:
    """Indices of ``frames`` in reading order.

    By position along the normal (row direction x column direction); without positions by
    Instance Number. Those at one place keep an order of their own: Acquisition Number, Instance
    Number, SOP Instance UID, frame number.

    Args:
        frames: all on one grid.
        positions: of each, or None for each.
        lies: their grid.

    Raises:
        ReadingError: a number is malformed.
    """
    along = np.zeros(len(frames))
    if lies.orientation is not None:
        normal = np.cross(lies.orientation[:3], lies.orientation[3:])
        along = np.array(positions, dtype=np.float64) @ normal
        along = np.round(along, 4)  # the same place may be written in other digits

    def key(i: int) -> tuple[float, int, int, str, int]:
        frame = frames[i]
        return (
            along[i],
            integer(frame, "AcquisitionNumber", 0),
            integer(frame, "InstanceNumber", 0),
            text(frame, "SOPInstanceUID"),
            frame.index,
        )

    return sorted(range(len(frames)), key=key)


def patient_orientation(frame: Frame) -> tuple[str, str] | None:
    """Directions of rows and of columns, such as ``("L", "F")``; None when not told.

    Laterality says which side was imaged, not how the film lies, and is not asked.
    """
    found = get(frame, "PatientOrientation")
    if found is None or isinstance(found, str) or len(found) != 2:
        return None
    row, column = str(found[0]).strip(), str(found[1]).strip()
    known = _DIRECTION.fullmatch(row) and _DIRECTION.fullmatch(column)
    return (row, column) if known else None


Spacing = tuple[tuple[float, float] | None, str]


def pixel_spacing(frame: Frame, modality: str) -> Spacing:
    """((between rows, between columns) in mm or None, where from or why not).

    Cross sections: Pixel Spacing. Radiographs, after PS3.3 10.7.1.3: Pixel Spacing when a
    calibration type stands beside it or when it differs from Imager Pixel Spacing, which is then
    a calibration that was not named; else Imager Pixel Spacing divided by the magnification
    factor where that is told; else Nominal Scanned Pixel Spacing of a digitised film; else Pixel
    Spacing as it is. Ultrasound: the centimetres per pixel of the two-dimensional regions, when
    all agree.

    Raises:
        ReadingError: a value is not two finite numbers.
    """
    if modality in ("US", "IVUS") and frame.macro("PixelSpacing") is None:
        return _ultrasound(frame)
    if modality in PROJECTIONS:
        return _projection(frame)
    return _first(
        _pair(frame, "PixelSpacing", "Pixel Spacing"),
        _pair(frame, "NominalScannedPixelSpacing", "Nominal Scanned Pixel Spacing"),
    )


def _projection(frame: Frame) -> Spacing:
    plain = _pair(frame, "PixelSpacing", "Pixel Spacing")
    detector = _pair(frame, "ImagerPixelSpacing", "Imager Pixel Spacing")
    calibration = text(frame, "PixelSpacingCalibrationType")
    if plain[0] and calibration in ("GEOMETRY", "FIDUCIAL"):
        return plain[0], f"Pixel Spacing ({calibration})"
    if plain[0] and detector[0] and not _close(plain[0], detector[0]):
        return plain[0], "Pixel Spacing (differs from Imager Pixel Spacing: calibrated)"
    magnification = number(frame, "EstimatedRadiographicMagnificationFactor")
    if detector[0] and magnification is not None and magnification >= 1:
        down, across = detector[0]
        return (
            (down / magnification, across / magnification),
            "Imager Pixel Spacing / Estimated Radiographic Magnification Factor",
        )
    nominal = _pair(frame, "NominalScannedPixelSpacing", "Nominal Scanned Pixel Spacing")
    return _first(detector, nominal, plain)


def _ultrasound(frame: Frame) -> Spacing:
    scales = []
    for region in get(frame, "SequenceOfUltrasoundRegions") or ():
        if integer(region, "RegionSpatialFormat", 0) != _TWO_DIMENSIONAL:
            continue
        units = [integer(region, f"PhysicalUnits{axis}Direction", 0) for axis in "XY"]
        if units != [_CENTIMETRES] * 2:
            return None, "Sequence of Ultrasound Regions: not in centimetres"
        scale = [number(region, f"PhysicalDelta{axis}") or 0.0 for axis in "YX"]
        if min(scale) <= 0:
            return None, "Sequence of Ultrasound Regions: Physical Delta is not positive"
        scales.append((scale[0] * 10, scale[1] * 10))
    if not scales:
        absent: Spacing = None, "Sequence of Ultrasound Regions: no two-dimensional region"
        return _first(_pair(frame, "PixelSpacing", "Pixel Spacing"), absent)
    if any(not np.allclose(scale, scales[0], rtol=1e-3, atol=0) for scale in scales):
        return None, "Sequence of Ultrasound Regions: regions of different scale"
    return scales[0], "Sequence of Ultrasound Regions"


def _first(*choices: Spacing) -> Spacing:
    for choice in choices:
        if choice[0] is not None:
            return choice
    return None, "; ".join(reason for _, reason in choices)


def _pair(frame: Frame, keyword: str, name: str) -> Spacing:
    found = numbers(frame, keyword, 2)
    if found is None:
        return None, f"{name} absent"
    if min(found) <= 0:
        return None, f"{name} is not positive"
    return (found[0], found[1]), name
