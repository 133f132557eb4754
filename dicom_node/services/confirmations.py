"""Owns what follows from what a destination says, or does not say, of what it took.

Every report on storage commitment is recorded in one place (``record``), whether it came on the
association on which was asked, on one to the listener, late, twice, or for nothing that was asked.
Refuses to know sockets, and when anything is asked: ``services.commitments`` does.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from enum import StrEnum

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from dicom_node.dimse import status
from dicom_node.dimse.commitment import Report
from dicom_node.domain.delivery import (
    DOUBTED,
    Confirmation,
    DeliveryState,
    Terms,
    after,
    wait,
)
from dicom_node.services.alerts import alert_once, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.deliveries import subject_of
from dicom_node.store.tables import (
    Commitment,
    CommitmentItem,
    Delivery,
    DeliveryAttempt,
    Destination,
)

FAILED = "commitment failed"
"""Kind of the alert that a destination does not hold what it took."""

log = structlog.get_logger(__name__)


class Recorded(StrEnum):
    """What a report was worth."""

    NEW = "new"
    KNOWN = "known"
    UNKNOWN = "unknown"


def answer_to(recorded: Recorded) -> int:
    """The status of the response to a report."""
    return status.INVALID_ARGUMENT if recorded is Recorded.UNKNOWN else status.SUCCESS


def record(
    node: Node, report: Report, said_by: str, jitter: Callable[[], float] = random.random
) -> Recorded:
    """What a destination reports on one transaction, once: a report that comes again is known.

    Whoever says it: nobody but the destination knows a UID of 122 random bits, and some archives
    report under another AE title than the one that was asked.

    Args:
        node: whose deliveries.
        report: of the destination.
        said_by: AE title, for the log.
        jitter: 0..1, for waits.

    Raises:
        Unavailable: the database cannot take it; the peer may report again.
    """
    with node.database.transaction() as session:
        row = session.scalar(
            select(Commitment)
            .where(Commitment.transaction_uid == report.transaction_uid)
            .options(selectinload(Commitment.items))
            .with_for_update()
        )
        if row is None:
            recorded = Recorded.UNKNOWN
        elif row.answered_at is not None:
            recorded = Recorded.KNOWN
        else:
            recorded = Recorded.NEW
            row.answered_at = node.now()
            row.answer = f"{len(report.held)} held, {len(report.failed)} failed"
            _apply(session, node, row, report, jitter)
    log.info(
        "commitment reported",
        transaction=report.transaction_uid,
        calling=said_by,
        report=str(recorded),
        held=len(report.held),
        failed=len(report.failed),
    )
    return recorded


def _apply(
    session: Session,
    node: Node,
    commitment: Commitment,
    report: Report,
    jitter: Callable[[], float],
) -> None:
    ids = [item.delivery_id for item in commitment.items]
    newest = select(func.max(CommitmentItem.commitment_id)).where(
        CommitmentItem.delivery_id == Delivery.id
    )
    asked_since = set(
        session.scalars(
            select(Delivery.id).where(
                Delivery.id.in_(ids), newest.scalar_subquery() > commitment.id
            )
        )
    )
    by = way(session.get_one(Destination, commitment.destination_id))
    for row in rows_in(session, ids, DOUBTED):
        uid = row.result.sop_instance_uid
        if uid in report.held:
            settle(session, node, row, "commit", "committed")
        elif uid in report.failed and row.id not in asked_since:
            _doubt(session, node, row, by, report.failed[uid], jitter())


def _doubt(
    session: Session, node: Node, row: Delivery, by: Confirmation, reason: int, jitter: float
) -> None:
    words = f"not committed, reason 0x{reason:04X}"
    follows = status.doubt_of(reason)
    if follows is status.Doubt.SEND:
        lose(session, node, row, words, jitter)
        return
    note(session, node, row, words, reason)
    if row.state != DeliveryState.SENT:  # a query told already
        return
    if follows is status.Doubt.ASK:
        row.confirm_at = node.now()
    else:
        query_instead(session, node, row, by, words)


def settle(session: Session, node: Node, row: Delivery, event: str, why: str) -> None:
    """It holds it, by ``event``: commit or confirm."""
    _step(row, event)
    row.confirm_at, row.confirmed_at = None, node.now()
    note(session, node, row, why)
    resolve_alerts(session, node.now(), FAILED, subject_of(row))


def lose(
    session: Session, node: Node, row: Delivery, why: str, jitter: float, asked: int = 0
) -> None:
    """The destination does not have what it took: the same bytes again, as long as attempts last.

    Args:
        asked: questions that count on when it has arrived again.
    """
    now, settings, purged = node.now(), node.settings.delivery, row.result.purging_at
    again = row.attempts < settings.attempts and purged is None
    _step(row, "lose" if again else "lose for good")
    row.confirm_at, row.confirmed_at, row.asked = None, None, asked
    if again:
        first, longest = settings.backoff, settings.backoff_max
        row.next_at = now + wait(
            row.attempts, timedelta(seconds=first), timedelta(seconds=longest), jitter
        )
        follows = "it is sent again"
    elif purged:
        follows = f"its file is gone, purged on {purged:%Y-%m-%d}: run the job again for another"
    else:
        follows = f"`dicom-node deliveries retry {row.id}` sends it again"
    note(session, node, row, why)
    alarm(session, node, row, f"{why}; {follows}")
    log.warning("destination lost a result", delivery=row.id, reason=why, again=again)


def alarm(session: Session, node: Node, row: Delivery, text: str) -> None:
    """In place of what was said of it before."""
    resolve_alerts(session, node.now(), FAILED, subject_of(row))
    alert_once(session, node.now(), FAILED, subject_of(row), text)


def leave_open(session: Session, node: Node, row: Delivery, why: str) -> None:
    """It does not say whether it holds it, and is asked no more."""
    _step(row, "leave open")
    row.confirm_at = None
    note(session, node, row, why)
    log.warning("delivery unconfirmed", delivery=row.id, reason=why)


def _step(row: Delivery, event: str) -> None:
    row.state = after(event, str(row.id), DeliveryState(row.state))


def note(session: Session, node: Node, row: Delivery, answer: str, code: int | None = None) -> None:
    """What was answered, for `deliveries show`."""
    row.last_answer = answer
    session.add(DeliveryAttempt(delivery_id=row.id, at=node.now(), status=code, answer=answer))


def query_instead(
    session: Session, node: Node, row: Delivery, by: Confirmation, reason: str
) -> None:
    """It does not commit to it: a query is next, unless the destination's terms forbid one."""
    row.asked = max(row.asked, node.settings.delivery.commitment_attempts)
    row.confirm_at = node.now()
    if by is Confirmation.COMMITMENT:
        leave_open(session, node, row, reason)


def way(place: Destination) -> Confirmation:
    """How a destination is asked."""
    by = Terms.parse(place.config.get("delivery", {})).commitment
    if by is Confirmation.AUTO and place.kind != "dimse":  # only DICOM's own network commits
        return Confirmation.QUERY
    return by


def rows_in(
    session: Session, ids: Sequence[int], states: Collection[DeliveryState]
) -> Sequence[Delivery]:
    """Those still in one of the states, locked."""
    query = (
        select(Delivery)
        .where(Delivery.id.in_(ids), Delivery.state.in_(states))
        .options(selectinload(Delivery.result))
        .order_by(Delivery.id)
        .with_for_update()
    )
    return session.scalars(query).all()


def may_report(node: Node, calling: str, address: str) -> bool:
    """Whether this is a destination, at its own address, that may report to our listener."""
    with node.database.reading() as session:
        rows = session.scalars(select(Destination).where(Destination.kind == "dimse")).all()
    hosts = {row.config["host"] for row in rows if row.config["ae_title"] == calling}
    return any(address in _addresses(host) for host in hosts)


def _addresses(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
