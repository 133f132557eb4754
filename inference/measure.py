"""Owns what is measured on a mask: area on a projection, volume in a stack of slices.

Refuses to measure in millimetres where the source gave no spacing that can be trusted: then it
counts pixels and says so in the unit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.types import Code, ImageStack, Measurement

AREA = Code("42798000", "SCT", "Area")
VOLUME = Code("118565006", "SCT", "Volume")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
MILLILITRE = Code("ml", "UCUM", "milliliter")
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
