"""Owns the structured report: a Comprehensive 3D SR after TID 1500 that says what a model says.

Refuses to judge: it writes down a prediction, and every number of it once. What is drawn on an
image is a TID 1501 group whose NUM is inferred from an SCOORD and whose tracking identifier names
the viewer's tool, because that is what viewers show; beside it one TID 1410 or 1411 group with the
same Tracking UID refers to the segmentation for those who read structure (PS3.16 annex A).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from highdicom.sr import ContentItem
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.errors import ResultError
from dicom_node.results import codes
from dicom_node.results.content import (
    CONTAINS,
    HAS_ACQ_CONTEXT,
    HAS_CONCEPT_MOD,
    HAS_OBS_CONTEXT,
    INFERRED_FROM,
    SELECTED_FROM,
    code,
    container,
    image,
    number,
    polyline,
    text,
    uid,
)
from dicom_node.results.contour import Polygon, enclosed, outlines
from dicom_node.results.evidence import hierarchical, reference
from dicom_node.results.geometry import Geometry, geometry
from dicom_node.results.header import RESEARCH_USE, common
from dicom_node.results.identity import Identity
from dicom_node.results.normalise import fit_character_set
from dicom_node.results.segmentation import SegmentNumber
from dicom_node.results.types import ModelIdentity, Source
from inference.types import Box, Code, Finding, FrameRef, Measurement, Prediction, Segment

FREEHAND = "Cornerstone3DTools@^0.1.0:PlanarFreehandROI"
RECTANGLE = "Cornerstone3DTools@^0.1.0:RectangleROI"
"""Tracking identifiers by which OHIF makes a group its own, editable annotation."""

MAX_OUTLINES = 8
MIN_OUTLINE = 0.01
"""Of one segment on one frame: at most so many outlines, none below this share of the largest."""

MAX_NAMED_IMAGES = 8
"""A finding on more images than this names their series; the image library lists them all."""


def report(
    prediction: Prediction,
    identity: Identity,
    made: tuple[Dataset, Mapping[int, SegmentNumber]] | None,
) -> Dataset:
    """The report of one prediction.

    Args:
        prediction: what the model says.
        identity: of the job.
        made: the segmentation with the place of each segment in it, None where there is none.

    Raises:
        ResultError: the prediction says nothing at all, or points outside the source.
    """
    source, context = identity.source, identity.context
    dataset = common("sr", Comprehensive3DSRStorage, "SR", identity)
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.PerformedProcedureCodeSequence = []
    dataset.ReferencedPerformedProcedureStepSequence = []
    evidence = [reference(ds) for ds in source.by_uid.values()]
    if made:
        evidence.append(reference(made[0]))
    dataset.CurrentRequestedProcedureEvidenceSequence = hierarchical(evidence)
    if context.predecessor:
        dataset.PredecessorDocumentsSequence = hierarchical([context.predecessor])

    groups = list(_Groups(identity, made).all(prediction))
    if not groups:
        raise ResultError("the prediction says nothing: no segment, no finding, no reason")
    remarks = [text(CONTAINS, codes.COMMENT, remark) for remark in _remarks(prediction, identity)]
    document = container(
        None,
        codes.IMAGING_MEASUREMENT_REPORT,
        [
            code(HAS_CONCEPT_MOD, codes.LANGUAGE, codes.ENGLISH),
            *_observer(identity),
            code(HAS_CONCEPT_MOD, codes.PROCEDURE_REPORTED, _procedure(dataset, source)),
            _image_library(source),
            container(CONTAINS, codes.IMAGING_MEASUREMENTS, groups),
            *([container(CONTAINS, codes.QUALITATIVE_EVALUATIONS, remarks)] if remarks else []),
        ],
        template="1500",
    )
    dataset.update(document)
    fit_character_set(dataset, source.first)
    return dataset


def _remarks(prediction: Prediction, identity: Identity) -> Iterator[str]:
    """Sentences that hold for the whole report."""
    if identity.model.research_only:
        yield f"{RESEARCH_USE}."
    if identity.context.incomplete_reason:
        yield f"The study may be incomplete: {identity.context.incomplete_reason}"
    yield from prediction.notes


def _observer(identity: Identity) -> list[ContentItem]:
    """TID 1001, 1002, 1004: a device, no person."""
    model = identity.model
    told = (
        (codes.DEVICE_NAME, f"{model.name} {model.version}"),
        (codes.DEVICE_MANUFACTURER, model.manufacturer),
        (codes.DEVICE_MODEL, model.title),
        (codes.DEVICE_SERIAL, model.bundle_digest[:16]),
    )
    return [
        code(HAS_OBS_CONTEXT, codes.OBSERVER_TYPE, codes.DEVICE),
        uid(HAS_OBS_CONTEXT, codes.DEVICE_UID, identity.device()),
        *(text(HAS_OBS_CONTEXT, name, value) for name, value in told),
    ]


def _procedure(header: Dataset, source: Source) -> Code:
    """The procedure that the study says was done, else what its modality tells of it."""
    for item in header.get("ProcedureCodeSequence") or []:
        value, scheme, meaning = (
            str(item.get(keyword) or "")
            for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        )
        if value and scheme and meaning:
            return Code(value, scheme, meaning)
    return codes.PROCEDURES.get(str(source.first.get("Modality")), codes.IMAGING_PROCEDURE)


def _image_library(source: Source) -> ContentItem:
    """TID 1600: every instance that the model was given, in groups of one Frame of Reference."""
    groups: dict[tuple[str, str], list[ContentItem]] = {}
    for ds in source.by_uid.values():
        key = str(ds.get("Modality") or ""), str(ds.get("FrameOfReferenceUID") or "")
        entry = image(CONTAINS, codes.SOURCE, str(ds.SOPClassUID), str(ds.SOPInstanceUID))
        groups.setdefault(key, []).append(entry)
    items = []
    for (modality, frame_of_reference), entries in groups.items():
        shared = []
        if modality in codes.MODALITIES:
            shared.append(code(HAS_ACQ_CONTEXT, codes.MODALITY, codes.MODALITIES[modality]))
        if frame_of_reference:
            shared.append(uid(HAS_ACQ_CONTEXT, codes.FRAME_OF_REFERENCE_UID, frame_of_reference))
        items.append(container(CONTAINS, codes.IMAGE_LIBRARY_GROUP, [*shared, *entries]))
    return container(CONTAINS, codes.IMAGE_LIBRARY, items)


def _algorithm(model: ModelIdentity, *parameters: str) -> list[ContentItem]:
    """TID 4019, with the parameters of the model and those of one group."""
    told = [f"{key}={value}" for key, value in sorted(model.parameters.items())]
    return [
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_NAME, model.name),
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_VERSION, model.version),
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_MANUFACTURER, model.manufacturer),
        *(text(HAS_CONCEPT_MOD, codes.ALGORITHM_PARAMETERS, p) for p in (*told, *parameters)),
    ]


class _Groups:
    """The measurement groups of a prediction; one method per way of saying something."""

    def __init__(
        self, identity: Identity, made: tuple[Dataset, Mapping[int, SegmentNumber]] | None
    ) -> None:
        self.identity = identity
        self.source = identity.source
        self.headers = identity.source.by_uid
        self.segmentation: Dataset | None = made[0] if made else None
        self.numbers: Mapping[int, SegmentNumber] = made[1] if made else {}
        self.places: Geometry = geometry(identity.source)

    def all(self, prediction: Prediction) -> Iterator[ContentItem]:
        if prediction.not_analysed is not None:
            yield self.not_analysed(prediction.not_analysed)
            return
        for index, segment in enumerate(prediction.segments):
            if index in self.numbers:
                yield from self.segment(segment, self.numbers[index])
            else:
                yield self.absent(segment, index)
        for index, finding in enumerate(prediction.findings):
            yield self.finding(finding, index)
            for place, box in enumerate(finding.boxes):
                yield self.box(finding, box, f"finding {index} box", place)

    def not_analysed(self, reason: str) -> ContentItem:
        """What was wanted and why it was not done; no finding."""
        model = self.identity.model
        return self._group(
            "1501",
            f"{model.title}: not analysed",
            self.identity.tracking("not analysed", 0),
            [
                *_algorithm(model),
                *self._images(),
                # CID 7036 judges the images for the algorithm of this group, not for a reader.
                code(CONTAINS, codes.IMAGE_QUALITY, codes.NON_DIAGNOSTIC_QUALITY),
                text(
                    CONTAINS,
                    codes.COMMENT,
                    f"Not analysed by {model.title} {model.version}: {reason}",
                ),
                text(CONTAINS, codes.COMMENT, "Image quality refers to this algorithm only."),
            ],
        )

    def absent(self, segment: Segment, index: int) -> ContentItem:
        """Looked for, not found."""
        what, sites = _what(segment)
        return self._group(
            "1501",
            segment.label,
            self.identity.tracking("segment", index),
            [
                code(CONTAINS, codes.FINDING_CATEGORY, segment.category),
                code(CONTAINS, codes.FINDING, what),
                *sites,
                *_algorithm(self.identity.model),
                *self._images(),
                code(CONTAINS, what, codes.ABSENT),
            ],
        )

    def segment(self, segment: Segment, entry: SegmentNumber) -> Iterator[ContentItem]:
        """What is drawn, then what is referred to."""
        what, sites = _what(segment)
        common_rows = [
            code(CONTAINS, codes.FINDING_CATEGORY, segment.category),
            code(CONTAINS, codes.FINDING, what),
            *sites,
            *_algorithm(self.identity.model),
        ]
        frame = int(np.argmax(segment.mask.sum(axis=(1, 2))))
        shown = self._shown_area(segment, frame)
        yield self._group(
            "1501",
            FREEHAND,
            entry.tracking_uid,
            [
                *common_rows,
                number(
                    CONTAINS,
                    shown.name,
                    shown.value,
                    shown.unit,
                    [self._drawn(line, frame) for line in _worth_drawing(segment.mask[frame])],
                ),
            ],
        )
        assert self.segmentation is not None  # noqa: S101 - there is an entry, so there is a SEG
        target = (self.segmentation.SOPClassUID, self.segmentation.SOPInstanceUID)
        planar = self.places.positions is None or len(self.source.frames) == 1
        if planar:
            where = [
                image(CONTAINS, codes.REFERENCED_SEGMENTATION_FRAME, *target, frames=entry.frames),
                *(
                    self._frame_image(CONTAINS, codes.SOURCE_IMAGE_FOR_SEGMENTATION, ref)
                    for ref in self._refs(segment.mask)
                ),
            ]
        else:
            first = self.headers[self.source.frames[0].sop_instance_uid]
            where = [
                image(CONTAINS, codes.REFERENCED_SEGMENT, *target, segment=entry.number),
                uid(
                    CONTAINS,
                    codes.SOURCE_SERIES_FOR_SEGMENTATION,
                    str(first.SeriesInstanceUID),
                ),
            ]
        rest = [self._number(m) for m in segment.measurements if m is not shown]
        yield self._group(
            "1410" if planar else "1411",
            segment.label,
            entry.tracking_uid,
            [*common_rows, *where, *rest],
        )

    def finding(self, finding: Finding, index: int) -> ContentItem:
        """A verdict: present or absent, how probable, how severe."""
        threshold = [] if finding.threshold is None else [f"threshold={finding.threshold:g}"]
        rows = [
            code(CONTAINS, codes.FINDING, finding.code),
            *_site(finding.site),
            *_algorithm(self.identity.model, *threshold),
        ]
        if finding.probability is not None:
            rows.append(number(CONTAINS, codes.PROBABILITY, finding.probability, codes.NO_UNITS))
        if finding.score is not None:
            rows.append(number(CONTAINS, codes.SEVERITY, finding.score, codes.NO_UNITS))
        verdict = codes.PRESENT if finding.present else codes.ABSENT
        rows += [*self._images(), code(CONTAINS, finding.code, verdict)]
        if finding.severity is not None:
            rows.append(code(CONTAINS, codes.SEVERITY, finding.severity))
        tracking_uid = self.identity.tracking("finding", index)
        return self._group("1501", finding.label, tracking_uid, rows)

    def box(self, finding: Finding, box: Box, what: str, index: int) -> ContentItem:
        """Where a finding is: a rectangle, with its area as the number that viewers need."""
        corners = np.array(
            [
                [box.left, box.top],
                [box.right, box.top],
                [box.right, box.bottom],
                [box.left, box.bottom],
                [box.left, box.top],
            ],
            dtype=np.float64,
        )
        self._ref(box.frame)
        area, unit = self._area(enclosed(corners))
        if area <= 0:
            raise ResultError(f"box {index} of {what} has no area")
        return self._group(
            "1501",
            RECTANGLE,
            self.identity.tracking(what, index),
            [
                code(CONTAINS, codes.FINDING, finding.code),
                *_site(finding.site),
                *_algorithm(self.identity.model),
                number(CONTAINS, codes.AREA, area, unit, [self._drawn(corners, box.frame)]),
            ],
        )

    def _group(
        self, template: str, identifier: str, tracking_uid: str, rows: Iterable[ContentItem]
    ) -> ContentItem:
        return container(
            CONTAINS,
            codes.MEASUREMENT_GROUP,
            [
                text(HAS_OBS_CONTEXT, codes.TRACKING_IDENTIFIER, identifier),
                uid(HAS_OBS_CONTEXT, codes.TRACKING_UID, tracking_uid),
                *rows,
            ],
            template=template,
        )

    def _shown_area(self, segment: Segment, frame: int) -> Measurement:
        """The area that the outline on ``frame`` stands for: the model's own, else counted here."""
        single = len(self.source.frames) == 1
        for measurement in segment.measurements:
            here = measurement.frame == frame or (single and measurement.frame is None)
            if here and _same(measurement.name, codes.AREA):
                return measurement
        area, unit = self._area(float(np.count_nonzero(segment.mask[frame])))
        return Measurement(codes.AREA, area, unit, frame)

    def _area(self, pixels: float) -> tuple[float, Code]:
        """In mm² where a pixel has a known size in the patient, else in pixels."""
        if self.places.pixel_area is None:
            return pixels, codes.PIXELS
        return pixels * self.places.pixel_area, codes.SQUARE_MILLIMETRE

    def _number(self, measurement: Measurement) -> ContentItem:
        on = []
        if measurement.frame is not None:
            ref = self._ref(measurement.frame)
            on = [self._frame_image(INFERRED_FROM, codes.SOURCE_OF_MEASUREMENT, ref)]
        return number(CONTAINS, measurement.name, measurement.value, measurement.unit, on)

    def _drawn(self, line: Polygon, frame: int) -> ContentItem:
        on = self._frame_image(SELECTED_FROM, codes.SOURCE, self._ref(frame))
        return polyline(INFERRED_FROM, codes.SOURCE_OF_MEASUREMENT, line, on)

    def _ref(self, frame: int) -> FrameRef:
        if not 0 <= frame < len(self.source.frames):
            raise ResultError(f"frame {frame} of a source of {len(self.source.frames)} frames")
        return self.source.frames[frame]

    def _refs(self, mask: NDArray[np.bool_]) -> list[FrameRef]:
        return [self.source.frames[int(i)] for i in np.flatnonzero(mask.any(axis=(1, 2)))]

    def _frame_image(self, relationship: str, name: Code, ref: FrameRef) -> ContentItem:
        multi = self.headers[ref.sop_instance_uid].get("NumberOfFrames") is not None
        return image(
            relationship,
            name,
            ref.sop_class_uid,
            ref.sop_instance_uid,
            frames=(ref.frame,) if multi else (),
        )

    def _images(self) -> list[ContentItem]:
        """What a statement about the whole input refers to."""
        headers: Sequence[Dataset] = list(self.headers.values())
        if len(headers) > MAX_NAMED_IMAGES:
            series = sorted({str(ds.SeriesInstanceUID) for ds in headers})
            return [uid(CONTAINS, codes.SERIES_INSTANCE_UID, value) for value in series]
        return [
            image(
                CONTAINS, codes.SOURCE_OF_MEASUREMENT, str(ds.SOPClassUID), str(ds.SOPInstanceUID)
            )
            for ds in headers
        ]


def _what(segment: Segment) -> tuple[Code, list[ContentItem]]:
    """The finding of a segment and its site.

    Viewers label a group by its finding alone: where one code holds both structure and side, both
    lungs are told apart by it; elsewhere the side stands at the site.
    """
    if segment.laterality is None:
        return segment.type, []
    one = codes.LATERALISED.get((segment.type.value, segment.laterality.value))
    return (one, []) if one else (segment.type, _site(segment.type, segment.laterality))


def _site(site: Code | None, laterality: Code | None = None) -> list[ContentItem]:
    if site is None:
        return []
    side = [code(HAS_CONCEPT_MOD, codes.LATERALITY, laterality)] if laterality else []
    return [code(HAS_CONCEPT_MOD, codes.FINDING_SITE, site, side)]


def _same(one: Code, other: Code) -> bool:
    """Meanings are for people (PS3.3 8.3)."""
    return (one.value, one.scheme) == (other.value, other.scheme)


def _worth_drawing(mask: NDArray[np.bool_]) -> list[Polygon]:
    lines = outlines(mask)
    least = MIN_OUTLINE * enclosed(lines[0])
    return [line for line in lines[:MAX_OUTLINES] if enclosed(line) >= least]
