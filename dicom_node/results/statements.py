"""Owns what a report says: measurement groups and qualitative evaluations.

Writes down a prediction, and every number of it once. What is drawn on an image is a TID 1501 group
whose NUM is inferred from an SCOORD and whose tracking identifier names the viewer's tool, because
that is what viewers show; beside it one TID 1410 or 1411 group with the same Tracking UID refers to
the segmentation for those who read structure (PS3.16 annex A). Refuses to know the document that
all of it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from highdicom.sr import ContentItem
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Encoding, Identifiers, SrForm
from dicom_node.errors import ResultError
from dicom_node.results import codes, words
from dicom_node.results.content import (
    CONTAINS,
    HAS_CONCEPT_MOD,
    HAS_OBS_CONTEXT,
    HAS_PROPERTIES,
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
from dicom_node.results.contour import Polygon, enclosed, regions
from dicom_node.results.geometry import Geometry, geometry, is_multi_frame
from dicom_node.results.identity import Identity
from dicom_node.results.segmentation import SOP_CLASSES as SEGMENTATIONS
from dicom_node.results.segmentation import SegmentNumber
from dicom_node.results.types import ModelIdentity, ReferencedSOP
from inference.types import Box, Code, Finding, FrameRef, Measurement, Prediction, Segment

FREEHAND = "Cornerstone3DTools@^0.1.0:PlanarFreehandROI"
RECTANGLE = "Cornerstone3DTools@^0.1.0:RectangleROI"
LENGTH = "Cornerstone3DTools@^0.1.0:Length"
"""Tracking identifiers by which OHIF makes a group its own, editable annotation."""

MAX_OUTLINES = 4
MIN_OUTLINE = 0.05
"""Of one segment on one frame: at most so many outlines, none below this share of the largest."""

MAX_NAMED_IMAGES = 8
"""A finding on more images than this names their series; the image library lists them all."""


class Statements:
    """What a report says of a prediction; one method per way of saying something.

    A verdict without a place is a measurement group of its own under plain identifiers, as IHE AI
    Results has it. OHIF opens no report that has a group without coordinates, so for viewers it
    is a qualitative evaluation, which holds the same rows below it.

    Attributes:
        groups: below Imaging Measurements.
        evaluations: below Qualitative Evaluations.
    """

    def __init__(
        self,
        identity: Identity,
        numbered: Mapping[int, SegmentNumber],
        form: SrForm,
        cited: ReferencedSOP | None,
    ) -> None:
        self.groups: list[ContentItem] = []
        self.evaluations: list[ContentItem] = []
        self.identity = identity
        self.source = identity.source
        self.headers = identity.source.by_uid
        self.numbers = numbered
        self.for_viewers = form.identifiers is Identifiers.VIEWER
        # DCMTK, and all that stands on it, reads no report that refers to a label map.
        label_map = cited and cited.sop_class_uid == SEGMENTATIONS[Encoding.LABELMAP]
        self.cited = None if label_map else cited
        self.places: Geometry = geometry(identity.source)

    def add(self, prediction: Prediction) -> None:
        """Say all of it."""
        if prediction.not_analysed is not None:
            self.not_analysed(prediction.not_analysed)
            return
        for index, segment in enumerate(prediction.segments):
            if index in self.numbers:
                self.groups += self.segment(segment, index, self.numbers[index])
            else:
                self.absent(segment, index)
        for index, finding in enumerate(prediction.findings):
            self.finding(finding, index)

    def not_analysed(self, reason: str) -> None:
        """What was wanted and why it was not done; no finding."""
        model = self.identity.model
        identifier = f"{model.title}: not analysed"
        tracking_uid = self.identity.tracking("not analysed", 0)
        why = f"Not analysed by {model.title} {model.version}: {reason}"
        # CID 7036 judges the images for the algorithm of this group, not for a reader.
        whom = "Image quality refers to this algorithm only."
        quality = codes.IMAGE_QUALITY, codes.NON_DIAGNOSTIC_QUALITY
        if self.for_viewers:
            rows = self._below(identifier, tracking_uid, _algorithm(model))
            note = text(HAS_PROPERTIES, codes.COMMENT, whom)
            self.evaluations += [
                text(CONTAINS, codes.COMMENT, why, rows),
                code(CONTAINS, *quality, [note]),
            ]
            return
        rows = [
            *_algorithm(model),
            *self._images(CONTAINS),
            code(CONTAINS, *quality),
            text(CONTAINS, codes.COMMENT, why),
            text(CONTAINS, codes.COMMENT, whom),
        ]
        self.groups.append(self._group("1501", identifier, tracking_uid, rows))

    def absent(self, segment: Segment, index: int) -> None:
        """Looked for, not found."""
        what, sites = _what(segment)
        category = code(HAS_PROPERTIES, codes.FINDING_CATEGORY, segment.category)
        tracking_uid = self.identity.tracking("segment", index)
        modifiers = [*sites, *_algorithm(self.identity.model)]
        if self.for_viewers:
            rows = self._below(segment.label, tracking_uid, modifiers, [category])
            self.evaluations.append(code(CONTAINS, what, codes.ABSENT, rows))
            return
        rows = [
            code(CONTAINS, codes.FINDING_CATEGORY, segment.category),
            code(CONTAINS, codes.FINDING, what),
            *modifiers,
            *self._images(CONTAINS),
            code(CONTAINS, what, codes.ABSENT),
        ]
        self.groups.append(self._group("1501", segment.label, tracking_uid, rows))

    def finding(self, finding: Finding, index: int) -> None:
        """A verdict: present or absent, how probable, how severe; and where."""
        threshold = [] if finding.threshold is None else [f"threshold={finding.threshold:g}"]
        modifiers = [*_site(finding.site), *_algorithm(self.identity.model, *threshold)]
        verdict = finding.code, codes.PRESENT if finding.present else codes.ABSENT
        boxes = [
            self.box(finding, box, f"finding {index} box", place)
            for place, box in enumerate(finding.boxes)
        ]
        if self.for_viewers and not boxes:
            rows = self._below(
                finding.label,
                self.identity.tracking("finding", index),
                modifiers,
                _numbers(HAS_PROPERTIES, finding),
            )
            # OHIF shows an evaluation without what stands below it: the sentence tells that.
            self.evaluations += [
                code(CONTAINS, *verdict, rows),
                text(CONTAINS, codes.COMMENT, words.verdict(finding)),
            ]
            return
        rows = [
            code(CONTAINS, codes.FINDING, finding.code),
            *modifiers,
            *_numbers(CONTAINS, finding),
            *self._images(CONTAINS),
            code(CONTAINS, *verdict),
        ]
        # Viewers join the groups of one Tracking UID and want the drawn one first: so the verdict
        # shares the first box's and follows it.
        tracking_uid = (
            self.identity.tracking(f"finding {index} box", 0)
            if boxes
            else self.identity.tracking("finding", index)
        )
        told = self._group("1501", finding.label, tracking_uid, rows)
        self.groups += [*boxes[:1], told, *boxes[1:]]

    def _below(
        self,
        identifier: str,
        tracking_uid: str,
        modifiers: Iterable[ContentItem],
        properties: Iterable[ContentItem] = (),
    ) -> list[ContentItem]:
        """The rows of a measurement group, below an evaluation.

        As properties, since Enhanced SR gives an evaluation no observation context (PS3.3 A.35.2).
        """
        return [
            text(HAS_PROPERTIES, codes.TRACKING_IDENTIFIER, identifier),
            uid(HAS_PROPERTIES, codes.TRACKING_UID, tracking_uid),
            *modifiers,
            *properties,
            *self._images(INFERRED_FROM),
        ]

    def segment(self, segment: Segment, index: int, entry: SegmentNumber) -> Iterator[ContentItem]:
        """What is drawn, then what is referred to."""
        what, sites = _what(segment)
        common_rows = [
            code(CONTAINS, codes.FINDING_CATEGORY, segment.category),
            code(CONTAINS, codes.FINDING, what),
            *sites,
            *_algorithm(self.identity.model),
        ]
        frame = _largest(segment)
        whole = self._area_of(segment, frame)
        parts = regions(segment.mask[frame])
        for place, part in enumerate(parts[:MAX_OUTLINES]):
            if part.pixels < MIN_OUTLINE * parts[0].pixels:
                break
            shown = whole
            if len(parts) > 1:
                shown = Measurement(codes.AREA, *self._area(part.pixels), frame)
            tracking_uid = entry.tracking_uid
            if place:
                tracking_uid = self.identity.tracking(f"segment {index} part", place)
            drawn = self._drawn(part.outline, frame)
            yield self._group(
                "1501",
                self._identifier(FREEHAND, segment.label),
                tracking_uid,
                [*common_rows, number(CONTAINS, shown.name, shown.value, shown.unit, [drawn])],
            )
        for place, length in enumerate(m for m in segment.measurements if m.line is not None):
            yield self._group(
                "1501",
                self._identifier(LENGTH, f"{segment.label}, {length.name.meaning}"),
                self.identity.tracking(f"segment {index} length", place),
                [*common_rows, self._length(length)],
            )
        rest = [m for m in segment.measurements if m is not whole and m.line is None]
        if len(parts) > 1:
            rest.insert(0, whole)
        if self.cited or rest:
            template, where = self._whereabouts(segment, entry)
            rows = [*common_rows, *where, *map(self._number, rest)]
            yield self._group(template, segment.label, entry.tracking_uid, rows)

    def _whereabouts(self, segment: Segment, entry: SegmentNumber) -> tuple[str, list[ContentItem]]:
        """The template of the group that stands for the whole segment, and what it refers to."""
        if self.cited is None:
            return "1501", self._images(CONTAINS)
        target = (self.cited.sop_class_uid, self.cited.sop_instance_uid)
        if self.places.positions is None or len(self.source.frames) == 1:
            # One frame stands for all (TID 1410 rows 7 and 8): the one that is drawn. The Tracking
            # UID leads to the others.
            frame = _largest(segment)
            number_of_it = entry.frames[entry.source_frames.index(frame)]
            return "1410", [
                image(
                    CONTAINS, codes.REFERENCED_SEGMENTATION_FRAME, *target, frames=(number_of_it,)
                ),
                self._frame_image(CONTAINS, codes.SOURCE_IMAGE_FOR_SEGMENTATION, self._ref(frame)),
            ]
        first = self.headers[self.source.frames[0].sop_instance_uid]
        series = str(first.SeriesInstanceUID)
        return "1411", [
            image(CONTAINS, codes.REFERENCED_SEGMENT, *target, segment=entry.number),
            uid(CONTAINS, codes.SOURCE_SERIES_FOR_SEGMENTATION, series),
        ]

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
            self._identifier(RECTANGLE, f"{finding.label}, region {index + 1}"),
            self.identity.tracking(what, index),
            [
                code(CONTAINS, codes.FINDING, finding.code),
                *_site(finding.site),
                *_algorithm(self.identity.model),
                number(CONTAINS, codes.AREA, area, unit, [self._drawn(corners, box.frame)]),
            ],
        )

    def _identifier(self, tool: str, plain: str) -> str:
        """The viewer's tool, unless the viewer would go on to say what is not true.

        OHIF 3.13 measures outlines on ultrasound anew in units that are wrong by orders of
        magnitude; under a plain identifier it draws them with our number and leaves it at that.
        """
        wrong = tool == FREEHAND and self.source.first.get("Modality") in ("US", "IVUS")
        return tool if self.for_viewers and not wrong else plain

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

    def _area_of(self, segment: Segment, frame: int) -> Measurement:
        """The area of a segment on ``frame``: the model's own, else counted here."""
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

    def _length(self, length: Measurement) -> ContentItem:
        """A length with the line along which it was measured."""
        if length.frame is None or length.line is None:
            raise ResultError(f"{length.name.meaning}: a line needs its frame")
        line = np.array(length.line, dtype=np.float64)
        drawn = self._drawn(line, length.frame)
        return number(CONTAINS, length.name, length.value, length.unit, [drawn])

    def _drawn(self, line: Polygon, frame: int) -> ContentItem:
        on = self._frame_image(SELECTED_FROM, codes.SOURCE, self._ref(frame))
        return polyline(INFERRED_FROM, codes.SOURCE_OF_MEASUREMENT, line, on)

    def _ref(self, frame: int) -> FrameRef:
        if not 0 <= frame < len(self.source.frames):
            raise ResultError(f"frame {frame} of a source of {len(self.source.frames)} frames")
        return self.source.frames[frame]

    def _frame_image(self, relationship: str, name: Code, ref: FrameRef) -> ContentItem:
        multi = is_multi_frame(self.headers[ref.sop_instance_uid])
        return image(
            relationship,
            name,
            ref.sop_class_uid,
            ref.sop_instance_uid,
            frames=(ref.frame,) if multi else (),
        )

    def _images(self, relationship: str) -> list[ContentItem]:
        """What a statement about the whole input refers to."""
        headers: Sequence[Dataset] = list(self.headers.values())
        if len(headers) > MAX_NAMED_IMAGES:
            series = sorted({str(ds.SeriesInstanceUID) for ds in headers})
            return [uid(relationship, codes.SERIES_INSTANCE_UID, value) for value in series]
        return [
            image(
                relationship,
                codes.SOURCE_OF_MEASUREMENT,
                str(ds.SOPClassUID),
                str(ds.SOPInstanceUID),
            )
            for ds in headers
        ]


def _largest(segment: Segment) -> int:
    """The frame on which a segment has most pixels."""
    return int(np.argmax(segment.mask.sum(axis=(1, 2))))


def _numbers(relationship: str, finding: Finding) -> list[ContentItem]:
    """What stands behind a verdict."""
    rows = []
    if finding.probability is not None:
        rows.append(number(relationship, codes.PROBABILITY, finding.probability, codes.NO_UNITS))
    if finding.score is not None:
        rows.append(number(relationship, codes.SEVERITY, finding.score, codes.NO_UNITS))
    if finding.severity is not None:
        rows.append(code(relationship, codes.SEVERITY, finding.severity))
    return rows


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


def _algorithm(model: ModelIdentity, *parameters: str) -> list[ContentItem]:
    """TID 4019, with the parameters of the model and those of one group."""
    told = [f"{key}={value}" for key, value in sorted(model.parameters.items())]
    return [
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_NAME, model.name),
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_VERSION, model.version),
        text(HAS_CONCEPT_MOD, codes.ALGORITHM_MANUFACTURER, model.manufacturer),
        *(text(HAS_CONCEPT_MOD, codes.ALGORITHM_PARAMETERS, p) for p in (*told, *parameters)),
    ]
