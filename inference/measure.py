"""Owns what is measured on a mask: area on a projection, volume of slices, longest diameter.

Refuses to measure in millimetres where the source gave no spacing that can be trusted: then it
counts pixels and says so in the unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from inference.types import Code, ImageStack, Measurement

AREA = Code("42798000", "SCT", "Area")
VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
MILLILITRE = Code("ml", "UCUM", "milliliter")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
PIXELS = Code("{pixels}", "UCUM", "pixels")

NO_SPACING = "The image gives no pixel spacing: areas are counts of pixels."
AT_DETECTOR = "Areas are measured at the detector's plane and not corrected for magnification."
NO_SLICE_THICKNESS = "One slice has no measurable thickness: its area is given, no volume."
NO_VOLUME_SPACING = "The series gives no pixel spacing: no volume is given."


def measure(mask: NDArray[np.bool_], stack: ImageStack) -> tuple[Measurement, ...]:
    """Volume of a mask in a stack of slices, else the area in each frame.

    Args:
        mask: ``(frames, rows, columns)`` on the stack's grid.
        stack: gives spacing, positions.

    Returns:
        One volume in millilitres for slices with positions, or nothing where they give no
        spacing; otherwise (projections, a single slice) one area per frame, in mm2, or in pixels
        without spacing. ``frame`` counts from 0. Nothing is measured on an empty mask.
    """
    counts = mask.reshape(len(mask), -1).sum(1)
    if not counts.any():
        return ()
    depth = thicknesses(stack)
    if depth is not None:
        if stack.spacing is None:
            return ()
        cubic_millimetres = float((counts * depth).sum() * stack.spacing[0] * stack.spacing[1])
        return (Measurement(VOLUME, cubic_millimetres / 1000, MILLILITRE),)
    pixel, unit = 1.0, PIXELS
    if stack.spacing is not None:
        pixel, unit = stack.spacing[0] * stack.spacing[1], SQUARE_MILLIMETRE
    return tuple(
        Measurement(AREA, float(count * pixel), unit, frame=i)
        for i, count in enumerate(counts)
        if count
    )


def longest_diameter(mask: NDArray[np.bool_], stack: ImageStack) -> tuple[Measurement, ...]:
    """The longest straight line between two points of a mask's border within one frame.

    The in-plane diameter that RECIST measures, between outer edges of pixels; it may cross what
    does not belong to the mask.

    Args:
        mask: ``(frames, rows, columns)`` on the stack's grid.
        stack: gives spacing; without it the length is in pixels.

    Returns:
        One measurement in mm or pixels on the frame where it is longest, with the line along which
        it was measured; nothing on an empty mask.
    """
    spacing = np.array(stack.spacing or (1.0, 1.0))
    best, line, where = 0.0, np.zeros((2, 2)), 0
    for frame in np.flatnonzero(mask.any(axis=(1, 2))):
        corners = _corners(mask[frame])
        scaled = corners * spacing
        if np.hypot(*np.ptp(scaled, axis=0)) <= best:  # its box has no longer line in it
            continue
        hull = corners[ConvexHull(scaled).vertices]
        steps = (hull[:, None] - hull[None]) * spacing
        lengths = np.hypot(steps[..., 0], steps[..., 1])
        first, second = np.unravel_index(int(lengths.argmax()), lengths.shape)
        if lengths[first, second] > best:
            best, line, where = float(lengths[first, second]), hull[[first, second]], int(frame)
    if not best:
        return ()
    unit = MILLIMETRE if stack.spacing is not None else PIXELS
    (top, left), (bottom, right) = line.tolist()
    return (Measurement(LONG_AXIS, best, unit, frame=where, line=((left, top), (right, bottom))),)


def _corners(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Outer corners of the first and the last pixel of each row, as ``(n, 2)`` row and column."""
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    ends = [np.stack([rows + down, side], axis=1) for down in (0, 1) for side in (left, right)]
    return np.concatenate(ends).astype(np.float64)


def thicknesses(stack: ImageStack) -> NDArray[np.float64] | None:
    """What each frame stands for along the normal, mm: half the way to each neighbour.

    The outer frames stand for as much outwards as inwards. Distances are measured along the
    slice normal, so that a tilted gantry's sheared stack counts rightly. None for projections
    and single frames.
    """
    if stack.positions is None or stack.orientation is None or len(stack.positions) < 2:
        return None
    normal = np.cross(stack.orientation[:3], stack.orientation[3:])
    gaps = np.abs(np.diff(stack.positions @ normal))
    return np.asarray((np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2)


def notes(stack: ImageStack) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    if stack.positions is None:
        return (AT_DETECTOR,) if stack.spacing is not None else (NO_SPACING,)
    if stack.spacing is None:
        return (NO_VOLUME_SPACING,) if len(stack.positions) > 1 else (NO_SPACING,)
    return (NO_SLICE_THICKNESS,) if len(stack.positions) < 2 else ()
