"""Owns the asking of destinations what they hold of what they took.

A question is a row before it is asked and a time after which it is asked again, so that whoever
dies in between, or an answer that is lost, costs time and nothing else. Refuses to know sockets,
and what follows from an answer: ``services.confirmations`` does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydicom.uid import generate_uid
from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.orm import Session, aliased, selectinload
from sqlalchemy.orm.util import AliasedClass

from dicom_node.destinations import commitment as scu
from dicom_node.destinations.build import build
from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Item
from dicom_node.dimse.commitment import Report, Request
from dicom_node.domain.delivery import (
    Confirmation,
    DeliveryState,
    Question,
    Terms,
    is_missed,
    question,
)
from dicom_node.errors import DeliveryFailed, DestinationClosed, Retry
from dicom_node.services import breaker, confirmations
from dicom_node.services.context import Node
from dicom_node.services.moments import has_come
from dicom_node.services.send import item_of
from dicom_node.store.tables import (
    Commitment,
    CommitmentItem,
    Delivery,
    Destination,
    Result,
)

SOON = timedelta(seconds=1)
"""From the last arrival to the first question: the rest of a job is often on its way."""
AT_ONCE = 50
"""Deliveries of one destination that are asked about at once, at most."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Doubted:
    """A delivery that is asked about, as it was claimed."""

    id: int
    job_id: int
    item: Item
    asked: int


def first_question(terms: Terms, now: datetime) -> datetime | None:
    """When a delivery that arrived now is first asked about; None: it is not."""
    return None if terms.commitment is Confirmation.NONE else now + SOON


def is_due(
    node: Node, delivery: type[Delivery] | AliasedClass[Delivery] = Delivery
) -> ColumnElement[bool]:
    """For queries: its destination is to be asked about it now."""
    longest = max(_patience(node), timedelta(seconds=node.settings.delivery.backoff), SOON)
    return has_come(delivery.confirm_at, node.now(), longest)


def due(node: Node) -> set[int]:
    """Destinations that are to be asked now."""
    places = _askable(node).with_only_columns(Delivery.destination_id).distinct()
    with node.database.reading() as session:
        return set(session.scalars(places))


def confirm(
    node: Node,
    destination_id: int,
    jitter: Callable[[], float] = random.random,
    draw: Callable[[], str] = lambda: str(generate_uid(prefix=None)),
) -> int:
    """Ask one destination about what it took.

    Args:
        node: whose deliveries.
        destination_id: whom to ask.
        jitter: 0..1, for waits.
        draw: makes Transaction UIDs that nobody guesses.

    Returns:
        How many deliveries were asked about.
    """
    with node.database.transaction() as session:
        place = session.get_one(Destination, destination_id)
        by, patience = confirmations.way(place), node.settings.delivery.commitment_attempts
        claimed: dict[Question, list[_Doubted]] = {kind: [] for kind in Question}
        for row in _claim(session, node, destination_id):
            kind = question(row.asked, patience, by)
            if kind is Question.QUERY:  # after what was not asked for
                row.asked = max(row.asked, patience)
            row.asked += 1
            row.confirm_at = node.now() + _patience(node)
            claimed[kind].append(_doubted(node, row))
            if kind is Question.NOTHING:
                confirmations.leave_open(session, node, row, "no answer on what it keeps")
        requests = _requests(session, node, destination_id, claimed[Question.COMMITMENT], draw)
    destination = build(place.kind, place.config, node.settings)
    asked: dict[int, bool] = {}
    try:
        if requests and isinstance(destination, DimseDestination):
            _ask(node, destination, by, requests, asked)
        if claimed[Question.QUERY]:
            _query(node, destination, claimed[Question.QUERY], jitter)
            asked |= {d.id: True for d in claimed[Question.QUERY]}
        if place.failures and any(asked.values()):
            breaker.answered(node, destination_id)
    except DestinationClosed as error:
        breaker.failed(node, destination_id, error, jitter())
    unasked = (*claimed[Question.COMMITMENT], *claimed[Question.QUERY])
    _not_asked(node, [d for d in unasked if d.id not in asked])
    return sum(map(len, claimed.values()))


def _patience(node: Node) -> timedelta:
    return timedelta(seconds=node.settings.delivery.commitment_timeout)


def _askable(node: Node) -> Select[Delivery]:
    """What is due, once all of its job has arrived there and none of it waits for an answer.

    So all of it is asked about under one transaction.
    """
    other, result = aliased(Delivery), aliased(Result)
    unfinished = (
        select(other.id)
        .join(result, result.id == other.result_id)
        .where(
            result.job_id == Result.job_id,
            other.destination_id == Delivery.destination_id,
            or_(
                other.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)),
                (other.state == DeliveryState.SENT) & ~is_due(node, other),
            ),
        )
        .exists()
    )
    return (
        select(Delivery)
        .join(Result)
        .join(Destination)
        .where(
            Delivery.state == DeliveryState.SENT,
            is_due(node),
            breaker.is_open(),
            ~unfinished,
        )
    )


def _claim(session: Session, node: Node, destination_id: int) -> Sequence[Delivery]:
    query = (
        _askable(node)
        .where(Delivery.destination_id == destination_id)
        .options(selectinload(Delivery.result))
        .order_by(Result.job_id, Result.position, Delivery.id)
        .limit(AT_ONCE)
    )
    if node.database.is_postgresql:
        query = query.with_for_update(skip_locked=True, of=Delivery)
    return session.scalars(query).all()


def _doubted(node: Node, row: Delivery) -> _Doubted:
    return _Doubted(row.id, row.result.job_id, item_of(node.results, row.result), row.asked)


def _requests(
    session: Session,
    node: Node,
    destination_id: int,
    doubted: Sequence[_Doubted],
    draw: Callable[[], str],
) -> dict[str, tuple[Request, list[_Doubted]]]:
    """A transaction for each job, in the database before anybody is asked."""
    made = {}
    for job in dict.fromkeys(d.job_id for d in doubted):
        members, uid = [d for d in doubted if d.job_id == job], draw()
        session.add(
            Commitment(
                transaction_uid=uid,
                destination_id=destination_id,
                job_id=job,
                asked_at=node.now(),
                items=[CommitmentItem(delivery_id=d.id) for d in members],
            )
        )
        references = [(d.item.sop_class_uid, d.item.sop_instance_uid) for d in members]
        made[uid] = Request(uid, references), members
    return made


def _ask(
    node: Node,
    destination: DimseDestination,
    by: Confirmation,
    requests: dict[str, tuple[Request, list[_Doubted]]],
    asked: dict[int, bool],
) -> None:
    """Ask for commitment; ``asked`` is told of which deliveries, and whether an answer came."""

    def note(request: Request, failure: DeliveryFailed | None) -> None:
        members = [d.id for d in requests[request.transaction_uid][1]]
        asked.update(dict.fromkeys(members, failure is None or _is_answer(failure)))
        if failure is None:
            log.info("commitment asked for", transaction=request.transaction_uid)
        else:
            _refused(node, request, members, by, failure)

    def report(told: Report) -> int:
        return confirmations.answer_to(confirmations.record(node, told, destination.ae_title))

    scu.ask(destination, [request for request, _ in requests.values()], note, report)


def _refused(
    node: Node, request: Request, deliveries: Sequence[int], by: Confirmation, why: DeliveryFailed
) -> None:
    """The destination does not take the request: for good, or for now (then time passes).

    Where it said nothing the transaction stays open: its report may come.
    """
    log.warning("commitment refused", transaction=request.transaction_uid, reason=why.reason)
    with node.database.transaction() as session:
        if _is_answer(why):
            _close(session, node, request.transaction_uid, why.reason)
        for row in confirmations.rows_in(session, deliveries, (DeliveryState.SENT,)):
            confirmations.note(session, node, row, why.reason, why.status)
            if why.retry is Retry.NEVER:
                confirmations.query_instead(session, node, row, by, why.reason)


def _is_answer(why: DeliveryFailed) -> bool:
    return why.status is not None or why.retry is Retry.NEVER


def _query(
    node: Node, destination: Any, doubted: Sequence[_Doubted], jitter: Callable[[], float]
) -> None:
    try:
        held = destination.confirm([d.item for d in doubted])
    except DestinationClosed:
        raise
    except DeliveryFailed as error:
        _not_told(node, doubted, error)
        return
    patience = node.settings.delivery.commitment_attempts
    with node.database.transaction() as session:
        for row in confirmations.rows_in(session, [d.id for d in doubted], (DeliveryState.SENT,)):
            count = row.asked
            if row.result.sop_instance_uid in held:
                confirmations.settle(session, node, row, "confirm", "found by a query")
            elif is_missed(count, patience):
                confirmations.lose(
                    session, node, row, "not found by a query", jitter(), asked=count
                )
            elif count >= 3 * patience:
                why = "not found by a query, though it took it"
                confirmations.leave_open(session, node, row, why)
                again = f"{why}; `dicom-node deliveries retry {row.id}` sends it again"
                confirmations.alarm(session, node, row, again)
            else:
                confirmations.note(session, node, row, "not found by a query yet")


def _not_told(node: Node, doubted: Sequence[_Doubted], why: DeliveryFailed) -> None:
    patience = node.settings.delivery.commitment_attempts
    with node.database.transaction() as session:
        for row in confirmations.rows_in(session, [d.id for d in doubted], (DeliveryState.SENT,)):
            if why.retry is Retry.NEVER or row.asked >= 3 * patience:
                confirmations.leave_open(session, node, row, why.reason)
            else:
                confirmations.note(session, node, row, why.reason, why.status)


def _not_asked(node: Node, doubted: Sequence[_Doubted]) -> None:
    """The question does not count, and is asked when the breaker lets it."""
    with node.database.transaction() as session:
        for one in doubted:
            session.execute(
                update(Delivery)
                .where(
                    Delivery.id == one.id,
                    Delivery.state == DeliveryState.SENT,
                    Delivery.asked == one.asked,
                )
                .values(
                    asked=one.asked - 1,
                    confirm_at=node.now() + timedelta(seconds=node.settings.delivery.backoff),
                )
                .execution_options(synchronize_session=False)
            )


def _close(session: Session, node: Node, transaction: str, answer: str) -> None:
    session.execute(
        update(Commitment)
        .where(Commitment.transaction_uid == transaction, Commitment.answered_at.is_(None))
        .values(answered_at=node.now(), answer=answer)
    )
