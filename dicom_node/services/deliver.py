"""Owns the way of a stored result to its destinations, and transaction T5: what each answered.

Sends the bytes that are on disk, the same every time; what is cited goes before what cites it.
Where a destination takes no objects of a form, another goes in its place (``services.forms``).
Refuses to know sockets: ``dicom_node.destinations`` does.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import structlog
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session, aliased, selectinload

from dicom_node.destinations.build import build
from dicom_node.destinations.types import Item, Sent
from dicom_node.dimse.status import SOP_CLASS_NOT_SUPPORTED
from dicom_node.domain.delivery import DeliveryState, after, wait
from dicom_node.domain.profile import describe
from dicom_node.domain.study import StudyState
from dicom_node.errors import DeliveryFailed, NodeError, NotFound, Retry, Unavailable
from dicom_node.services import claims, forms
from dicom_node.services.alerts import alert_once, fault
from dicom_node.services.context import Node
from dicom_node.services.processes import beating
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
SIDE_BY_SIDE = 16
"""Destinations that one process sends to at a time."""
LONG_ENOUGH = 120.0
"""Seconds after which no more is begun: a nudge brings us back, a long task would be killed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Sending:
    """A claimed delivery with what is needed to send it after the transaction."""

    row: Delivery
    item: Item
    sha256: str
    job_id: int
    position: int
    form: str
    destination: str


def deliver(node: Node, jitter: Callable[[], float] = random.random) -> int:
    """Send what is due until nothing is, destinations side by side: none waits for another.

    Returns:
        How many deliveries were attempted.
    """
    forms.lay_out_waiting(node)
    attempted, until = 0, time.monotonic() + LONG_ENOUGH
    running: dict[int, Future[int]] = {}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        while True:
            # Asked again and again: what cites a SEG becomes due when the SEG has arrived, and
            # results are made while a destination hangs.
            due = set() if time.monotonic() > until else _due(node)
            for place in due - running.keys():
                running[place] = pool.submit(_deliver_to, node, place, jitter)
            if not running:
                return attempted
            wait_for(running.values(), timeout=1, return_when=FIRST_COMPLETED)
            for place in [place for place, sending in running.items() if sending.done()]:
                attempted += running.pop(place).result()


def _due(node: Node) -> set[int]:
    """Destinations for which something can be sent now."""
    places = _sendable(node).with_only_columns(Delivery.destination_id).distinct()
    with node.database.reading() as session:
        return set(session.scalars(places))


def _deliver_to(node: Node, destination_id: int, jitter: Callable[[], float]) -> int:
    claimed = _claim(node, destination_id)
    if not claimed:
        return 0
    with node.database.reading() as session:
        destination = session.get_one(Destination, destination_id)
    left = {sending.item.sop_instance_uid: sending for sending in claimed}

    def record(item: Item, outcome: Sent | DeliveryFailed) -> None:
        _record(node, left.pop(item.sop_instance_uid), outcome, jitter)

    for sending in claimed:
        if not _is_sound(sending):
            altered = "the stored file is missing or altered; it is not sent"
            record(sending.item, DeliveryFailed(altered, Retry.NEVER))
    every = node.settings.worker.lease / 4
    with beating(lambda: claims.beat(node, [s.row for s in list(left.values())]), every):
        try:
            items = [sending.item for sending in left.values()]
            build(destination.kind, destination.config, node.settings).send(items, record)
            lost = DeliveryFailed("no answer", Retry.LATER)
        except DeliveryFailed as error:
            lost = error
    for sending in list(left.values()):
        record(sending.item, lost)
    return len(claimed)


def _sendable(node: Node) -> Select[Delivery]:
    """What is due, unless its study is held or what it cites is still to be sent there."""
    earlier_delivery, earlier_result = aliased(Delivery), aliased(Result)
    blocked = (
        select(earlier_delivery.id)
        .join(earlier_result, earlier_result.id == earlier_delivery.result_id)
        .where(
            earlier_result.job_id == Result.job_id,
            earlier_result.position < Result.position,
            earlier_delivery.destination_id == Delivery.destination_id,
            earlier_delivery.state.not_in((DeliveryState.SENT, DeliveryState.REPLACED)),
        )
        .exists()
    )
    return (
        select(Delivery)
        .join(Result)
        .join(Job)
        .join(Revision)
        .join(Study)
        .where(
            Delivery.state == DeliveryState.PENDING,
            Delivery.next_at <= node.now(),
            Study.state != StudyState.HELD,
            ~blocked,
        )
    )


def _claim(node: Node, destination_id: int) -> list[_Sending]:
    query = (
        _sendable(node)
        .where(Delivery.destination_id == destination_id)
        .options(selectinload(Delivery.result), selectinload(Delivery.destination))
        .order_by(Job.due_at, Job.id, Result.position)
        .limit(AT_ONCE)
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


def _sending(node: Node, row: Delivery) -> _Sending:
    result = row.result
    item = Item(
        path=node.results.path(result.path),
        sop_class_uid=result.sop_class_uid,
        sop_instance_uid=result.sop_instance_uid,
        transfer_syntax=result.transfer_syntax,
    )
    return _Sending(
        row,
        item,
        result.sha256,
        result.job_id,
        result.position,
        result.form,
        row.destination.name,
    )


def _is_sound(sending: _Sending) -> bool:
    try:
        return sha256(sending.item.path.read_bytes()).hexdigest() == sending.sha256
    except OSError:
        return False


def _record(
    node: Node, sending: _Sending, outcome: Sent | DeliveryFailed, jitter: Callable[[], float]
) -> None:
    """T5: the answer and what follows from it, unless the claim has gone stale."""
    now, row, settings = node.now(), sending.row, node.settings.delivery
    arrived, instead = isinstance(outcome, Sent), None
    if isinstance(outcome, DeliveryFailed):
        try:
            instead = _instead(node, sending, outcome)
        except Unavailable as error:  # a full disk is no reason to give up
            why = f"{outcome.reason}; no other form yet: {error}"
            outcome = DeliveryFailed(why, Retry.LATER, outcome.status)
    answer = _answer(sending, outcome)
    if isinstance(outcome, Sent):
        values = {"state": DeliveryState.SENT, "sent_at": now}
    elif instead:
        values = {"state": DeliveryState.REPLACED}
        answer += f"; {describe(instead.layout)} goes instead"
    elif outcome.retry is Retry.NEVER or row.attempts >= settings.attempts:
        values = {"state": DeliveryState.DEAD}
    else:
        first, longest = (
            timedelta(seconds=settings.backoff),
            timedelta(seconds=settings.backoff_max),
        )
        values = {
            "state": DeliveryState.PENDING,
            "next_at": now + wait(row.attempts, first, longest, jitter()),
        }
    with node.database.transaction() as session:
        session.add(
            DeliveryAttempt(delivery_id=row.id, at=now, status=outcome.status, answer=answer)
        )
        ours = claims.still_ours(
            session, row, DeliveryState.SENDING, last_answer=answer, owner=None, **values
        )
        if ours and instead:
            forms.enter(session, node, sending.job_id, sending.destination, instead)
        if ours and values["state"] is DeliveryState.DEAD:
            _give_up(session, sending, answer, now)
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
        reason = str(error) if isinstance(error, NodeError) else fault(error)
        log.error("no other form", delivery=sending.row.id, job=sending.job_id, reason=reason)
        return None


def _answer(sending: _Sending, outcome: Sent | DeliveryFailed) -> str:
    """In words; never the peer's own comment, which may quote the patient."""
    if isinstance(outcome, DeliveryFailed):
        return outcome.reason
    words = "success" if outcome.status == 0 else f"warning 0x{outcome.status:04X}"
    if outcome.transfer_syntax != sending.item.transfer_syntax:
        words += f", sent re-encoded in {outcome.transfer_syntax}"
    return words


def _give_up(session: Session, sending: _Sending, answer: str, now: datetime) -> None:
    """An alert; and what cites this result must not arrive without it."""
    alert_once(
        session,
        now,
        "delivery dead",
        sending.item.sop_instance_uid,
        f"{answer}; `dicom-node deliveries retry {sending.row.id}` sends it again",
    )
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
    """Send a dead or a sent delivery again, the same bytes, with what was given up with it.

    Raises:
        NotFound: there is none by that number.
        InvalidTransition: it is on its way already.
    """
    with node.database.transaction() as session:
        row = session.get(Delivery, delivery_id, with_for_update=True)
        if row is None:
            raise NotFound("delivery", str(delivery_id))
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
            delivery.state, delivery.attempts = DeliveryState.PENDING, 0
            delivery.next_at = node.now()
