"""Owns the storage commitment SCU (PS3.4 annex J): asks, and takes reports that come at once.

A report may come on the association on which was asked, or on one to our listener, minutes or days
later; what it means is not decided here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context

from dicom_node.destinations.dimse import DimseDestination, released, why_not
from dicom_node.dimse.commitment import (
    PUSH_MODEL_INSTANCE,
    REQUEST_COMMITMENT,
    Report,
    Request,
    action,
    parse_report,
)
from dicom_node.dimse.contexts import STORAGE_COMMITMENT, UNCOMPRESSED
from dicom_node.dimse.status import INVALID_ARGUMENT, PROCESSING_FAILURE, SUCCESS, commits
from dicom_node.errors import DeliveryFailed, Retry

LINGER = 1.0
"""Seconds for which an association stays open for reports, where any is outstanding."""

log = structlog.get_logger(__name__)

OnAnswer = Callable[[Request, DeliveryFailed | None], None]
"""None: the destination will report. ``Retry.NEVER``: it does not commit at all. No status, and
``Retry.LATER``: it said nothing, and may report all the same."""
OnReport = Callable[[Report], int]
"""Records a report; the status with which it is answered."""


def ask(
    destination: DimseDestination,
    requests: Sequence[Request],
    on_answer: OnAnswer,
    on_report: OnReport,
    linger: float = LINGER,
) -> None:
    """Ask for all of them on one association.

    Args:
        destination: whom.
        requests: each that was asked is told of once by ``on_answer``; none is after one that
            found no answer, for that ends the association.
        on_answer: called as each is answered; what it raises ends the asking.
        on_report: called in another thread; also for reports on requests of former times.
        linger: seconds to wait for reports on the same association.

    Raises:
        DestinationClosed: it cannot be reached; the rest was not asked.
    """
    desk = _Desk(on_report)
    association = destination.associate(
        [build_context(STORAGE_COMMITMENT, list(UNCOMPRESSED))],
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, desk.take)],
    )
    with released(association):
        if not association.is_established:
            if not association.rejected_contexts:
                raise why_not(association)
            for request in requests:
                on_answer(request, DeliveryFailed("it offers no storage commitment", Retry.NEVER))
            return
        for number, request in enumerate(requests, 1):
            desk.expect(request.transaction_uid)
            failure = _ask(association, request, number % 65535)
            if failure is not None:
                desk.forget(request.transaction_uid)
            on_answer(request, failure)
            if failure is not None and failure.status is None:
                return
        desk.wait(association, linger)


def _ask(association: Association, request: Request, number: int) -> DeliveryFailed | None:
    try:
        answer, _ = association.send_n_action(
            action(request), REQUEST_COMMITMENT, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE, number
        )
    except RuntimeError as error:  # the association ended since
        raise why_not(association) from error
    if "Status" not in answer:
        # It stores all the same, perhaps: no reason to send it nothing.
        return DeliveryFailed("no answer to the request for commitment", Retry.LATER)
    status = int(answer.Status)
    if status == SUCCESS:
        return None
    words = f"commitment refused with status 0x{status:04X}"
    return DeliveryFailed(words, Retry.LATER if commits(status) else Retry.NEVER, status)


class _Desk:
    """Takes the reports of one association, in its reactor's thread."""

    def __init__(self, on_report: OnReport) -> None:
        self._on_report = on_report
        self._changed = threading.Condition()
        self._outstanding: set[str] = set()
        self._busy = 0

    def expect(self, transaction: str) -> None:
        with self._changed:
            self._outstanding.add(transaction)

    def forget(self, transaction: str) -> None:
        with self._changed:
            self._outstanding.discard(transaction)
            self._changed.notify_all()

    def take(self, event: Event) -> tuple[int, None]:
        with self._changed:
            self._busy += 1
        report = None
        try:
            report = parse_report(event.event_information)
            return (INVALID_ARGUMENT if report is None else self._on_report(report)), None
        except Exception as error:  # whatever the bytes lead pydicom to, or a database away
            log.error("report not recorded", error=type(error).__name__)
            return PROCESSING_FAILURE, None
        finally:
            with self._changed:
                self._busy -= 1
            self.forget(report.transaction_uid if report else "")

    def wait(self, association: Association, seconds: float) -> None:
        """Until all have come, the time is up, or the peer left; never amid a report."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._busy or (
                self._outstanding
                and association.is_established
                and association.dul.is_alive()
                and time.monotonic() < until
            ):
                self._changed.wait(0.05)
        # pynetdicom answers after `take`; an answer that the release overtakes is asked for again.
        time.sleep(0.02)
