"""What a report says of its prediction, what it cites, and how it names what it found."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from tests.attributes.case import Case, cited, hierarchy, wrong_frame_number
from tests.judges.types import kind_of
from tests.tid1500 import children, concept, descendants, evaluations, groups

NOT_FOR_DIAGNOSIS = "Research use, not for diagnosis"
MEANINGS = {code.value: code.meaning for code in map(codes.DCM.__getattr__, codes.DCM.dir())}
"""Of DICOM's own codes (PS3.16 D), as pydicom knows them."""


def shared_tracking(case: Case) -> Iterator[str]:
    """A segment's Tracking UID leads to a group; a group that refers to it has its Tracking ID."""
    other = case.segmentation
    if other is None:
        return
    told: defaultdict[str, set[str]] = defaultdict(set)
    referring = groups(case.data, "1410") + groups(case.data, "1411")
    for one in statements(case.data):
        for uid in children(one, "UIDREF", "112040 DCM"):
            told[uid.UID] |= {child.TextValue for child in children(one, "TEXT", "112039 DCM")}
    for item in other.SegmentSequence:
        if not item.get("TrackingID") or not item.get("TrackingUID"):
            yield f"{item.SegmentLabel}: no Tracking ID or UID"
        elif kind_of(case.data) == "sr":
            if item.TrackingUID not in told:
                yield f"{item.TrackingID}: its UID is in no group"
            elif referring and item.TrackingID not in told[item.TrackingUID]:
                yield f"{item.TrackingID}: tracked as {sorted(told[item.TrackingUID])}"


def flags(case: Case) -> Iterator[str]:
    told = tuple(
        case.data.get(keyword)
        for keyword in ("CompletionFlag", "VerificationFlag", "PreliminaryFlag")
    )
    if told != ("COMPLETE", "UNVERIFIED", "PRELIMINARY"):
        yield str(told)
    if "VerifyingObserverSequence" in case.data:
        yield "somebody is named who verified it"


def evidence(case: Case) -> Iterator[str]:
    told = cited(case.data, "evidence")
    for uid in cited(case.data, "content") - told:
        yield f"{uid} is cited and not there"
    for uid in set(case.source.by_uid) - told:
        yield f"{uid} is of the source and not there"
    known = dict(case.source.by_uid) | case.origin.instances
    for study, one, uid in hierarchy(case.data, "CurrentRequestedProcedureEvidenceSequence"):
        held = known.get(uid)
        if held is None:
            yield f"{uid} is neither source nor result"
        elif (held.StudyInstanceUID, held.SeriesInstanceUID) != (study, one):
            yield f"{uid} in another study or series than its own"


def library(case: Case) -> Iterator[str]:
    (container,) = children(case.data, "CONTAINER", "111028 DCM")
    told = Counter(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in descendants(container, "IMAGE")
    )
    if told != Counter(case.source.by_uid.keys()):
        yield f"{len(told)} images for {len(case.source.by_uid)} of the source"


def procedure(case: Case) -> Iterator[str]:
    told = [item.ConceptCodeSequence[0] for item in children(case.data, "CODE", "121058 DCM")]
    if not told:
        yield "none"
    theirs = [
        item
        for item in case.first.get("ProcedureCodeSequence") or []
        if item.get("CodeValue") and item.get("CodingSchemeDesignator") and item.get("CodeMeaning")
    ]
    if theirs and told and told[0].CodeValue != theirs[0].CodeValue:
        yield f"{told[0].CodeValue}, of the source {theirs[0].CodeValue}"


def predecessor(case: Case) -> Iterator[str]:
    told = {uid for _, _, uid in hierarchy(case.data, "PredecessorDocumentsSequence")}
    known = {sr.sop_instance_uid for sr in case.origin.context.predecessors.values()}
    if bool(told) != bool(known) or not told <= known or len(told) > 1:
        yield f"{len(told)} named, {len(known)} superseded"


def research(case: Case) -> Iterator[str]:
    said = any(NOT_FOR_DIAGNOSIS in item.TextValue for item in descendants(case.data, "TEXT"))
    if said != case.origin.model.research_only:
        yield f"said: {said}, research only: {case.origin.model.research_only}"


def statements(report: Dataset) -> list[Dataset]:
    """What says something: a measurement group, or an evaluation with such rows below it."""
    below = [item for item in evaluations(report) if children(item, "UIDREF", "112040 DCM")]
    return groups(report) + below


def never_silent(case: Case) -> Iterator[str]:
    """Whatever was looked for is told, found or not; why not, where nothing was analysed."""
    prediction, told = case.origin.prediction, statements(case.data)
    if prediction.not_analysed is not None:
        texts = [item.TextValue for item in descendants(case.data, "TEXT")]
        if not any(prediction.not_analysed in text for text in texts):
            yield "the reason why nothing was analysed is not told"
        names = [concept(item) for item in descendants(case.data, "CODE")]
        if "121071 DCM" in names or any(map(verdict, told)):
            yield "a finding of what was not analysed"
        if "111101 DCM" not in names:
            yield "no Image Quality (CID 7036)"
        return
    verdicts = [verdict(one) for one in told]
    absent = sum(segment.empty for segment in prediction.segments)
    absent += sum(not finding.present for finding in prediction.findings)
    present = sum(finding.present for finding in prediction.findings)
    for meaning, value, wanted in (("Absent", "2667000", absent), ("Present", "52101004", present)):
        if verdicts.count(value) != wanted:
            yield f"{verdicts.count(value)} say {meaning}, {wanted} should"


def verdict(statement: Dataset) -> str | None:
    """Present or Absent, of the finding itself."""
    if statement.ValueType == "CODE":
        return str(statement.ConceptCodeSequence[0].CodeValue)
    for finding in children(statement, "CODE", "121071 DCM"):
        code = finding.ConceptCodeSequence[0]
        name = f"{code.CodeValue} {code.CodingSchemeDesignator}"
        for item in children(statement, "CODE", name):
            return str(item.ConceptCodeSequence[0].CodeValue)
    return None


def algorithms(case: Case) -> Iterator[str]:
    """Every statement names who made it, with the model's parameters."""
    model = case.origin.model
    parameters = {f"{key}={value}" for key, value in model.parameters.items()}
    for one in statements(case.data):
        told = [
            [item.TextValue for item in children(one, "TEXT", name)]
            for name in ("111001 DCM", "111003 DCM", "111002 DCM")
        ]
        if told[:2] != [[model.name], [model.version]] or not parameters <= set(told[2]):
            yield f"{concept(one)}: {told}"
    thresholds = {
        f"threshold={finding.threshold:g}"
        for finding in case.origin.prediction.findings
        if finding.threshold is not None and case.origin.prediction.not_analysed is None
    }
    said = {i.TextValue for i in descendants(case.data, "TEXT") if concept(i) == "111002 DCM"}
    yield from (f"{one} is not told" for one in sorted(thresholds - said))


def numbers(case: Case) -> Iterator[str]:
    """Each number of the prediction stands once, with its unit."""
    prediction = case.origin.prediction
    if prediction.not_analysed is not None:
        return
    told = Counter(
        (concept(item).split()[0], value.MeasurementUnitsCodeSequence[0].CodeValue,
         float(value.NumericValue))
        for item in descendants(case.data, "NUM")
        for value in item.MeasuredValueSequence
    )  # fmt: skip
    wanted = [
        (one.name.value, one.unit.value, one.value)
        for segment in case.origin.found
        for one in segment.measurements
    ]
    for finding in prediction.findings:
        wanted += [("122157", "1", finding.probability)] if finding.probability is not None else []
        wanted += [("246112005", "1", finding.score)] if finding.score is not None else []
    for name, unit, value in wanted:
        count = told[name, unit, float(f"{value:.6g}")]
        if count != 1:
            yield f"{name} = {value:g} {unit} stands {count} times"


def boxes(case: Case) -> Iterator[str]:
    """Each box is a rectangle on its frame."""
    if case.origin.prediction.not_analysed is not None:
        return
    drawn = {
        (*_image_of(item), *np.round(_points(item).min(0), 3), *np.round(_points(item).max(0), 3))
        for item in descendants(case.data, "SCOORD")
        if len(_points(item)) == 5
    }
    for finding in case.origin.prediction.findings:
        for box in finding.boxes:
            ref = case.source.frames[box.frame]
            wanted = (ref.sop_instance_uid, ref.frame, box.left, box.top, box.right, box.bottom)
            if wanted not in drawn:
                yield f"{finding.label}: {box} is not drawn"


def _points(item: Dataset) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(item.GraphicData, dtype=float).reshape(-1, 2)


def _image_of(item: Dataset) -> tuple[str, int]:
    (image,) = children(item, "IMAGE")
    (reference,) = image.ReferencedSOPSequence
    return (
        str(reference.ReferencedSOPInstanceUID),
        int(reference.get("ReferencedFrameNumber") or 1),
    )


def outlines(case: Case) -> Iterator[str]:
    """Regions are closed and lie on the image; a length is a line of two points."""
    for item in descendants(case.data, "SCOORD"):
        points, image = _points(item), case.source.by_uid[_image_of(item)[0]]
        if item.GraphicType != "POLYLINE":
            yield f"a {item.GraphicType}"
        if len(points) > 2 and not np.array_equal(points[0], points[-1]):
            yield "a region that is not closed"
        if points.min() < 0 or (points.max(0) > (image.Columns, image.Rows)).any():
            yield f"points off the image: {points.min(0)} to {points.max(0)}"


def frame_numbers(case: Case) -> Iterator[str]:
    """A frame is named where the image has several."""
    for item in descendants(case.data, "SCOORD"):
        (image,) = children(item, "IMAGE")
        (reference,) = image.ReferencedSOPSequence
        origin = case.source.by_uid[str(reference.ReferencedSOPInstanceUID)]
        if wrong_frame_number(origin, reference):
            yield f"{reference.ReferencedSOPInstanceUID}: frame number missing or out of place"


def code_meanings(case: Case) -> Iterator[str]:
    """DICOM's own codes carry DICOM's own meanings: viewers match them by these."""
    seen = set()
    for item in case.data.iterall():
        if item.keyword not in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
            continue
        for code in item.value:
            if not (code.CodeValue and code.CodingSchemeDesignator and code.CodeMeaning):
                yield f"an incomplete code {code.CodeValue}"
            if code.CodingSchemeDesignator == "DCM":
                seen.add((str(code.CodeValue), str(code.CodeMeaning)))
    for value, meaning in sorted(seen):
        if MEANINGS.get(value, meaning).lower() != meaning.lower():
            yield f"{value} is {MEANINGS[value]!r}, not {meaning!r}"
