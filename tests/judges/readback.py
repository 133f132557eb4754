"""Reads objects with pydicom and highdicom and compares them with what they were made from.

Segmentations voxel for voxel, each segment on the grid of its source; reports content item by
content item as highdicom understands them. pydicom reads everything strictly: a value that breaks
its VR is a complaint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.results.types import Source
from inference.types import Segment
from tests.judges.types import LABEL_MAP, Origin, Verdict, kind_of, parse
from tests.tid1500 import concept, groups


def readback(data: bytes, origin: Origin) -> Verdict:
    """pydicom and highdicom find in it what was put in."""
    dataset = parse(data)
    readers = {
        "seg": lambda: _segmentation(data, origin),
        "sr": lambda: _report(dataset),
        "sc": lambda: _picture(dataset),
    }
    found = list(strictly(data))
    try:
        found += readers[kind_of(dataset)]()
    except Exception as error:  # what they raise on a broken object is not ours to know
        found.append(f"a reader raises {type(error).__name__}: {error}")
    return found


def strictly(data: bytes) -> Iterator[str]:
    """Values that pydicom finds to break their VR."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.RAISE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in parse(data).iterall():
                pass
    except Exception as error:  # likewise
        yield f"pydicom: {type(error).__name__}: {error}"
    finally:
        settings.reading_validation_mode = before


def read_back(seg: hd.seg.Segmentation, source: Source, number: int) -> NDArray[np.bool_]:
    """One segment on the grid of the source, frame by frame through highdicom."""
    return values_of(seg, source, number) > 0


def values_of(seg: hd.seg.Segmentation, source: Source, number: int) -> NDArray[np.float64]:
    """As `read_back`; a fractional segmentation as fractions of 1."""
    planes = []
    for uid, refs in groupby(source.frames, key=lambda ref: ref.sop_instance_uid):
        if int(source.by_uid[uid].get("NumberOfFrames") or 1) > 1:
            plane = seg.get_pixels_by_source_frame(
                uid,
                [ref.frame for ref in refs],
                segment_numbers=[number],
                assert_missing_frames_are_empty=True,
            )
        else:
            plane = seg.get_pixels_by_source_instance(
                [uid],
                segment_numbers=[number],
                assert_missing_frames_are_empty=True,
            )
        planes.append(plane[..., 0])
    return np.concatenate(planes).astype(np.float64)


def by_pydicom(dataset: Dataset, source: Source, number: int) -> NDArray[np.float64]:
    """As `values_of`, with nothing but pydicom: each frame where its derivation says."""
    stored = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    where = {(ref.sop_instance_uid, ref.frame): i for i, ref in enumerate(source.frames)}
    values = np.zeros((len(source.frames), dataset.Rows, dataset.Columns))
    most = float(dataset.get("MaximumFractionalValue") or 1)
    for plane, frame in zip(stored, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        (cited,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = where[
            str(cited.ReferencedSOPInstanceUID), int(cited.get("ReferencedFrameNumber") or 1)
        ]
        if dataset.SOPClassUID == LABEL_MAP:
            values[place] = plane == number
        elif frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            values[place] = plane / most
    return values


def _segmentation(data: bytes, origin: Origin) -> Iterator[str]:
    seg = hd.seg.segread(BytesIO(data))
    dataset = parse(data)
    numbers = {str(item.SegmentLabel): int(item.SegmentNumber) for item in dataset.SegmentSequence}
    labels = [segment.label for segment in origin.found]
    if list(numbers) != labels:
        yield f"segments {list(numbers)} instead of {labels}"
        return
    # A fraction is rounded to the nearest that can be stored; a hair more for the arithmetic.
    near = 0.5001 / float(dataset.get("MaximumFractionalValue") or 1e9)
    for segment in origin.found:
        wanted = _wanted(segment, dataset)
        for reader, got in (
            ("highdicom", values_of(seg, origin.source, numbers[segment.label])),
            ("pydicom", by_pydicom(dataset, origin.source, numbers[segment.label])),
        ):
            differ = int(np.count_nonzero(np.abs(got - wanted) > near))
            if differ:
                yield f"{reader}: {segment.label}: {differ} voxels differ"


def _wanted(segment: Segment, dataset: Dataset) -> NDArray[np.float64]:
    if dataset.SegmentationType == "FRACTIONAL":
        assert segment.probability is not None
        return segment.probability.astype(np.float64)
    return segment.mask.astype(np.float64)


def _report(dataset: Dataset) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of all that it did not write itself
        read = hd.sr.srread(_bytes(dataset))
    if not isinstance(read.content, hd.sr.MeasurementReport):
        yield f"highdicom: content is {type(read.content).__name__}"
        return
    observers = [context.observer_type.value for context in read.content.get_observer_contexts()]
    if observers != ["121007"]:
        yield f"highdicom: observers {observers} instead of a device"
    for template, got in (
        ("1501", read.content.get_image_measurement_groups()),
        ("1410", read.content.get_planar_roi_measurement_groups()),
        ("1411", read.content.get_volumetric_roi_measurement_groups()),
    ):
        ours = groups(dataset, template)
        if len(got) != len(ours):
            yield f"highdicom: {len(got)} groups of TID {template} where {len(ours)} are written"
            continue
        for group, theirs in zip(ours, got, strict=True):
            uid = [c.UID for c in group.ContentSequence if concept(c) == "112040 DCM"]
            if uid != [theirs.tracking_uid]:
                yield f"highdicom: tracking UID {theirs.tracking_uid} instead of {uid}"


def _bytes(dataset: Dataset) -> BytesIO:
    buffer = BytesIO()
    dataset.save_as(buffer)
    buffer.seek(0)
    return buffer


def _picture(dataset: Dataset) -> Iterator[str]:
    """A capture decodes, and is more than one colour."""
    pixels = dataset.pixel_array
    if pixels.shape[:2] != (dataset.Rows, dataset.Columns):
        yield f"pydicom: pixels of {pixels.shape}"
    if np.ptp(pixels) == 0:
        yield "pydicom: a picture of one colour"
