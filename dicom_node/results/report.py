"""Owns the structured report: what a model says, after TID 1500.

A Comprehensive 3D SR, or the same content as an Enhanced SR: all of it is by value, and none of it
in three dimensions. Refuses to judge, and leaves to ``results.statements`` what is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from highdicom.sr import ContentItem
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_node.domain.profile import Document, SrForm
from dicom_node.errors import ResultError
from dicom_node.results import codes
from dicom_node.results.content import (
    CONTAINS,
    HAS_ACQ_CONTEXT,
    HAS_CONCEPT_MOD,
    HAS_OBS_CONTEXT,
    code,
    container,
    image,
    text,
    uid,
)
from dicom_node.results.evidence import hierarchical, reference
from dicom_node.results.header import RESEARCH_USE, common
from dicom_node.results.identity import Identity
from dicom_node.results.normalise import fit_character_set
from dicom_node.results.segmentation import SOP_CLASSES as SEGMENTATIONS
from dicom_node.results.segmentation import SegmentNumber
from dicom_node.results.statements import Statements
from dicom_node.results.types import ReferencedSOP, Source
from inference.types import Code, Prediction

SOP_CLASSES: Mapping[Document, str] = {
    Document.COMPREHENSIVE_3D: Comprehensive3DSRStorage,
    Document.ENHANCED: EnhancedSRStorage,
}


def report(
    prediction: Prediction,
    numbered: Mapping[int, SegmentNumber],
    identity: Identity,
    form: SrForm,
) -> Dataset:
    """The report of one prediction.

    Args:
        prediction: what the model says.
        numbered: what `segmentation.numbering` made of its segments.
        identity: of the job.
        form: which SOP class, what tracking identifiers say, which segmentation is cited.

    Raises:
        ResultError: the prediction says nothing at all, or points outside the source.
    """
    source, context = identity.source, identity.context
    dataset = common(form, SOP_CLASSES[form.document], "SR", identity)
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.PreliminaryFlag = "PRELIMINARY"
    dataset.PerformedProcedureCodeSequence = []
    dataset.ReferencedPerformedProcedureStepSequence = []
    evidence = [reference(ds) for ds in source.by_uid.values()]
    cited = _cited(identity, form) if numbered else None
    if cited:
        evidence.append(cited)
    dataset.CurrentRequestedProcedureEvidenceSequence = hierarchical(evidence)
    if superseded := context.predecessor(form):
        dataset.PredecessorDocumentsSequence = hierarchical([superseded])

    said = Statements(identity, numbered, form, cited)
    said.add(prediction)
    if not said.groups and not said.evaluations:
        raise ResultError("the prediction says nothing: no segment, no finding, no reason")
    remarks = [text(CONTAINS, codes.COMMENT, remark) for remark in _remarks(prediction, identity)]
    evaluations = _container(codes.QUALITATIVE_EVALUATIONS, [*said.evaluations, *remarks])
    # Order means nothing in TID 1500; who reads a report as text shall not have to scroll past the
    # images to learn that nothing was found.
    library = [_image_library(source)]
    rows = [*library, *_container(codes.IMAGING_MEASUREMENTS, said.groups), *evaluations]
    if not said.groups:
        rows = [*evaluations, *library]
    document = container(
        None,
        # OHIF shows the text of every report but those with the first of these titles, and of
        # those only what is drawn: a report that draws nothing must not look empty there.
        codes.IMAGING_MEASUREMENT_REPORT if said.groups else codes.CAD_SUMMARY,
        [
            code(HAS_CONCEPT_MOD, codes.LANGUAGE, codes.ENGLISH),
            *_observer(identity),
            code(HAS_CONCEPT_MOD, codes.PROCEDURE_REPORTED, _procedure(dataset, source)),
            *rows,
        ],
        template="1500",
    )
    dataset.update(document)
    fit_character_set(dataset, source.first)
    return dataset


def _container(name: Code, items: Sequence[ContentItem]) -> list[ContentItem]:
    return [container(CONTAINS, name, items)] if items else []


def _cited(identity: Identity, form: SrForm) -> ReferencedSOP | None:
    """The segmentation that stands beside the report."""
    if form.cites is None:
        return None
    return ReferencedSOP(
        SEGMENTATIONS[form.cites.encoding],
        identity.instance(form.cites),
        identity.series(form.cites),
        str(identity.source.first.StudyInstanceUID),
    )


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
