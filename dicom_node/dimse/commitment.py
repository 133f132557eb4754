"""Owns the words of the Storage Commitment Push Model that both roles speak (PS3.4 annex J).

Refuses to know who asked, and what follows from a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from dicom_node.dimse.contexts import is_uid
from dicom_node.dimse.status import PROCESSING_FAILURE

PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_COMMITMENT = 1  # action type, PS3.4 J.3.2

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""


@dataclass(frozen=True)
class Request:
    """What is asked under one transaction."""

    transaction_uid: str
    references: Sequence[Reference]


@dataclass(frozen=True)
class Report:
    """What a destination answers to one request, perhaps not of all that was asked.

    Attributes:
        transaction_uid: of the request.
        held: SOP Instance UIDs that it keeps from now on.
        failed: Failure Reason (0008,1197) of the others, by SOP Instance UID.
    """

    transaction_uid: str
    held: frozenset[str] = frozenset()
    failed: Mapping[str, int] = field(default_factory=dict)


def action(request: Request) -> Dataset:
    """The action information of PS3.4 table J.3-1."""
    information = Dataset()
    information.TransactionUID = request.transaction_uid
    information.ReferencedSOPSequence = []
    for sop_class, instance in request.references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        information.ReferencedSOPSequence.append(item)
    return information


def parse_report(information: Dataset) -> Report | None:
    """The event information of PS3.4 table J.3-2, untrusted; None where it is none.

    The sequences say more than the event type. An instance in both has failed.
    """
    transaction = information.get("TransactionUID")
    if not is_uid(transaction):
        return None
    failed = {}
    for item in information.get("FailedSOPSequence") or ():
        reason = item.get("FailureReason")
        failed[_instance(item)] = reason if isinstance(reason, int) else PROCESSING_FAILURE
    held = {_instance(item) for item in information.get("ReferencedSOPSequence") or ()}
    return Report(str(transaction), frozenset(held - failed.keys()), failed)


def _instance(item: Dataset) -> str:
    return str(item.get("ReferencedSOPInstanceUID", ""))
