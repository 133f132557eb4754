"""Owns the Modality Performed Procedure Step SCP; keeps no procedure steps, only their evidence.

A completed step lists what the modality made: the best evidence that a study is complete. Which
study, is said when the step is created, and remembered in this process only. Another process, or
one that was restarted, gets the step's end without its beginning; the images are told then
without the study, rather than refused (PS3.4 F.7.2.2 would allow 0x0112).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom.dimse_primitives import N_CREATE, N_SET
from pynetdicom.events import Event

from dicom_node.dimse import status
from dicom_node.dimse.acceptor import GuardedAssociation
from dicom_node.dimse.contexts import is_uid
from dicom_node.listener.inbox import Inbox
from dicom_node.listener.measured import measured

log = structlog.get_logger(__name__)

REMEMBERED_STEPS = 1000

Answer = tuple[int, Dataset | None]


class ProcedureSteps:
    """The steps that began here and have not ended."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._lock = threading.Lock()
        self._study_of: OrderedDict[str, str | None] = OrderedDict()

    @measured("AttributeList")
    def create(self, event: Event) -> Answer:
        """N-CREATE: a step begins (PS3.4 F.7.2.1)."""
        attributes, reply = event.attribute_list, None
        instance = cast(N_CREATE, event.request).AffectedSOPInstanceUID
        if attributes.get("PerformedProcedureStepStatus") != "IN PROGRESS":
            return status.INVALID_ATTRIBUTE_VALUE, None
        if instance is None:
            instance, reply = generate_uid(prefix=None), Dataset()
            reply.AffectedSOPInstanceUID = instance
        studies = {
            step.get("StudyInstanceUID")
            for step in attributes.get("ScheduledStepAttributesSequence") or ()
        }
        # A step performed for several requests may lie in several studies: then it says nothing.
        study = studies.pop() if len(studies) == 1 else None
        with self._lock:
            if instance in self._study_of:
                return status.DUPLICATE_INSTANCE, None
            self._study_of[instance] = str(study) if is_uid(study) else None
            if len(self._study_of) > REMEMBERED_STEPS:
                self._study_of.popitem(last=False)
        return status.SUCCESS, reply

    @measured("ModificationList")
    def update(self, event: Event) -> Answer:
        """N-SET: a step goes on or ends; a completed one tells what it made (F.7.2.2)."""
        association = cast(GuardedAssociation, event.assoc)
        changes = event.modification_list
        instance = str(cast(N_SET, event.request).RequestedSOPInstanceUID)
        if changes.get("PerformedProcedureStepStatus") == "COMPLETED":
            made = [uid for uid in _instances(changes) if is_uid(uid)]
            with self._lock:
                study = self._study_of.get(instance)
            try:
                self._inbox.expect(
                    association=association.row,
                    source="mpps",
                    study_uid=study,
                    sop_instance_uids=made,
                )
            except Exception as error:  # the modality sends it again
                log.error("procedure step lost", error=type(error).__name__, **association.names)
                return status.PROCESSING_FAILURE, None
            log.info("procedure step completed", instances=len(made), **association.names)
        if changes.get("PerformedProcedureStepStatus") in ("COMPLETED", "DISCONTINUED"):
            with self._lock:
                self._study_of.pop(instance, None)
        return status.SUCCESS, None


def _instances(changes: Dataset) -> Iterator[str]:
    for series in changes.get("PerformedSeriesSequence") or ():
        for kind in (
            "ReferencedImageSequence",
            "ReferencedNonImageCompositeSOPInstanceSequence",
        ):
            for reference in series.get(kind) or ():
                yield str(reference.get("ReferencedSOPInstanceUID"))
