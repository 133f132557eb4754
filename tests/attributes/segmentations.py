"""What a segmentation says, where it lies, and what each frame comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.results.types import Source
from inference.types import FrameRef
from tests.attributes.case import Case, as_list, plain, wrong_frame_number
from tests.attributes.ownership import same
from tests.judges.types import LABEL_MAP

NEAR = 1e-4
"""mm; of direction cosines 1e-6."""


def derivation(case: Case) -> Iterator[str]:
    known = {(ref.sop_instance_uid, ref.frame) for ref in case.source.frames}
    for number, item in enumerate(case.data.PerFrameFunctionalGroupsSequence, start=1):
        (derived,) = item.DerivationImageSequence
        (reference,) = derived.SourceImageSequence
        origin = case.source.by_uid.get(str(reference.ReferencedSOPInstanceUID))
        if origin is None or reference.ReferencedSOPClassUID != origin.SOPClassUID:
            yield f"frame {number} comes of no instance of the source"
            continue
        if wrong_frame_number(origin, reference):
            yield f"frame {number}: a frame number where none belongs, or none where one does"
        place = str(origin.SOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 1)
        if place not in known:
            yield f"frame {number} comes of a frame that the model was not given"
        if not derived.get("DerivationCodeSequence"):
            yield f"frame {number}: no derivation code"


def frame_of_reference(case: Case) -> Iterator[str]:
    placed = any(place(case.source, ref)[0] is not None for ref in case.source.frames)
    theirs = plain(case.first, "FrameOfReferenceUID") if placed else ""
    if plain(case.data, "FrameOfReferenceUID") != theirs:
        yield f"{plain(case.data, 'FrameOfReferenceUID')!r}, of the source {theirs!r}"


Numbers = Sequence[float] | None


def place(source: Source, ref: FrameRef) -> tuple[Numbers, Numbers, Numbers]:
    """Position, orientation and spacing of a frame, from wherever its instance has them."""
    dataset = source.by_uid[ref.sop_instance_uid]
    holders = [dataset]
    if "PerFrameFunctionalGroupsSequence" in dataset:
        holders = [
            dataset.PerFrameFunctionalGroupsSequence[ref.frame - 1],
            dataset.SharedFunctionalGroupsSequence[0],
        ]
    return (
        _first(holders, "PlanePositionSequence", "ImagePositionPatient"),
        _first(holders, "PlaneOrientationSequence", "ImageOrientationPatient"),
        _first(holders, "PixelMeasuresSequence", "PixelSpacing"),
    )


def _first(holders: Sequence[Dataset], sequence: str, keyword: str) -> Numbers:
    for holder in holders:
        for item in holder.get(sequence) or [holder]:
            if item.get(keyword):
                return [float(value) for value in item.get(keyword)]
    return None


def geometry(case: Case) -> Iterator[str]:
    """Each frame lies where its source lies, whatever the order, tilt or spacing."""
    if case.data.Rows != case.first.Rows or case.data.Columns != case.first.Columns:
        yield f"{case.data.Rows} x {case.data.Columns} pixels"
    shared = case.data.SharedFunctionalGroupsSequence[0]
    for number, item in enumerate(case.data.PerFrameFunctionalGroupsSequence, start=1):
        reference = item.DerivationImageSequence[0].SourceImageSequence[0]
        ref = FrameRef(
            str(reference.ReferencedSOPInstanceUID),
            "",
            int(reference.get("ReferencedFrameNumber") or 1),
        )
        wanted = place(case.source, ref)
        ours = (
            _first([item, shared], "PlanePositionSequence", "ImagePositionPatient"),
            _first([item, shared], "PlaneOrientationSequence", "ImageOrientationPatient"),
            _first([item, shared], "PixelMeasuresSequence", "PixelSpacing"),
        )
        if ours[0] is None or ours[1] is None:
            yield f"frame {number} has no plane, and OHIF loads none without"
        if wanted[0] is None:
            continue
        for what, our, their, near in zip(
            ("position", "orientation", "spacing"), ours, wanted, (NEAR, 1e-6, NEAR), strict=True
        ):
            if their is not None and (our is None or not np.allclose(our, their, 0, near)):
                yield f"frame {number}: {what} {our} instead of {their}"


def placeholders(case: Case) -> Iterator[str]:
    """Viewers want a plane and a spacing of everything; what stands for none says so."""
    if place(case.source, case.source.frames[0])[0] is not None:
        return
    comments = str(case.data.get("ImageComments") or "")
    if "plane position, plane orientation and slice thickness are placeholders" not in comments:
        yield f"{comments!r} does not say that the plane is a placeholder"
    told = _first(
        [case.data.SharedFunctionalGroupsSequence[0]], "PixelMeasuresSequence", "PixelSpacing"
    )
    known = list(spacings(case.first))
    if not known:
        if told != [1, 1] or "Pixel Spacing is one too" not in comments:
            yield f"a spacing of {told}, and the source has none"
    elif told is None or not any(np.allclose(told, one, 0, NEAR) for one in known):
        yield f"a spacing of {told}, of the source {known}"


def spacings(image: Dataset) -> Iterator[list[float]]:
    """All that an image without a place tells of the size of its pixels, mm."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if image.get(keyword):
            yield [float(value) for value in image.get(keyword)]
    for region in image.get("SequenceOfUltrasoundRegions") or []:
        yield [10 * region.PhysicalDeltaY, 10 * region.PhysicalDeltaX]


def patient_orientation(case: Case) -> Iterator[str]:
    if place(case.source, case.source.frames[0])[0] is None:
        yield from same("PatientOrientation")(case)


def segments(case: Case) -> Iterator[str]:
    wanted = {segment.label: segment for segment in case.origin.found}
    told = {str(item.SegmentLabel): item for item in case.data.SegmentSequence}
    if list(told) != list(wanted):
        yield f"{list(told)} instead of {list(wanted)}"
        return
    numbers = [int(item.SegmentNumber) for item in case.data.SegmentSequence]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"numbers {numbers}"
    for label, item in told.items():
        segment = wanted[label]
        (kind,) = item.SegmentedPropertyTypeCodeSequence
        (category,) = item.SegmentedPropertyCategoryCodeSequence
        side = kind.get("SegmentedPropertyTypeModifierCodeSequence")
        ours = category.CodeValue, kind.CodeValue, side[0].CodeValue if side else None
        theirs = (
            segment.category.value,
            segment.type.value,
            segment.laterality.value if segment.laterality else None,
        )
        if ours != theirs:
            yield f"{label}: {ours} instead of {theirs}"


def algorithm(case: Case) -> Iterator[str]:
    model = case.origin.model
    for item in case.data.SegmentSequence:
        if item.SegmentAlgorithmType != "AUTOMATIC":
            yield f"{item.SegmentLabel}: {item.SegmentAlgorithmType}"
        if model.name not in item.SegmentAlgorithmName:
            yield f"{item.SegmentLabel}: algorithm {item.SegmentAlgorithmName!r}"
        (told,) = item.SegmentationAlgorithmIdentificationSequence
        if (told.AlgorithmName, told.AlgorithmVersion) != (model.name, model.version):
            yield f"{item.SegmentLabel}: {told.AlgorithmName} {told.AlgorithmVersion}"


def colours(case: Case) -> Iterator[str]:
    for item in case.data.SegmentSequence:
        if len(as_list(item.get("RecommendedDisplayCIELabValue"))) != 3:
            yield f"{item.SegmentLabel} has none"


def referenced_series(case: Case) -> Iterator[str]:
    told = {
        (str(item.SeriesInstanceUID), str(reference.ReferencedSOPInstanceUID))
        for item in case.data.ReferencedSeriesSequence
        for reference in item.ReferencedInstanceSequence
    }
    wanted = {(str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)) for ds in case.source.datasets}
    if told != wanted:
        yield f"{len(told & wanted)} of {len(wanted)} instances, {len(told - wanted)} others"


def overlap(case: Case) -> Iterator[str]:
    masks = [segment.mask for segment in case.origin.found]
    wanted = "YES" if np.sum(masks, axis=0).max() > 1 else "NO"
    if case.data.SegmentationType == "FRACTIONAL":
        wanted = "UNDEFINED"  # of probabilities, which lie on each other wherever there is doubt
    if case.data.SegmentsOverlap != wanted:
        yield f"{case.data.SegmentsOverlap} instead of {wanted}"


def encoding(case: Case) -> Iterator[str]:
    data = case.data
    kind = data.SegmentationType
    if (kind == "LABELMAP") != (data.SOPClassUID == LABEL_MAP):
        yield f"{kind} in SOP class {data.SOPClassUID}"
    if kind == "BINARY" and (data.BitsAllocated, data.BitsStored) != (1, 1):
        yield f"BINARY with {data.BitsAllocated} bits"
    if kind == "FRACTIONAL":
        told = data.get("SegmentationFractionalType"), data.get("MaximumFractionalValue")
        if told != ("PROBABILITY", 255):
            yield f"FRACTIONAL with {told}"
    if kind == "LABELMAP" and any(item.SegmentNumber == 0 for item in data.SegmentSequence):
        yield "an item for the background: OHIF takes colours by position"


def dimensions(case: Case) -> Iterator[str]:
    seen = Counter(
        tuple(as_list(item.FrameContentSequence[0].DimensionIndexValues))
        for item in case.data.PerFrameFunctionalGroupsSequence
    )
    if len(seen) != case.data.NumberOfFrames:
        yield f"{len(seen)} sets of indices for {case.data.NumberOfFrames} frames"
    wanted = len(case.data.DimensionIndexSequence)
    if any(len(values) != wanted for values in seen):
        yield "more or fewer indices than dimensions"
