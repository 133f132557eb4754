"""Owns the way from DICOM data sets to an `ImageStack`; the only door by which images come in.

Refuses to know what a model wants, which series of a study is the right one, and who the patient
is. Input is hostile until read: whatever it holds, the outcome is a stack or a `ReadingError`
that names the instance and the reason.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from inference import geometry, pixels, validity
from inference.attributes import UID, Frame, about, frames_of, text
from inference.errors import ReadingError
from inference.types import FrameRef, ImageStack, Unit

MAX_PIXELS = 2**30
"""Values of one stack, channels counted: 4096 CT slices, up to 4 GiB as float32."""

MAX_INFLATED = 2**30
"""Bytes that a deflated file may inflate to: 292 KB have been seen to become 572 MiB."""


def read(datasets: Sequence[Dataset], *, max_pixels: int = MAX_PIXELS) -> ImageStack:
    """Makes one stack of the instances of one series, or of one image, or of one multi-frame.

    Frames are ordered by their position along ``row direction x column direction``, never by
    number or name, where they have positions; frames at the same place are kept. Values are in
    the unit that `pixels.transform` describes: integers where the source's are and stay so
    (int16, or int32 where that is too narrow), else float32. Where pixels of unit ``1`` are not
    ``valid`` they are 0, which is how a viewer shows them; others keep their value.

    Args:
        datasets: with file meta (the transfer syntax) and pixel data, in any order.
        max_pixels: more values than these are refused before anything is decoded.

    Raises:
        ReadingError: nothing to read; not an image; frames on different grids (`group_by_grid`
            tells them apart); larger than ``max_pixels``; damaged or malformed.
    """
    if not datasets:
        raise ReadingError("no instances")
    layouts = []
    for dataset in datasets:
        with about(dataset):
            layouts.append(pixels.layout(dataset))
    total = sum(declared.values for declared in layouts)
    if total > max_pixels:
        raise ReadingError(f"{total} values declared, at most {max_pixels} are read")
    size = sum(declared.values * declared.allocated // 8 for declared in layouts)
    if size > 4 * max_pixels:  # doubles: as many would take twice the room of any other
        raise ReadingError(f"{size} bytes declared, at most {4 * max_pixels} are read")

    frames: list[Frame] = []
    grids: list[geometry.Grid] = []
    positions: list[tuple[float, ...] | None] = []
    transforms: list[pixels.Transform] = []
    for dataset, declared in zip(datasets, layouts, strict=True):
        with about(dataset):
            pixels.check_data(dataset, declared)
            for frame in frames_of(dataset, declared.frames):
                frames.append(frame)
                grids.append(geometry.grid(frame, declared))
                positions.append(geometry.position(frame))
                transforms.append(pixels.transform(frame, declared, grids[-1].modality))
                _same(grids[0], grids[-1], transforms[0].unit, transforms[-1].unit)
    with about(datasets[0]):
        lies, unit = grids[0], transforms[0].unit
        order = geometry.order(frames, positions, lies)
        stack, valid = _decode(datasets, layouts, frames, transforms, order=order, lies=lies)
        ordered = [positions[i] for i in order]
        placed = lies.orientation is not None
        return ImageStack(
            pixels=stack,
            unit=unit,
            modality=lies.modality,
            frames=tuple(_reference(frames[i]) for i in order),
            positions=np.array(ordered, dtype=np.float64) if placed else None,
            orientation=np.array(lies.orientation, dtype=np.float64) if placed else None,
            spacing=lies.spacing,
            spacing_source=lies.spacing_source,
            patient_orientation=lies.patient_orientation,
            frame_of_reference_uid=lies.frame_of_reference_uid,
            valid=valid,
            presentation_intent=lies.presentation_intent,
            photometric=lies.photometric,
        )


def read_files(
    paths: Iterable[Path], *, max_pixels: int = MAX_PIXELS, max_inflated: int = MAX_INFLATED
) -> ImageStack:
    """`read` for Part 10 files, in any order.

    Args:
        paths: of the files; never repeated in an error, for names of files may name patients.
        max_pixels: see `read`.
        max_inflated: bytes that one deflated file may inflate to.

    Raises:
        ReadingError: as `read`; or a file is no Part 10 file, or inflates beyond its limit.
    """
    datasets = []
    for i, path in enumerate(paths, start=1):
        with about(None, "parsed"):
            try:
                _check_inflation(path, max_inflated)
                datasets.append(pydicom.dcmread(path))
            except (OSError, pydicom.errors.InvalidDicomError) as error:
                raise ReadingError(f"file {i} cannot be opened: {type(error).__name__}") from None
    return read(datasets, max_pixels=max_pixels)


def group_by_grid(datasets: Sequence[Dataset]) -> list[list[Dataset]]:
    """Splits instances into groups that `read` can stack: the one with most frames first.

    Grouped by modality, rows, columns, colour, orientation and spacing (each within 1e-4), frame
    of reference, and, without positions, patient orientation. Order within a group is kept;
    groups of one size come in the order of their SOP Instance UIDs. A multi-frame image counts by
    its first frame: one whose own frames differ is refused by `read`.

    Raises:
        ReadingError: an instance is not an image or malformed.
    """
    groups: list[tuple[geometry.Grid, list[Dataset], list[int]]] = []
    for dataset in datasets:
        with about(dataset):
            declared = pixels.layout(dataset)
            lies = geometry.grid(frames_of(dataset, declared.frames)[0], declared)
        for known, members, counts in groups:
            if known.difference(lies) is None:
                members.append(dataset)
                counts.append(declared.frames)
                break
        else:
            groups.append((lies, [dataset], [declared.frames]))
    groups.sort(key=lambda g: (-sum(g[2]), min(text(ds, "SOPInstanceUID") for ds in g[1])))
    return [members for _, members, _ in groups]


def _same(grid: geometry.Grid, other: geometry.Grid, unit: Unit, other_unit: Unit) -> None:
    difference = grid.difference(other) or ("unit of values" if unit != other_unit else None)
    if difference:
        raise ReadingError(f"frames differ in {difference}")


def _reference(frame: Frame) -> FrameRef:
    uids = text(frame, "SOPInstanceUID"), text(frame, "SOPClassUID")
    if not all(UID.fullmatch(uid) for uid in uids):
        raise ReadingError("SOPInstanceUID or SOPClassUID is absent or no UID")
    return FrameRef(*uids, frame=frame.index + 1)


def _decode(
    datasets: Sequence[Dataset],
    layouts: Sequence[pixels.Layout],
    frames: Sequence[Frame],
    transforms: Sequence[pixels.Transform],
    *,
    order: Sequence[int],
    lies: geometry.Grid,
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Pixels and validity, every frame at its place in ``order``."""
    shape = (len(frames), lies.rows, lies.columns)
    place = {i: k for k, i in enumerate(order)}
    if lies.colour:
        stack: NDArray[Any] = np.empty((*shape, 3), dtype=np.uint8)
    elif all(transform.exact for transform in transforms):
        stack = np.empty(shape, dtype=np.int16)
    else:
        stack = np.empty(shape, dtype=np.float32)
    valid: NDArray[np.bool_] | None = None
    i = 0
    for dataset, declared in zip(datasets, layouts, strict=True):
        with about(dataset):
            for stored in pixels.decode(dataset, declared):
                frame, transform, k = frames[i], transforms[i], place[i]
                i += 1
                hidden = validity.hidden(frame, declared, stored)
                if stack.dtype.kind == "i":
                    stack = _put_exactly(stack, k, transform.looked_up(stored), transform.offset)
                else:
                    stack[k] = stored if lies.colour else transform.floats(stored)
                if hidden is not None:
                    valid = np.ones(shape, dtype=bool) if valid is None else valid
                    valid[k] = ~hidden
                    if transform.unit == "1":
                        stack[k][hidden] = 0
    return stack, valid


def _put_exactly(stack: NDArray[Any], k: int, values: NDArray[Any], offset: float) -> NDArray[Any]:
    """Writes ``values + offset`` into frame ``k``; a wider stack where they do not fit.

    A 16-bit CT declares a range that with its intercept would need 32 bits, and hardly ever uses
    it: what is there decides.
    """
    limits = np.iinfo(stack.dtype)
    low, high = int(values.min()) + int(offset), int(values.max()) + int(offset)
    if low < limits.min or high > limits.max:
        stack = stack.astype(np.int32)
    np.add(values, int(offset), out=stack[k], dtype=np.int32, casting="unsafe")
    return stack


def _check_inflation(path: Path, most: int) -> None:
    """Inflates a deflated file without keeping the result, to know its size beforehand."""
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    with path.open("rb") as file:
        # The group length element takes 12 bytes and counts from its own end (PS3.10 7.1).
        file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        while chunk := inflate.unconsumed_tail or file.read(2**16):
            size += len(inflate.decompress(chunk, 2**20))
            if size > most:
                raise ReadingError(f"inflates to more than {most} bytes")
