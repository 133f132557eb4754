"""Owns DICOM Segmentations as truth: each frame where the images that it cites lie.

Refuses to resample: a segmentation on another grid than its images is an error. What a
segmentation leaves out is not there (PS3.3 A.51: empty frames need not be stored), so it must
have been made with all of the recipe's channels in mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels

from inference.errors import ReadingError
from inference.types import ImageStack
from training.errors import RecipeError
from training.readers.archive import SEGMENTATIONS, Archive, Instance, archive
from training.readers.common import Problems, Unusable, by_licence, dicom_header, frame_numbers
from training.recipe import Bundle, DicomSeg
from training.samples import Samples, Truth

HALF = 0.5
"""Of a fractional segmentation: from here on a pixel belongs to its segment."""

NEAR_MM, NEAR_COSINE = 0.05, 1e-3
"""How far a frame may lie from its image for both to be at one place: digits differ in writing."""

LABEL_MAP = SEGMENTATIONS[1]


@dataclass(frozen=True)
class Placed:
    """A frame of a segmentation.

    Attributes:
        index: among its frames, from 0.
        segment: its number; None in a label map, which shows all.
        cited: (SOP Instance UID, frame from 1) of the images that it was drawn on.
        position: Image Position (Patient), or None.
        orientation: Image Orientation (Patient), or None.
    """

    index: int
    segment: int | None
    cited: tuple[tuple[str, int], ...]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None


@dataclass(frozen=True)
class Drawn:
    """A segmentation whose header was read: which of its segments are which channels, and where."""

    path: Path
    channels: dict[int, int]
    frames: tuple[Placed, ...]


def read(data: DicomSeg, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Series (or single images, as the bundle selects) with what was drawn on them.

    Images that no segmentation refers to are passed over. Several segmentations of one series, and
    several segments of one channel, are joined.

    Raises:
        DataError: there is no such folder.
        RecipeError: the task is not segmentation.
    """
    if bundle.task != "segmentation":
        raise RecipeError(f"data.kind: dicom-seg gives masks, not what {bundle.task} needs")
    wanted = _wanted(data, bundle)
    found = archive(root / data.folder, SEGMENTATIONS, problems)
    drawn: dict[str, list[Drawn]] = {}
    seen: set[int] = set()
    for uid, instance in found.objects.items():
        try:
            what, images = _drawn(instance, wanted, found)
        except Unusable as error:
            problems.add(str(error), uid)
            continue
        seen |= set(what.channels.values())
        for unit in dict.fromkeys(found.unit(image, bundle.select.unit) for image in images):
            drawn.setdefault(unit, []).append(what)
    missing = [wanted[channel] for channel in wanted if channel not in seen]
    for name in missing if drawn else []:
        problems.add("classes without a segment (draw some, or correct data.segments)", name)
    samples = [
        found.sample(unit, Truth(masks=_Masks(found, unit, tuple(seg), len(wanted))), data.licence)
        for unit, seg in drawn.items()
    ]
    return by_licence(samples, data.licences)


def _wanted(data: DicomSeg, bundle: Bundle) -> dict[int, str]:
    """For each channel the label or code of its segments."""
    count = bundle.architecture.classes
    named = dict(enumerate(data.segments)) or {of.channel: of.label for of in bundle.labels}
    if sorted(named) != list(range(count)):
        raise RecipeError(f"data.segments: name a segment for each of the {count} channels")
    return dict(sorted(named.items()))


def _drawn(instance: Instance, wanted: dict[int, str], found: Archive) -> tuple[Drawn, list[str]]:
    """A segmentation, and the images that it speaks of.

    Raises:
        Unusable: nothing in it is wanted; or images that it was drawn on are not there.
    """
    header = dicom_header(instance.path)
    try:
        numbers = _channels(header, wanted)
        frames = _frames(header)
        listed = [
            str(item.ReferencedSOPInstanceUID)
            for series in header.get("ReferencedSeriesSequence") or []
            for item in series.get("ReferencedInstanceSequence") or []
        ]
    except Exception:  # pydicom parses on access and raises whatever its parsers raise
        raise Unusable("segmentations that are malformed (replace them)") from None
    if not numbers:
        labels = ", ".join(wanted.values())
        raise Unusable(f"segmentations of nothing that the recipe knows (it knows {labels})")
    chosen = [frame for frame in frames if frame.segment is None or frame.segment in numbers]
    cited = [uid for frame in chosen for uid, _ in frame.cited]
    images = found.known([*cited, *listed])
    if not images or len(found.known(cited)) < len(set(cited)):
        raise Unusable("segmentations of images that are missing (add the images)")
    return Drawn(instance.path, numbers, tuple(chosen)), images


def _channels(header: Dataset, wanted: dict[int, str]) -> dict[int, int]:
    """Segment number to channel: by label, else by the code of the property type."""
    by_name = {name.casefold(): channel for channel, name in wanted.items()}
    numbers = {}
    for item in header.SegmentSequence:
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or []
        names = [str(item.get("SegmentLabel") or ""), *(str(k.get("CodeValue")) for k in kinds)]
        for name in names:
            if name.casefold() in by_name:
                numbers[int(item.SegmentNumber)] = by_name[name.casefold()]
                break
    return numbers


def _frames(header: Dataset) -> list[Placed]:
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    label_map = header.SOPClassUID == LABEL_MAP
    frames = []
    for index, groups in enumerate(header.PerFrameFunctionalGroupsSequence):

        def macro(keyword: str, groups: Dataset = groups) -> Dataset:
            found: Dataset = (groups.get(keyword) or shared.get(keyword) or [Dataset()])[0]
            return found

        segment = macro("SegmentIdentificationSequence").get("ReferencedSegmentNumber")
        derived = groups.get("DerivationImageSequence") or shared.get("DerivationImageSequence")
        frames.append(
            Placed(
                index,
                None if label_map else int(segment),
                tuple(
                    (str(image.ReferencedSOPInstanceUID), number)
                    for item in derived or []
                    for image in item.get("SourceImageSequence") or []
                    for number in frame_numbers(image) or [1]
                ),
                _numbers(macro("PlanePositionSequence"), "ImagePositionPatient"),
                _numbers(macro("PlaneOrientationSequence"), "ImageOrientationPatient"),
            )
        )
    return frames


def _numbers(item: Dataset, keyword: str) -> tuple[float, ...] | None:
    found = item.get(keyword)
    return tuple(float(v) for v in found) if found else None


@dataclass(frozen=True, repr=False)
class _Masks:
    """Reads the masks of one sample, ``(classes, frames, rows, columns)`` bool, when called.

    Has no text of its own: it holds headers, and they name patients.

    Raises:
        ReadingError: the images cannot be read; or a segmentation does not lie on their grid.
    """

    found: Archive
    unit: str
    drawn: tuple[Drawn, ...]
    classes: int

    def __call__(self) -> NDArray[np.bool_]:
        stack = self.found.stack(self.unit)
        masks = np.zeros((self.classes, *stack.shape), bool)
        for what in self.drawn:
            _draw(masks, what, stack)
        return masks


def _draw(masks: NDArray[np.bool_], what: Drawn, stack: ImageStack) -> None:
    """Adds the frames of one segmentation that lie on frames of the stack."""
    dataset = pydicom.dcmread(what.path)
    uid = str(dataset.SOPInstanceUID)
    if (dataset.Rows, dataset.Columns) != stack.shape[1:]:
        raise ReadingError("a segmentation has other rows and columns than its images", uid)
    places = {(ref.sop_instance_uid, ref.frame): i for i, ref in enumerate(stack.frames)}
    where = [(frame, _place(frame, places, stack, uid)) for frame in what.frames]
    kept = [(frame, place) for frame, place in where if place is not None]
    most = float(dataset.get("MaximumFractionalValue") or 1)
    fractional = dataset.get("SegmentationType") == "FRACTIONAL"
    for (frame, place), pixels in zip(kept, _pixels(dataset, [f for f, _ in kept]), strict=True):
        if frame.segment is None:
            for number, channel in what.channels.items():
                masks[channel, place] |= pixels == number
        else:
            held = pixels >= HALF * most if fractional else pixels > 0
            masks[what.channels[frame.segment], place] |= held


def _pixels(dataset: Dataset, frames: Sequence[Placed]) -> list[NDArray[Any]]:
    """Decoded frames, in the order asked for."""
    wanted = [frame.index for frame in frames]
    if not wanted:
        return []
    try:
        if dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return [_bits(dataset, index) for index in wanted]
        return list(iter_pixels(dataset, indices=wanted, raw=True))
    except Exception as error:  # codecs raise almost every type there is
        name = type(error).__name__
        raise ReadingError(f"cannot be decoded: {name}", str(dataset.SOPInstanceUID)) from None


def _bits(dataset: Dataset, index: int) -> NDArray[Any]:
    """A frame of single bits, first pixel in the lowest bit (PS3.5 8.1.1).

    Such a frame need not begin at a byte; pydicom 3.0 decodes single frames only where it does.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    start, size = index * rows * columns, rows * columns
    data = np.frombuffer(dataset.PixelData, np.uint8)[start // 8 : (start + size + 7) // 8]
    bits = np.unpackbits(data, bitorder="little")[start % 8 : start % 8 + size]
    return bits.reshape(rows, columns)


def _place(
    frame: Placed, places: dict[tuple[str, int], int], stack: ImageStack, uid: str
) -> int | None:
    """Index of the frame of the stack that a frame of the segmentation lies on.

    None where it was drawn on other images alone, which belong to another sample. Without a
    citation the position decides.
    """
    cited = [places[ref] for ref in frame.cited if ref in places]
    if frame.cited and not cited:
        return None
    at = cited[0] if len(cited) == 1 else _nearest(frame, stack, uid)
    if not _lies_on(frame, stack, at):
        raise ReadingError("a segmentation lies elsewhere than the images that it cites", uid)
    return at


def _nearest(frame: Placed, stack: ImageStack, uid: str) -> int:
    if stack.positions is None or frame.position is None:
        raise ReadingError("a segmentation does not tell which image it was drawn on", uid)
    return int(np.argmin(np.linalg.norm(stack.positions - frame.position, axis=1)))


def _lies_on(frame: Placed, stack: ImageStack, at: int) -> bool:
    """Whether position and orientation agree; images without them take what cites them."""
    if stack.positions is None or stack.orientation is None or frame.position is None:
        return True
    near = np.allclose(stack.positions[at], frame.position, rtol=0, atol=NEAR_MM)
    turned = frame.orientation is not None and not np.allclose(
        stack.orientation, frame.orientation, rtol=0, atol=NEAR_COSINE
    )
    return bool(near) and not turned
