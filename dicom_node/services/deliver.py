"""Owns the way of a stored result to its destinations, and transaction T5: what each answered.

Sends the bytes that are on disk, the same every time; what is cited goes before what cites it.
Where a destination takes no objects of a form, another goes in its place (``services.forms``). One
that is away is left alone (``services.breaker``); one that took a result is asked whether it holds
it (``services.commitments``).
Refuses to know sockets: ``dicom_node.destinations`` does.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import Any

import structlog
from pydicom import dcmread
from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session, aliased, selectinload
from sqlalchemy.sql.base import ExecutableOption

from dicom_node import faults
from dicom_node.audit import messages, who
from dicom_node.audit.messages import Participant
from dicom_node.destinations.build import build
from dicom_node.destinations.types import Item, Sent, Untried
from dicom_node.dimse.status import SOP_CLASS_NOT_SUPPORTED
from dicom_node.domain.delivery import ARRIVED, DeliveryState, Terms, after, wait
from dicom_node.domain.profile import describe
from dicom_node.domain.study import Patient, StudyState, conflicting_patients
from dicom_node.errors import (
    AccessDenied,
    ConfigurationError,
    DeliveryFailed,
    DestinationClosed,
    InvalidTransition,
    NodeError,
    NotFound,
    Retry,
    Unavailable,
)
from dicom_node.services import audit, breaker, claims, commitments, forms
from dicom_node.services.alerts import alert_once, fault, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.deliveries import is_due, subject_of
from dicom_node.services.headers import patient_of
from dicom_node.services.processes import beating
from dicom_node.services.send import item_of
from dicom_node.store.tables import (
    Delivery,
    DeliveryAttempt,
    Destination,
    Job,
    Result,
    Revision,
    Study,
)

AT_ONCE = 50
"""Deliveries that one association carries, at most."""
WORTH_ANOTHER = 8
"""Deliveries for which a further association is opened beside one that is busy."""
SIDE_BY_SIDE = 32
"""Associations that one process holds at a time."""
LONG_ENOUGH = 120.0
"""Seconds after which no more is begun: a nudge brings us back, a long task would be killed."""

ACCESS = "access denied"
"""Kind of the alert that a destination does not accept our credentials; resolved by an arrival."""
GIVEN_UP = "delivery dead"
"""Kind of the alert on a delivery; resolved by its arrival."""
ANOTHER = "another patient"
"""Kind of the alert on a study; resolved by the arrival of a result that names its patient."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Sending:
    """A claimed delivery with what is needed to send it after the transaction.

    ``study`` and ``patient`` are those of its study as it is held now.
    """

    row: Delivery
    item: Item
    sha256: str
    job_id: int
    position: int
    form: str
    destination: str
    terms: Terms
    study: str
    patient: Patient
    place: Participant
    began: datetime


class _AnotherPatient(DeliveryFailed):
    """The result names another patient or study than the one that it is a result of."""


def deliver(node: Node, jitter: Callable[[], float] = random.random) -> int:
    """Send and ask what is due until nothing is, destinations side by side: none waits for another.

    Returns:
        How many deliveries were attempted.
    """
    attempted, until = 0, time.monotonic() + LONG_ENOUGH
    running: dict[tuple[str, int, int], Future[int]] = {}
    broken: set[tuple[str, int, int]] = set()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running["lay out", 0, 0] = pool.submit(_lay_out, node)
        while True:
            # Asked again and again: what cites a SEG becomes due when the SEG has arrived, and
            # results are made while a destination hangs.
            if time.monotonic() < until:
                for work, begin in _due(node, jitter).items():
                    if work not in running and work not in broken:
                        running[work] = pool.submit(begin)
            if not running:
                return attempted
            wait_for(running.values(), timeout=1, return_when=FIRST_COMPLETED)
            for work in [work for work, future in running.items() if future.done()]:
                try:
                    attempted += running.pop(work).result()
                except Exception as error:  # the others go on; the next nudge tries it again
                    broken.add(work)
                    kind, place, _ = work
                    log.error("fault", doing=kind, destination=place, reason=_words(error))


def _due(node: Node, jitter: Callable[[], float]) -> dict[tuple[str, int, int], Callable[[], int]]:
    """What can be done now, each under a name of its own: kind, destination, association."""
    counting = (
        _sendable(node)
        .with_only_columns(Delivery.destination_id, func.count())
        .group_by(Delivery.destination_id)
    )
    work: dict[tuple[str, int, int], Callable[[], int]] = {}
    with node.database.reading() as session:
        counts = session.execute(counting).all()
        terms = {place: _terms(session.get_one(Destination, place)) for place, _ in counts}
    for place, count in counts:
        at_once = min(max(math.ceil(count / terms[place].associations), WORTH_ANOTHER), AT_ONCE)
        for number in range(min(math.ceil(count / at_once), terms[place].associations)):
            work["send", place, number] = partial(_deliver_to, node, place, at_once, jitter)
    for place in commitments.due(node):
        work["ask", place, 0] = partial(_ask, node, place, jitter)
    for place in breaker.to_probe(node):
        work["probe", place, 0] = partial(_probe, node, place, jitter)
    return work


def _terms(destination: Destination) -> Terms:
    return Terms.parse(destination.config.get("delivery", {}))


def _lay_out(node: Node) -> int:
    forms.lay_out_waiting(node)
    return 0


def _ask(node: Node, destination_id: int, jitter: Callable[[], float]) -> int:
    commitments.confirm(node, destination_id, jitter)
    return 0


def _probe(node: Node, destination_id: int, jitter: Callable[[], float]) -> int:
    breaker.probe(node, destination_id, jitter)
    return 0


def _deliver_to(node: Node, destination_id: int, at_once: int, jitter: Callable[[], float]) -> int:
    claimed = _claim(node, destination_id, at_once)
    if not claimed:
        return 0
    faults.step("claimed", "delivery")
    with node.database.reading() as session:
        destination = session.get_one(Destination, destination_id)
    left = {sending.item.sop_instance_uid: sending for sending in claimed}
    fates: list[Sent | DeliveryFailed] = []

    def record(item: Item, outcome: Sent | DeliveryFailed) -> None:
        fates.append(outcome)
        # Ours until it is recorded: where that fails, as when another entered the same form
        # meanwhile, it is an attempt that failed, and is told.
        _record(node, left[item.sop_instance_uid], outcome, jitter)
        del left[item.sop_instance_uid]

    for sending in claimed:
        if failure := _unfit(sending):
            _record(node, left.pop(sending.item.sop_instance_uid), failure, jitter)
    every = node.settings.worker.lease / 4
    with beating(lambda: claims.beat(node, [s.row for s in list(left.values())]), every):
        try:
            items = [sending.item for sending in left.values()]
            if items:
                build(destination.kind, destination.config, node.settings).send(items, record)
            lost = DeliveryFailed("no answer", Retry.LATER)
        except DeliveryFailed as error:
            lost = error
        except ConfigurationError as error:
            lost = DeliveryFailed(f"its entry cannot be used: {error}", Retry.LATER)
        except NodeError:
            raise  # the database is away: the lease runs out
        except Exception as error:  # what libraries raise on what a peer says
            lost = DeliveryFailed(f"fault of this node: {fault(error)}", Retry.LATER)
    for sending in list(left.values()):
        record(sending.item, lost)
    closed = [fate for fate in fates if isinstance(fate, DestinationClosed)]
    if len(closed) < len(fates) and destination.failures:
        breaker.answered(node, destination_id)
    if closed:
        breaker.failed(node, destination_id, closed[0], jitter())
    return len(claimed)


def _sendable(node: Node) -> Select[Delivery]:
    """What is due, unless its study is held, its destination is closed, or what it cites is still
    to be sent there.
    """
    earlier_delivery, earlier_result = aliased(Delivery), aliased(Result)
    blocked = (
        select(earlier_delivery.id)
        .join(earlier_result, earlier_result.id == earlier_delivery.result_id)
        .where(
            earlier_result.job_id == Result.job_id,
            earlier_result.position < Result.position,
            earlier_delivery.destination_id == Delivery.destination_id,
            earlier_delivery.state.not_in((*ARRIVED, DeliveryState.REPLACED)),
        )
        .exists()
    )
    return (
        select(Delivery)
        .join(Result)
        .join(Job)
        .join(Revision)
        .join(Study)
        .join(Destination)
        .where(
            breaker.is_open(),
            is_due(node),
            Study.state != StudyState.HELD,
            ~blocked,
        )
    )


def _claim(node: Node, destination_id: int, at_once: int) -> list[_Sending]:
    query = (
        _sendable(node)
        .where(Delivery.destination_id == destination_id)
        .options(*_loaded())
        .order_by(Job.due_at, Job.id, Result.position)
        .limit(at_once)
    )
    if node.database.is_postgresql:
        query = query.with_for_update(skip_locked=True, of=Delivery)
    with node.database.transaction() as session:
        rows = session.scalars(query).all()
        return [
            _sending(node, row)
            for row in rows
            if claims.claim(session, node, row, DeliveryState.PENDING, DeliveryState.SENDING)
        ]


def _loaded() -> tuple[ExecutableOption, ...]:
    """What `_sending` reads."""
    job = selectinload(Delivery.result).selectinload(Result.job)
    study = job.selectinload(Job.revision).selectinload(Revision.study)
    return study, selectinload(Delivery.destination)


def take_back(node: Node, seen: Delivery, jitter: Callable[[], float] = random.random) -> None:
    """A delivery whose sender is gone, or stood still: its attempt counts as one that failed.

    Args:
        node: of whom nobody sends it any more.
        seen: as it was when that was judged; one that has moved since is left alone.
        jitter: 0..1, for waits.
    """
    query = select(Delivery).where(
        Delivery.id == seen.id, Delivery.token == seen.token, Delivery.beat == seen.beat
    )
    with node.database.reading() as session:
        row = session.scalar(query.options(*_loaded()))
        sending = row and _sending(node, row)
    if sending:
        lost = DeliveryFailed("its sender died or was frozen", Retry.LATER)
        _record(node, sending, lost, jitter)


def _sending(node: Node, row: Delivery) -> _Sending:
    result = row.result
    study = result.job.revision.study
    return _Sending(
        row,
        item_of(node.results, result),
        result.sha256,
        result.job_id,
        result.position,
        result.form,
        row.destination.name,
        _terms(row.destination),
        study.study_instance_uid,
        Patient(study.patient_id, study.patient_issuer),
        who.place(row.destination.name, row.destination.config),
        node.now(),
    )


def _unfit(sending: _Sending) -> DeliveryFailed | None:
    """Why the stored file must not leave: it is altered, or tells another patient or study."""
    try:
        data = sending.item.path.read_bytes()
    except OSError:
        data = b""
    if sha256(data).hexdigest() != sending.sha256:
        altered = "the stored file is missing or altered; it is not sent"
        return DeliveryFailed(altered, Retry.NEVER)
    keys = ["PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SpecificCharacterSet"]
    header = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=keys)
    same_study = str(header.get("StudyInstanceUID", "")) == sending.study
    if same_study and not conflicting_patients([patient_of(header), sending.patient]):
        return None
    what = "patient" if same_study else "study"
    return _AnotherPatient(f"it names another {what} than its study does now", Retry.NEVER)


def _record(
    node: Node, sending: _Sending, outcome: Sent | DeliveryFailed, jitter: Callable[[], float]
) -> None:
    """T5: the answer and what follows from it, unless the claim has gone stale."""
    faults.step("sent", "delivery")
    now, row, settings = node.now(), sending.row, node.settings.delivery
    arrived, instead = isinstance(outcome, Sent), None
    if isinstance(outcome, DeliveryFailed):
        try:
            instead = _instead(node, sending, outcome)
        except Unavailable as error:  # a full disk is no reason to give up, nor is a dead decoder
            why = f"{outcome.reason}; no other form yet: {error}"
            outcome = DeliveryFailed(why, Retry.LATER, outcome.status)
    answer = _answer(sending, outcome)
    values: dict[str, Any]
    if isinstance(outcome, Sent):
        asked_at = commitments.first_question(sending.terms, now)
        values = {"state": DeliveryState.SENT, "sent_at": now, "confirm_at": asked_at}
    elif instead:
        values = {"state": DeliveryState.REPLACED}
        answer += f"; {describe(instead.layout)} goes instead"
    elif outcome.retry is Retry.NEVER or (
        row.attempts >= settings.attempts and not isinstance(outcome, Untried)
    ):
        values = {"state": DeliveryState.DEAD}
    else:
        first, longest = (
            timedelta(seconds=settings.backoff),
            timedelta(seconds=settings.backoff_max),
        )
        values = {
            "state": DeliveryState.PENDING,
            "next_at": now
            + max(wait(row.attempts, first, longest, jitter()), timedelta(seconds=outcome.wait)),
            "attempts": row.attempts - isinstance(outcome, Untried),
        }
    if values["state"] in (DeliveryState.SENT, DeliveryState.DEAD):
        # Before it is recorded: who is killed in between sends it again, and tells it again.
        what = messages.Study(sending.study, sending.patient, {sending.item.sop_class_uid: 1})
        audit.delivered(node, sending.place, sending.began, what, "" if arrived else answer)
    with node.database.transaction() as session:
        session.add(
            DeliveryAttempt(delivery_id=row.id, at=now, status=outcome.status, answer=answer)
        )
        ours = claims.still_ours(
            session, row, DeliveryState.SENDING, last_answer=answer, owner=None, **values
        )
        if arrived:
            resolve_alerts(session, now, ACCESS, sending.destination)
            resolve_alerts(session, now, GIVEN_UP, subject_of(row))
            resolve_alerts(session, now, ANOTHER, sending.study)
        elif isinstance(outcome, AccessDenied):
            alert_once(session, now, ACCESS, sending.destination, answer)
        if ours and instead:
            forms.enter(session, node, sending.job_id, sending.destination, instead)
        if ours and values["state"] is DeliveryState.DEAD:
            _give_up(session, sending, answer, now, isinstance(outcome, _AnotherPatient))
        faults.step("commit", "delivery")
    faults.step("recorded", "delivery")
    if instead and not ours:
        forms.discard(node, instead.objects)
    log.log(
        logging.INFO if arrived else logging.WARNING,
        "delivered" if arrived else "not delivered",
        delivery=row.id,
        sop_instance_uid=sending.item.sop_instance_uid,
        status=outcome.status,
        answer=answer,
        state=str(values["state"]),
    )


def _instead(node: Node, sending: _Sending, outcome: DeliveryFailed) -> forms.Relaid | None:
    """What goes in the place of a form whose SOP class or syntax the destination does not take.

    Raises:
        Unavailable: it cannot be built now.
    """
    if outcome.retry is not Retry.NEVER or outcome.status != SOP_CLASS_NOT_SUPPORTED:
        return None
    try:
        return forms.prepare(node, sending.job_id, sending.destination, (sending.form,))
    except Unavailable:
        raise
    except Exception as error:  # what libraries raise on headers that they do not expect
        log.error(
            "no other form", delivery=sending.row.id, job=sending.job_id, reason=_words(error)
        )
        return None


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, NodeError) else fault(error)


def _answer(sending: _Sending, outcome: Sent | DeliveryFailed) -> str:
    """In words; never the peer's own comment, which may quote the patient."""
    if isinstance(outcome, DeliveryFailed):
        return outcome.reason
    words = "success" if outcome.status == 0 else f"warning 0x{outcome.status:04X}"
    if outcome.transfer_syntax != sending.item.transfer_syntax:
        words += f", sent re-encoded in {outcome.transfer_syntax}"
    return words


def _give_up(
    session: Session, sending: _Sending, answer: str, now: datetime, another: bool
) -> None:
    """An alert; and what cites this result must not arrive without it."""
    if another:
        kind, subject = ANOTHER, sending.study
        follows = (
            f"`dicom-node studies show {subject}` tells whose it is; "
            f"`dicom-node studies reopen {subject}` analyses it as it is now"
        )
    else:
        kind, subject = GIVEN_UP, subject_of(sending.row)
        follows = f"`dicom-node deliveries retry {sending.row.id}` sends it again"
    alert_once(session, now, kind, subject, f"{answer}; {follows}")
    citing = (
        select(Delivery.id)
        .join(Result)
        .where(
            Result.job_id == sending.job_id,
            Result.position > sending.position,
            Delivery.destination_id == sending.row.destination_id,
            Delivery.state == DeliveryState.PENDING,
        )
    )
    session.execute(
        update(Delivery)
        .where(Delivery.id.in_(citing))
        .values(state=DeliveryState.DEAD, last_answer="what it cites was not accepted")
        .execution_options(synchronize_session=False)
    )


def retry_delivery(node: Node, delivery_id: int) -> None:
    """Send a dead delivery or one that arrived again, the same bytes, with what died with it.

    Raises:
        NotFound: there is none by that number.
        InvalidTransition: it is on its way already.
    """
    with node.database.transaction() as session:
        row = session.get(Delivery, delivery_id)
        if row is None:
            raise NotFound("delivery", str(delivery_id))
        # Locked: a purge must not take the file from under it.
        session.get(Job, row.result.job_id, with_for_update=True)
        session.refresh(row, with_for_update=True)
        session.refresh(row.result)
        if row.result.purging_at:
            state = f"without its file, purged on {row.result.purging_at:%Y-%m-%d}"
            raise InvalidTransition(f"delivery {row.id}", state, "send it again")
        after("retry", str(row.id), DeliveryState(row.state))
        together = session.scalars(
            select(Delivery)
            .join(Result)
            .where(
                Result.job_id == row.result.job_id,
                Delivery.destination_id == row.destination_id,
                (Delivery.id == row.id) | (Delivery.state == DeliveryState.DEAD),
            )
        )
        for delivery in together:
            delivery.state, delivery.attempts, delivery.asked = DeliveryState.PENDING, 0, 0
            delivery.next_at, delivery.confirm_at = node.now(), None
