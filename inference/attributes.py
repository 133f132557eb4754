"""Owns how an untrusted attribute becomes a plain value, and where a frame keeps it.

Refuses to know what any attribute means. Whatever a sender wrote, the outcome is a value of the
asked kind or a `ReadingError` that names the keyword and never repeats the content.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset

from inference.errors import ReadingError

UID = re.compile(r"[0-9.]{1,64}")

_MACROS = {
    "PixelSpacing": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ImagerPixelSpacing": "FramePixelDataPropertiesSequence",
    "EstimatedRadiographicMagnificationFactor": "ProjectionPixelCalibrationSequence",
    "ShutterShape": "FrameDisplayShutterSequence",
    "ShutterLeftVerticalEdge": "FrameDisplayShutterSequence",
    "ShutterRightVerticalEdge": "FrameDisplayShutterSequence",
    "ShutterUpperHorizontalEdge": "FrameDisplayShutterSequence",
    "ShutterLowerHorizontalEdge": "FrameDisplayShutterSequence",
    "CenterOfCircularShutter": "FrameDisplayShutterSequence",
    "RadiusOfCircularShutter": "FrameDisplayShutterSequence",
    "VerticesOfThePolygonalShutter": "FrameDisplayShutterSequence",
}
"""The functional group macro of each attribute that may differ by frame (PS3.3 C.7.6.16)."""


@dataclass(frozen=True)
class Frame:
    """One frame of an instance; ``index`` counts from 0, ``of`` says how many there are."""

    dataset: Dataset
    index: int = 0
    of: int = 1
    groups: tuple[Dataset, ...] = field(default=(), repr=False)

    def macro(self, keyword: str) -> Any:
        """The value in this frame's functional groups, else in the shared ones, else None."""
        for group in self.groups:
            for item in get(group, _MACROS.get(keyword, "")) or ():
                if (found := get(item, keyword)) is not None:
                    return found
        return None

    def get(self, keyword: str) -> Any:
        """The value for this frame: functional groups before the data set itself."""
        found = self.macro(keyword) if self.groups else None
        return get(self.dataset, keyword) if found is None else found


def frames_of(dataset: Dataset, count: int) -> list[Frame]:
    """All ``count`` frames of an instance.

    Raises:
        ReadingError: the functional groups are not one per frame.
    """
    shared = tuple(get(dataset, "SharedFunctionalGroupsSequence") or ())[:1]
    per_frame = get(dataset, "PerFrameFunctionalGroupsSequence") or ()
    if per_frame and len(per_frame) != count:
        raise ReadingError(f"{len(per_frame)} functional groups for {count} frames")
    return [
        Frame(dataset, i, count, (per_frame[i], *shared) if per_frame else shared)
        for i in range(count)
    ]


def get(source: Dataset | Frame, keyword: str) -> Any:
    """The value of an attribute, None where it is absent or empty.

    Raises:
        ReadingError: its bytes are no value of its kind.
    """
    if isinstance(source, Frame):
        return source.get(keyword)
    try:
        found = source.get(keyword)
        empty = found is None or (not isinstance(found, int | float) and len(found) == 0)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        # pydicom parses on access and raises whatever its parsers raise; what they say may
        # repeat the content, so it is not passed on.
        raise ReadingError(f"{keyword} cannot be read") from None
    return None if empty else found


def numbers(
    source: Dataset | Frame, keyword: str, count: int | None = None
) -> tuple[float, ...] | None:
    """A numeric attribute as finite floats, None where it is absent or empty.

    Raises:
        ReadingError: not numbers, not finite, or not ``count`` of them.
    """
    found = get(source, keyword)
    if found is None:
        return None
    try:
        several = isinstance(found, Sequence) and not isinstance(found, str | bytes)
        values = tuple(float(value) for value in (found if several else (found,)))
    except (TypeError, ValueError, OverflowError):
        raise ReadingError(f"{keyword} is not a number") from None
    if not all(math.isfinite(value) for value in values):
        raise ReadingError(f"{keyword} is not finite")
    if count is not None and len(values) != count:
        raise ReadingError(f"{keyword} has {len(values)} values instead of {count}")
    return values


def number(source: Dataset | Frame, keyword: str) -> float | None:
    """A single finite number, None where it is absent or empty."""
    found = numbers(source, keyword, 1)
    return None if found is None else found[0]


def integer(source: Dataset | Frame, keyword: str, default: int | None = None) -> int:
    """A whole number.

    Raises:
        ReadingError: it is absent and there is no default, or it is not whole.
    """
    found = number(source, keyword)
    if found is None:
        if default is None:
            raise ReadingError(f"{keyword} is absent")
        return default
    if found != int(found):
        raise ReadingError(f"{keyword} is not a whole number")
    return int(found)


def text(source: Dataset | Frame, keyword: str) -> str:
    """A single string without padding, "" where it is absent."""
    found = get(source, keyword)
    return "" if found is None else str(found).strip(" \0")


@contextmanager
def about(dataset: Dataset | None, doing: str = "read") -> Iterator[None]:
    """Lets nothing but `ReadingError` out, with the SOP Instance UID of ``dataset`` on it.

    pydicom and the codecs raise almost every type there is on hostile data. Their messages may
    quote it, so only the type's name goes on (``from None`` keeps it out of tracebacks too).
    """
    try:
        yield
    except ReadingError as error:
        if error.sop_instance_uid is None and dataset is not None:
            raise ReadingError(error.reason, sop_instance_uid(dataset)) from None
        raise
    except RecursionError:
        reason = "sequences are nested too deeply"
    except MemoryError:
        reason = "memory did not suffice"
    except Exception as error:
        reason = f"cannot be {doing} ({type(error).__name__})"
    else:
        return
    raise ReadingError(reason, None if dataset is None else sop_instance_uid(dataset)) from None


def sop_instance_uid(dataset: Dataset) -> str | None:
    """The SOP Instance UID if it looks like one: anything else does not belong in a message."""
    try:
        found = str(dataset.get("SOPInstanceUID", ""))
    except Exception:
        return None
    return found if UID.fullmatch(found) else None
