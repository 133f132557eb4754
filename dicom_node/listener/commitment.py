"""Owns storage commitment at the listener; commits nothing but what the inbox holds durably.

As SCU it hands what destinations report to the inbox. As SCP it answers to the AE's known endpoint,
tried a few times from one background thread; an AE without one gets it on its own association,
right after the N-ACTION response. Answers that wait are lost with the process: PS3.4 J.3 lets the
SCU ask again.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import cast

import structlog
from pydicom.dataset import Dataset
from pynetdicom import build_role
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import Event
from pynetdicom.presentation import build_context

from dicom_node.destinations.dimse import DimseDestination, released, why_not
from dicom_node.dimse import status
from dicom_node.dimse.acceptor import GuardedAssociation
from dicom_node.dimse.commitment import PUSH_MODEL_INSTANCE, REQUEST_COMMITMENT, parse_report
from dicom_node.dimse.contexts import STORAGE_COMMITMENT, UNCOMPRESSED, is_uid
from dicom_node.errors import DeliveryFailed, Retry
from dicom_node.listener.inbox import Inbox
from dicom_node.listener.measured import measured

log = structlog.get_logger(__name__)

ALL_HELD, SOME_FAILED = 1, 2  # event types, PS3.4 J.3.3
NO_SUCH_OBJECT, CLASS_CONFLICT = 0x0112, 0x0119  # failure reasons, PS3.3 C.14.1.1
DELAYS = (0.0, 2.0, 10.0, 60.0, 300.0)
"""Seconds before each attempt to answer."""
WAITING_ANSWERS = 1000


@dataclass(frozen=True)
class Request:
    """One N-ACTION: who wants which instances committed; SOP class by SOP instance."""

    calling: str
    transaction_uid: str
    references: Mapping[str, str]


class Commitments:
    """Takes requests, and answers each once.

    Args:
        inbox: knows what is held and where to answer.
        delays: seconds before each attempt.
    """

    def __init__(self, inbox: Inbox, delays: Sequence[float] = DELAYS) -> None:
        self._inbox, self._delays = inbox, delays
        self._changed = threading.Condition()
        self._order = itertools.count()
        # (due, order, attempt, request, endpoint); order keeps requests from being compared
        self._waiting: list[tuple[float, int, int, Request, DimseDestination]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="commitment", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what waits is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(1.0)

    @measured("ActionInformation")
    def request(self, event: Event) -> tuple[int, Dataset | None]:
        """N-ACTION: note what the modality expects us to hold, and promise an answer."""
        if event.action_type != REQUEST_COMMITMENT:
            return status.NO_SUCH_ACTION, None
        if cast(N_ACTION, event.request).RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            return status.NO_SUCH_INSTANCE, None
        association = cast(GuardedAssociation, event.assoc)
        wanted = _parse(association.requestor.ae_title, event.action_information)
        if wanted is None:
            return status.INVALID_ARGUMENT, None
        try:
            self._inbox.expect(
                association=association.row,
                source="commitment",
                study_uid=None,
                sop_instance_uids=list(wanted.references),
            )
            endpoint = self._inbox.endpoint(wanted.calling)
        except Exception as error:
            log.error("commitment not taken", error=type(error).__name__, **association.names)
            return status.PROCESSING_FAILURE, None
        if endpoint is None:
            context_id = event.context.context_id
            association.afterwards.append(
                lambda: self._answer_here(association, context_id, wanted)
            )
        elif not self._enqueue(wanted, endpoint, attempt=0):
            return status.RESOURCE_LIMITATION, None
        return status.SUCCESS, None

    @measured("EventInformation")
    def report(self, event: Event) -> tuple[int, None]:
        """N-EVENT-REPORT: what a destination says of results that it was asked to keep."""
        association = cast(GuardedAssociation, event.assoc)
        try:
            report = parse_report(event.event_information)
            if report is None:
                return status.INVALID_ARGUMENT, None
            return self._inbox.report(report, association.requestor.ae_title), None
        except Exception as error:
            log.error("report not recorded", error=type(error).__name__, **association.names)
            return status.PROCESSING_FAILURE, None

    def _answer_here(
        self, association: GuardedAssociation, context_id: int, wanted: Request
    ) -> None:
        """Send the report without waiting for its response, which the reactor lets pass.

        Waiting would take the peer's next request for the response.
        """
        try:
            event_type, information = _report(wanted, self._inbox.commit(wanted.references))
        except Exception as error:
            log.error("commitment not answered", error=type(error).__name__, **association.names)
            return
        syntax = association._accepted_cx[context_id].transfer_syntax[0]
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian)
        message = N_EVENT_REPORT()
        message.MessageID = 1
        message.AffectedSOPClassUID = STORAGE_COMMITMENT
        message.AffectedSOPInstanceUID = PUSH_MODEL_INSTANCE
        message.EventTypeID = event_type
        message.EventInformation = BytesIO(encoded or b"")
        association.dimse.send_msg(message, context_id)

    def _enqueue(self, wanted: Request, endpoint: DimseDestination, attempt: int) -> bool:
        due = time.monotonic() + self._delays[attempt]
        with self._changed:
            if len(self._waiting) >= WAITING_ANSWERS:
                return False
            heapq.heappush(self._waiting, (due, next(self._order), attempt, wanted, endpoint))
            self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (left := self._seconds_left()) != 0:
                    self._changed.wait(left)
                if self._stopped:
                    return
                _, _, attempt, wanted, endpoint = heapq.heappop(self._waiting)
            self._try(wanted, endpoint, attempt)

    def _seconds_left(self) -> float | None:
        """Until the next attempt; None where nothing waits."""
        return max(self._waiting[0][0] - time.monotonic(), 0) if self._waiting else None

    def _try(self, wanted: Request, endpoint: DimseDestination, attempt: int) -> None:
        names = {"calling": wanted.calling, "transaction_uid": wanted.transaction_uid}
        try:
            event_type, information = _report(wanted, self._inbox.commit(wanted.references))
            _deliver(endpoint, event_type, information)
            answered = True
        except Exception as error:
            reason = error.reason if isinstance(error, DeliveryFailed) else type(error).__name__
            log.warning("commitment attempt failed", error=reason, **names)
            answered = False
        if answered:
            log.info("commitment answered", complete=event_type == ALL_HELD, **names)
        elif attempt + 1 == len(self._delays) or not self._enqueue(wanted, endpoint, attempt + 1):
            log.error("commitment not answered", attempts=attempt + 1, **names)


def _deliver(endpoint: DimseDestination, event_type: int, information: Dataset) -> None:
    """Tell the modality.

    Raises:
        DeliveryFailed: it was not told.
    """
    # We ask for the association and are the SCP all the same: PS3.4 J.3.3.
    role = build_role(STORAGE_COMMITMENT, scp_role=True)
    contexts = [build_context(STORAGE_COMMITMENT, list(UNCOMPRESSED))]
    association = endpoint.associate(contexts, ext_neg=[role])
    with released(association):
        if not association.is_established:
            raise why_not(association)
        answer, _ = association.send_n_event_report(
            information, event_type, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE
        )
    if answer.get("Status") != status.SUCCESS:
        raise DeliveryFailed("no success in answer to the report", Retry.LATER)


def _parse(calling: str, information: Dataset) -> Request | None:
    transaction = information.get("TransactionUID")
    pairs = [
        (str(item.get("ReferencedSOPInstanceUID")), str(item.get("ReferencedSOPClassUID")))
        for item in information.get("ReferencedSOPSequence") or ()
    ]
    references = dict(pairs)
    uids = itertools.chain([transaction], *pairs)
    # An instance of two classes is none that anybody can promise to keep.
    if not pairs or len(references) < len(set(pairs)) or not all(is_uid(uid) for uid in uids):
        return None
    return Request(calling, str(transaction), references)


def _report(wanted: Request, held: Mapping[str, str]) -> tuple[int, Dataset]:
    """The event type and information of PS3.4 table J.3-2.

    Args:
        wanted: what was asked.
        held: SOP class by SOP instance, of what is here.
    """
    information, kept, failed = Dataset(), [], []
    information.TransactionUID = wanted.transaction_uid
    for instance, sop_class in wanted.references.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        if held.get(instance) == sop_class:
            kept.append(item)
        else:
            item.FailureReason = CLASS_CONFLICT if instance in held else NO_SUCH_OBJECT
            failed.append(item)
    if kept:
        information.ReferencedSOPSequence = kept
    if failed:
        information.FailedSOPSequence = failed
    return (SOME_FAILED if failed else ALL_HELD), information
