"""Owns the translation of a C-STORE request; decides nothing about the instance."""

from __future__ import annotations

from typing import cast

import structlog
from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicom_node.dimse import status
from dicom_node.dimse.contexts import is_uid, storage_classes
from dicom_node.dimse.transport import DiscardedDataSet, GuardedAssociation
from dicom_node.errors import IdentifierProblem, OverLimit, RefusedInstance, UnreadableDataSet
from dicom_node.listener.inbox import Inbox
from dicom_node.services.receive import Reception

log = structlog.get_logger(__name__)


def store(event: Event, inbox: Inbox) -> int | Dataset:
    """Answer one C-STORE: 0x0000 only after the inbox says that the instance is durable."""
    association = cast(GuardedAssociation, event.assoc)
    try:
        reception = _reception(event, association)
        if isinstance(reception, int):
            log.warning(
                "instance refused",
                status=f"0x{reception:04X}",
                sop_instance_uid=_told_uid(event),
                **association.names,
            )
            return status.response(reception, "SOP class not supported in this context")
        inbox.receive(reception)
    except RefusedInstance as refusal:
        answer = status.response_to(refusal)
        log.warning(
            "instance refused",
            status=f"0x{answer.Status:04X}",
            reason=refusal.reason,
            sop_instance_uid=refusal.sop_instance_uid or _told_uid(event),
            **association.names,
        )
        return answer
    except Exception as error:
        answer = status.response_to(error)
        log.error(
            "instance not stored",
            status=f"0x{answer.Status:04X}",
            error=type(error).__name__,
            sop_instance_uid=_told_uid(event),
            **association.names,
        )
        return answer
    return status.SUCCESS


def _told_uid(event: Event) -> str | None:
    """The request's own, for the log; what is no UID is not repeated there."""
    told = cast(C_STORE, event.request).AffectedSOPInstanceUID
    return str(told) if is_uid(told) else None


def _reception(event: Event, association: GuardedAssociation) -> Reception | int:
    """The request as the services take it, or the status of one outside the negotiation."""
    request, context = cast(C_STORE, event.request), event.context
    sop_class, instance = request.AffectedSOPClassUID, request.AffectedSOPInstanceUID
    if not is_uid(sop_class) or not is_uid(instance):
        raise IdentifierProblem("Affected SOP Class or Instance UID missing or malformed")
    if sop_class != context.abstract_syntax or sop_class not in storage_classes():
        return status.SOP_CLASS_NOT_SUPPORTED
    if isinstance(request.DataSet, DiscardedDataSet):
        raise OverLimit("data set larger than this node takes", instance)
    dataset = request.DataSet.getvalue() if request.DataSet else b""
    if not dataset:
        raise UnreadableDataSet("no data set", instance)
    return Reception(
        dataset=dataset,
        transfer_syntax=str(context.transfer_syntax),
        sop_class_uid=str(sop_class),
        sop_instance_uid=str(instance),
        association=cast(int, association.row),  # set before it was accepted
    )
