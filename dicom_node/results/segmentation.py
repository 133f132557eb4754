"""Owns the DICOM Segmentation: masks as BINARY frames that lie exactly where their source lies.

Refuses to measure or to judge. Frames without a pixel are left out (PS3.3 A.51); a prediction
without any pixel makes no segmentation at all, its absence stands in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from dicom_node.errors import ResultError
from dicom_node.results.codes import (
    ARTIFICIAL_INTELLIGENCE,
    SEGMENTATION,
    SOURCE_IMAGE_FOR_PROCESSING,
)
from dicom_node.results.content import coded, long_string
from dicom_node.results.encode import encoded_sequence, fragment, put_encoded_items, ready_to_write
from dicom_node.results.evidence import referenced_series
from dicom_node.results.geometry import Geometry, geometry
from dicom_node.results.header import common
from dicom_node.results.identity import Identity
from dicom_node.results.normalise import fit_character_set
from dicom_node.results.types import Source
from inference.types import FrameRef, Segment

PER_FRAME = 0x52009230
DERIVATION_IMAGE = 0x00089124
SOURCE_IMAGE = 0x00082112
REFERENCED_SEGMENT_NUMBER = 0x0062000B
SEGMENT_IDENTIFICATION = 0x0062000A
IMAGE_POSITION_PATIENT = 0x00200032
PLANE_POSITION = 0x00209113
TEMPORAL_POSITION_INDEX = 0x00209128
FRAME_CONTENT = 0x00209111

FLAT = ("1", "0", "0", "0", "1", "0")
ORIGIN = ("0", "0", "0")
"""Of sources without patient geometry. No claim about the patient, as there is no Frame of
Reference; OHIF does not load a segmentation without an orientation and a position."""


@dataclass(frozen=True)
class SegmentNumber:
    """How a segment of the prediction is found in the segmentation.

    Attributes:
        number: Segment Number, from 1.
        frames: numbers of its frames, from 1.
        tracking_uid: the same in the report.
    """

    number: int
    frames: tuple[int, ...]
    tracking_uid: str


def segmentation(
    segments: Sequence[Segment], identity: Identity
) -> tuple[Dataset, dict[int, SegmentNumber]] | None:
    """The segments that are not empty as one DICOM Segmentation.

    Args:
        segments: ``Prediction.segments``; masks on the grid of ``identity.source.frames``.
        identity: of the job.

    Returns:
        the object, and for each index into ``segments`` where to find it; None when all are empty.

    Raises:
        ResultError: a mask does not lie on the grid of the source.
    """
    source = identity.source
    for segment in segments:
        _check_grid(segment, source)
    occupied = {
        index: np.flatnonzero(segment.mask.any(axis=(1, 2)))
        for index, segment in enumerate(segments)
    }
    occupied = {index: frames for index, frames in occupied.items() if len(frames)}
    if not occupied:
        return None

    places = geometry(source)
    dataset = common("seg", SegmentationStorage, "SEG", identity)
    _describe_image(dataset, source, places)
    dataset.ReferencedSeriesSequence = referenced_series(source.by_uid.values())

    numbered, count = {}, 0
    for number, (index, frames) in enumerate(occupied.items(), start=1):
        numbered[index] = SegmentNumber(
            number,
            tuple(range(count + 1, count + len(frames) + 1)),
            identity.tracking("segment", index),
        )
        count += len(frames)
    dataset.SegmentSequence = [
        _describe_segment(segments[index], entry, identity) for index, entry in numbered.items()
    ]
    masks = [segments[index].mask for index in occupied]
    dataset.SegmentsOverlap = "YES" if _overlap(masks) else "NO"

    _describe_dimensions(dataset, identity.dimensions(), places)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(places)]
    items = _frame_items(source, places, list(occupied.values()))
    put_encoded_items(dataset, PER_FRAME, items)
    dataset.NumberOfFrames = len(items)
    dataset.add_new(0x7FE00010, "OB", _pack(masks, list(occupied.values())))

    fit_character_set(dataset, source.first)
    ready_to_write(dataset)
    return dataset, numbered


def _check_grid(segment: Segment, source: Source) -> None:
    first = source.by_uid[source.frames[0].sop_instance_uid] if source.frames else source.first
    grid = (len(source.frames), int(first.get("Rows") or 0), int(first.get("Columns") or 0))
    if segment.mask.shape != grid:
        raise ResultError(f"mask of shape {segment.mask.shape} on a source of {grid}")
    if segment.mask.dtype != np.bool_:
        raise ResultError(f"mask of {segment.mask.dtype} instead of bool")


def _describe_image(dataset: Dataset, source: Source, places: Geometry) -> None:
    """Segmentation Image, General Image and Frame of Reference modules (PS3.3 C.8.20.2)."""
    first = source.by_uid[source.frames[0].sop_instance_uid]
    if places.frame_of_reference_uid:
        dataset.FrameOfReferenceUID = places.frame_of_reference_uid
        dataset.PositionReferenceIndicator = str(first.get("PositionReferenceIndicator") or "")
    if places.positions is None:
        dataset.PatientOrientation = [str(d) for d in first.get("PatientOrientation") or []] or ""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "SEGMENTATION"
    dataset.ContentDescription = dataset.SeriesDescription
    dataset.ContentCreatorName = ""
    dataset.SegmentationType = "BINARY"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = int(first.Rows), int(first.Columns)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
    dataset.PixelRepresentation = 0
    lossy = [ds for ds in source.by_uid.values() if ds.get("LossyImageCompression") == "01"]
    dataset.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy and lossy[0].get(keyword):
            setattr(dataset, keyword, lossy[0].get(keyword))


def _describe_segment(segment: Segment, entry: SegmentNumber, identity: Identity) -> Dataset:
    """Segment Description macro (PS3.3 C.8.20.4)."""
    model = identity.model
    item = Dataset()
    item.SegmentNumber = entry.number
    item.SegmentLabel = long_string(segment.label)
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = long_string(f"{model.name} {model.version}")
    item.SegmentedPropertyCategoryCodeSequence = [coded(segment.category)]
    kind = coded(segment.type)
    if segment.laterality:
        kind.SegmentedPropertyTypeModifierCodeSequence = [coded(segment.laterality)]
    item.SegmentedPropertyTypeCodeSequence = [kind]
    rgb = (min(max(value, 0), 255) for value in segment.colour)
    item.RecommendedDisplayCIELabValue = list(CIELabColor.from_rgb(*rgb).value)
    item.TrackingID = item.SegmentLabel
    item.TrackingUID = entry.tracking_uid
    algorithm = Dataset()
    algorithm.AlgorithmFamilyCodeSequence = [coded(ARTIFICIAL_INTELLIGENCE)]
    algorithm.AlgorithmName = long_string(model.name)
    algorithm.AlgorithmVersion = long_string(model.version)
    algorithm.AlgorithmSource = long_string(model.manufacturer)
    if model.parameters:
        algorithm.AlgorithmParameters = "\n".join(
            f"{key}={value}" for key, value in sorted(model.parameters.items())
        )
    item.SegmentationAlgorithmIdentificationSequence = [algorithm]
    return item


def _describe_dimensions(dataset: Dataset, uid: str, places: Geometry) -> None:
    """Frames are indexed by segment, then by place (or by time where all lie in one place)."""
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    second = (
        (TEMPORAL_POSITION_INDEX, FRAME_CONTENT, "Frame of the source")
        if places.positions is None
        else (IMAGE_POSITION_PATIENT, PLANE_POSITION, "Image Position (Patient)")
    )
    dataset.DimensionIndexSequence = []
    for pointer, group, label in (
        (REFERENCED_SEGMENT_NUMBER, SEGMENT_IDENTIFICATION, "Segment Number"),
        second,
    ):
        item = Dataset()
        item.DimensionIndexPointer, item.FunctionalGroupPointer = pointer, group
        item.DimensionOrganizationUID = uid
        item.DimensionDescriptionLabel = label
        dataset.DimensionIndexSequence.append(item)


def _one_orientation(places: Geometry) -> tuple[str, ...] | None:
    """The orientation that all frames share to the digit; None when they differ."""
    orientations = set(places.orientations or (FLAT,))
    return orientations.pop() if len(orientations) == 1 else None


def _shared_groups(places: Geometry) -> Dataset:
    shared = Dataset()
    measures = Dataset()
    if places.spacing:
        measures.PixelSpacing = list(places.spacing)
    if places.thickness:
        measures.SliceThickness = places.thickness
    if places.distance:
        measures.SpacingBetweenSlices = places.distance
    # Without spacing nothing is told in millimetres: the macro is optional where frames are
    # derived from referenced images (PS3.3 Table A.51-2), and highdicom reads none but whole ones.
    if len(measures):
        shared.PixelMeasuresSequence = [measures]
    orientation = _one_orientation(places)
    if orientation:
        plane = Dataset()
        plane.ImageOrientationPatient = list(orientation)
        shared.PlaneOrientationSequence = [plane]
    return shared


def _frame_items(source: Source, places: Geometry, occupied: list[NDArray[np.intp]]) -> list[bytes]:
    """Encoded per-frame functional groups, segment by segment in mask order."""
    datasets = source.by_uid
    turned = _one_orientation(places) is None
    derive = _derivations(datasets)
    wanted = sorted({int(i) for frames in occupied for i in frames})
    derivations = {i: derive(source.frames[i]) for i in wanted}
    planes = {i: fragment(_plane(places, i, turned=turned)) for i in wanted}
    items = []
    for number, frames in enumerate(occupied, start=1):
        identification = Dataset()
        identification.ReferencedSegmentNumber = number
        segment = encoded_sequence(SEGMENT_IDENTIFICATION, fragment(identification))
        for i in map(int, frames):
            content = Dataset()
            # A dimension index is an ordinal: two frames at one position keep two of them, so
            # that no two frames of a segment share all their indices.
            content.DimensionIndexValues = [number, i + 1]
            if places.positions is None:
                content.TemporalPositionIndex = i + 1
            frame_content = encoded_sequence(FRAME_CONTENT, fragment(content))
            items.append(derivations[i] + frame_content + planes[i] + segment)
    return items


def _derivations(datasets: dict[str, Dataset]) -> Callable[[FrameRef], bytes]:
    """Derivation Image macro of a frame, encoded; what is the same for all is encoded once."""
    constant = Dataset()
    constant.SpatialLocationsPreserved = "YES"
    constant.PurposeOfReferenceCodeSequence = [coded(SOURCE_IMAGE_FOR_PROCESSING)]
    how = Dataset()
    how.DerivationCodeSequence = [coded(SEGMENTATION)]
    purpose, derivation = fragment(constant), fragment(how)

    def encoded(ref: FrameRef) -> bytes:
        image = Dataset()
        image.ReferencedSOPClassUID = ref.sop_class_uid
        image.ReferencedSOPInstanceUID = ref.sop_instance_uid
        if datasets[ref.sop_instance_uid].get("NumberOfFrames") is not None:
            image.ReferencedFrameNumber = ref.frame
        sources = encoded_sequence(SOURCE_IMAGE, fragment(image) + purpose)
        return encoded_sequence(DERIVATION_IMAGE, sources + derivation)

    return encoded


def _plane(places: Geometry, index: int, *, turned: bool) -> Dataset:
    groups = Dataset()
    position = Dataset()
    position.ImagePositionPatient = list(places.positions[index] if places.positions else ORIGIN)
    groups.PlanePositionSequence = [position]
    if turned and places.orientations:
        orientation = Dataset()
        orientation.ImageOrientationPatient = list(places.orientations[index])
        groups.PlaneOrientationSequence = [orientation]
    return groups


def _overlap(masks: Sequence[NDArray[np.bool_]]) -> bool:
    union = masks[0].copy()
    for mask in masks[1:]:
        if np.any(union & mask):
            return True
        union |= mask
    return False


def _pack(masks: Sequence[NDArray[np.bool_]], occupied: Sequence[NDArray[np.intp]]) -> bytes:
    """Pixels at one bit each, first pixel in the lowest bit, frames without padding between them.

    PS3.5 8.1.1: a frame need not begin at a byte, so all frames are packed as one row of bits.
    """
    frame_pixels = masks[0].shape[1] * masks[0].shape[2]
    if frame_pixels % 8 == 0:
        packed = b"".join(
            np.packbits(mask[i], bitorder="little").tobytes()
            for mask, frames in zip(masks, occupied, strict=True)
            for i in frames
        )
    else:
        bits = [mask[frames].ravel() for mask, frames in zip(masks, occupied, strict=True)]
        packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    return packed + b"\0" * (len(packed) % 2)
