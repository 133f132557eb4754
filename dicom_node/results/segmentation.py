"""Owns the DICOM Segmentation: masks as frames that lie exactly where their source lies.

BINARY is one bit a pixel and a frame for each segment, FRACTIONAL the same in probabilities,
LABELMAP one frame for all segments. Refuses to measure or to judge. Frames without a pixel are
left out (PS3.3 A.51); a prediction without any pixel makes no segmentation at all, its absence
stands in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom.color import CIELabColor
from highdicom.frame import encode_frame
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SegmentationStorage,
)

from dicom_node.domain.profile import Compression, Encoding, SegForm
from dicom_node.errors import ResultError
from dicom_node.results.codes import (
    ARTIFICIAL_INTELLIGENCE,
    SEGMENTATION,
    SOURCE_IMAGE_FOR_PROCESSING,
)
from dicom_node.results.content import coded, long_string
from dicom_node.results.encode import encoded_sequence, fragment, put_encoded_items, ready_to_write
from dicom_node.results.evidence import referenced_series
from dicom_node.results.geometry import Geometry, geometry, is_multi_frame
from dicom_node.results.header import common
from dicom_node.results.identity import Identity
from dicom_node.results.normalise import fit_character_set
from dicom_node.results.types import Source
from inference.stored import FULL, to_byte
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
PIXEL_DATA = 0x7FE00010
PIXEL_PADDING_VALUE = 0x00280120

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage; pydicom 3.0.2 has no name for it."""

SOP_CLASSES: Mapping[Encoding, str] = {
    Encoding.BINARY: SegmentationStorage,
    Encoding.FRACTIONAL: SegmentationStorage,
    Encoding.LABELMAP: LABEL_MAP,
}
SMALLEST_JPEG_2000 = 32
"""Pixels a side below which OpenJPEG compresses nothing; such a frame stays as it is."""

SYNTAXES: Mapping[Compression, str] = {
    Compression.NONE: ExplicitVRLittleEndian,
    Compression.RLE: RLELossless,
    Compression.JPEG2000: JPEG2000Lossless,
}

FLAT = ("1", "0", "0", "0", "1", "0")
ORIGIN = ("0", "0", "0")
UNIT = ("1", "1")
"""Of sources without patient geometry. No claim about the patient, as there is no Frame of
Reference; OHIF does not load a segmentation without an orientation, a position and measures."""


@dataclass(frozen=True)
class SegmentNumber:
    """How a segment of the prediction is found in the segmentation.

    Attributes:
        number: Segment Number, from 1.
        frames: numbers of its frames in a BINARY segmentation, from 1.
        source_frames: the frames of the source where it is, from 0.
        tracking_uid: the same in the report.
    """

    number: int
    frames: tuple[int, ...]
    source_frames: tuple[int, ...]
    tracking_uid: str


def numbering(segments: Sequence[Segment], identity: Identity) -> dict[int, SegmentNumber]:
    """Where each segment that is not empty is found, by its index into ``segments``.

    Frame numbers are those of a BINARY segmentation, which holds them segment by segment.

    Raises:
        ResultError: a mask does not lie on the grid of the source.
    """
    numbered: dict[int, SegmentNumber] = {}
    count = 0
    for index, segment in enumerate(segments):
        _check_grid(segment, identity.source)
        frames = tuple(map(int, np.flatnonzero(segment.mask.any(axis=(1, 2)))))
        if frames:
            numbered[index] = SegmentNumber(
                len(numbered) + 1,
                tuple(range(count + 1, count + len(frames) + 1)),
                frames,
                identity.tracking("segment", index),
            )
            count += len(frames)
    return numbered


def overlapping(segments: Sequence[Segment]) -> bool:
    """Whether any two segments share a voxel: then no label map can hold them."""
    masks = [segment.mask for segment in segments if not segment.empty]
    return bool(masks) and _overlap(masks)


def segmentation(
    segments: Sequence[Segment],
    numbered: Mapping[int, SegmentNumber],
    identity: Identity,
    form: SegForm,
) -> Dataset:
    """The numbered segments as one DICOM Segmentation.

    Args:
        segments: ``Prediction.segments``; masks on the grid of ``identity.source.frames``.
        numbered: what `numbering` made of them; at least one.
        identity: of the job.
        form: which of the three kinds, and how its pixels are compressed.

    Raises:
        ResultError: FRACTIONAL without probabilities, or a LABELMAP of segments that overlap.
    """
    source = identity.source
    chosen = [segments[index] for index in numbered]
    layers = _layers(chosen, list(numbered.values()), form)
    places = geometry(source)
    dataset = common(form, SOP_CLASSES[form.encoding], "SEG", identity)
    _describe_image(dataset, source, places)
    _describe_pixels(dataset, form, chosen)
    dataset.ReferencedSeriesSequence = referenced_series(source.by_uid.values())
    dataset.SegmentSequence = [
        _describe_segment(segments[index], entry, identity) for index, entry in numbered.items()
    ]
    _describe_dimensions(dataset, identity.dimensions(form), places, form)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(places)]
    items = _frame_items(source, places, [(layer.number, layer.frames) for layer in layers])
    put_encoded_items(dataset, PER_FRAME, items)
    dataset.NumberOfFrames = len(items)
    _put_pixels(dataset, layers, form)
    fit_character_set(dataset, source.first)
    ready_to_write(dataset)
    return dataset


@dataclass(frozen=True)
class _Layer:
    """Frames that follow each other in the object.

    Attributes:
        number: of the segment that they show, None in a label map.
        frames: which frames of the source.
        pixels: ``(frames of the source, rows, columns)``: bool, or 8 or 16 bits.
    """

    number: int | None
    frames: tuple[int, ...]
    pixels: NDArray[Any]


def _layers(
    segments: Sequence[Segment], numbers: Sequence[SegmentNumber], form: SegForm
) -> list[_Layer]:
    pairs = list(zip(segments, numbers, strict=True))
    if form.encoding is Encoding.LABELMAP:
        if overlapping(segments):
            raise ResultError("segments overlap: a label map cannot hold them")
        wide = np.uint8 if len(pairs) < 2**8 else np.uint16
        labels = np.zeros(segments[0].mask.shape, wide)
        for segment, entry in pairs:
            labels[segment.mask] = entry.number
        frames = sorted({frame for entry in numbers for frame in entry.source_frames})
        return [_Layer(None, tuple(frames), labels)]
    if form.encoding is Encoding.FRACTIONAL:
        layers = []
        for segment, entry in pairs:
            if segment.probability is None:
                raise ResultError("a fractional segmentation needs probabilities")
            parts = to_byte(segment.probability)
            if not parts.any():
                raise ResultError(f"segment {segment.label!r}: a mask, and no probability")
            occupied = tuple(map(int, np.flatnonzero(parts.any(axis=(1, 2)))))
            layers.append(_Layer(entry.number, occupied, parts))
        return layers
    return [_Layer(entry.number, entry.source_frames, segment.mask) for segment, entry in pairs]


def _describe_pixels(dataset: Dataset, form: SegForm, segments: Sequence[Segment]) -> None:
    """What a pixel value means (PS3.3 C.8.20.2)."""
    dataset.SegmentationType = form.encoding.upper()
    bits = 1
    if form.encoding is Encoding.FRACTIONAL:
        bits = 8
        dataset.SegmentationFractionalType = "PROBABILITY"
        dataset.MaximumFractionalValue = FULL
    elif form.encoding is Encoding.LABELMAP:
        # 0 is no segment. It has no item in the Segment Sequence either: viewers colour labels by
        # the position of their item.
        bits = 8 if len(segments) < 2**8 else 16
        # Set with its VR: what is encoded already keeps pydicom from choosing one.
        dataset.add_new(PIXEL_PADDING_VALUE, "US", 0)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    overlap = "YES" if overlapping(segments) else "NO"
    # Probabilities above nothing reach over each other wherever the model was in doubt.
    dataset.SegmentsOverlap = "UNDEFINED" if form.encoding is Encoding.FRACTIONAL else overlap


def _put_pixels(dataset: Dataset, layers: Sequence[_Layer], form: SegForm) -> None:
    """Pixel Data, compressed frame by frame where the form says so."""
    syntax = SYNTAXES[form.compression]
    small = min(layers[0].pixels.shape[1:]) < SMALLEST_JPEG_2000
    if form.compression is Compression.NONE or (syntax == JPEG2000Lossless and small):
        if form.encoding is Encoding.BINARY:
            data = _pack(layers)
        else:
            data = b"".join(
                np.ascontiguousarray(layer.pixels[i]).tobytes()
                for layer in layers
                for i in layer.frames
            )
            data += b"\0" * (len(data) % 2)
        dataset.add_new(PIXEL_DATA, "OW" if dataset.BitsAllocated > 8 else "OB", data)
        return
    frames = [
        encode_frame(
            np.ascontiguousarray(
                layer.pixels[i], np.uint16 if dataset.BitsAllocated > 8 else np.uint8
            ),
            syntax,
            dataset.BitsAllocated,
            dataset.BitsStored,
            dataset.PhotometricInterpretation,
        )
        for layer in layers
        for i in layer.frames
    ]
    dataset.add_new(PIXEL_DATA, "OB", encapsulate(frames))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)


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
    if placeholders := _placeholders(places):
        dataset.ImageComments = placeholders
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = int(first.Rows), int(first.Columns)
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


def _describe_dimensions(dataset: Dataset, uid: str, places: Geometry, form: SegForm) -> None:
    """Frames are indexed by segment, then by place (or by time where all lie in one place).

    A label map has all segments in one frame, and no index by segment.
    """
    organization = Dataset()
    organization.DimensionOrganizationUID = uid
    dataset.DimensionOrganizationSequence = [organization]
    second = (
        (TEMPORAL_POSITION_INDEX, FRAME_CONTENT, "Frame of the source")
        if places.positions is None
        else (IMAGE_POSITION_PATIENT, PLANE_POSITION, "Image Position (Patient)")
    )
    first = (REFERENCED_SEGMENT_NUMBER, SEGMENT_IDENTIFICATION, "Segment Number")
    dataset.DimensionIndexSequence = []
    for pointer, group, label in (
        (second,) if form.encoding is Encoding.LABELMAP else (first, second)
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
    shared.PixelMeasuresSequence = [_measures(places)]
    orientation = _one_orientation(places)
    if orientation:
        plane = Dataset()
        plane.ImageOrientationPatient = list(orientation)
        shared.PlaneOrientationSequence = [plane]
    return shared


def _measures(places: Geometry) -> Dataset:
    """Pixel Measures macro (PS3.3 C.7.6.16.2.1), whole: readers take no other, OHIF wants one.

    What the source does not tell is a placeholder, and `_placeholders` says so.
    """
    measures = Dataset()
    if spacing := places.spacing or places.at_detector or (UNIT if _flat(places) else None):
        measures.PixelSpacing = list(spacing)
    measures.SliceThickness = places.thickness or UNIT[0]
    if places.distance:
        measures.SpacingBetweenSlices = places.distance
    return measures


def _placeholders(places: Geometry) -> str:
    """Which numbers of the object say nothing, in words; empty where all do."""
    if not _flat(places):
        return "" if places.thickness else "Slice Thickness is a placeholder: none is known."
    spacing = "" if places.at_detector else " Pixel Spacing is one too: none is known."
    return (
        "The images have no place in the patient: plane position, plane orientation and slice "
        f"thickness are placeholders.{spacing}"
    )


def _flat(places: Geometry) -> bool:
    """Whether the source has no patient geometry."""
    return places.positions is None


def _frame_items(
    source: Source, places: Geometry, layers: Sequence[tuple[int | None, tuple[int, ...]]]
) -> list[bytes]:
    """Encoded per-frame functional groups, layer by layer in mask order.

    Args:
        source: of the masks.
        places: of its frames.
        layers: segment number, None where a frame shows them all, with the frames that it is on.
    """
    datasets = source.by_uid
    turned = _one_orientation(places) is None
    derive = _derivations(datasets)
    wanted = sorted({i for _, frames in layers for i in frames})
    derivations = {i: derive(source.frames[i]) for i in wanted}
    planes = {i: fragment(_plane(places, i, turned=turned)) for i in wanted}
    items = []
    for number, frames in layers:
        segment = b""
        if number is not None:
            identification = Dataset()
            identification.ReferencedSegmentNumber = number
            segment = encoded_sequence(SEGMENT_IDENTIFICATION, fragment(identification))
        for i in frames:
            content = Dataset()
            # A dimension index is an ordinal: two frames at one position keep two of them, so
            # that no two frames of a segment share all their indices.
            content.DimensionIndexValues = [i + 1] if number is None else [number, i + 1]
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
        if is_multi_frame(datasets[ref.sop_instance_uid]):
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


def _pack(layers: Sequence[_Layer]) -> bytes:
    """Pixels at one bit each, first pixel in the lowest bit, frames without padding between them.

    PS3.5 8.1.1: a frame need not begin at a byte, so all frames are packed as one row of bits.
    """
    rows, columns = layers[0].pixels.shape[1:]
    if rows * columns % 8 == 0:
        packed = b"".join(
            np.packbits(layer.pixels[i], bitorder="little").tobytes()
            for layer in layers
            for i in layer.frames
        )
    else:
        bits = [layer.pixels[list(layer.frames)].ravel() for layer in layers]
        packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    return packed + b"\0" * (len(packed) % 2)
