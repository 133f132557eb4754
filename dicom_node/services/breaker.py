"""Owns whether a destination is tried at all: closed after failures, opened again by one probe.

Its state is two columns, so all processes heed it. ``failures`` counts connections that failed one
after the other; from ``delivery.breaker_failures`` on the destination is closed until a moment, and
then one C-ECHO, by whoever claims it, opens it or closes it for longer. Only an answer to more than
that forgets the failures: a PACS that answers a C-ECHO and nothing else is closed ever longer.
Refuses to know what is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, select, update

from dicom_node.destinations.answers import LONGEST_WAIT
from dicom_node.destinations.build import build
from dicom_node.domain.delivery import wait
from dicom_node.errors import DestinationClosed
from dicom_node.services.alerts import alert_once, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.moments import has_come
from dicom_node.settings import DeliverySettings
from dicom_node.store.tables import Destination

CLOSED = "destination closed"
"""Kind of the alert."""

log = structlog.get_logger(__name__)


def is_open() -> ColumnElement[bool]:
    """For queries that join destinations: it may be tried."""
    return Destination.closed_until.is_(None)


def is_over(node: Node) -> ColumnElement[bool]:
    """For queries: it is closed, and its time is over."""
    settings = node.settings.delivery
    longest = max(settings.backoff_max, 4 * settings.timeout, LONGEST_WAIT)
    return has_come(Destination.closed_until, node.now(), timedelta(seconds=longest))


def failed(node: Node, destination_id: int, why: DestinationClosed, jitter: float) -> None:
    """Note a connection that failed; enough of them close the destination."""
    now, settings = node.now(), node.settings.delivery
    with node.database.transaction() as session:
        row = session.get_one(Destination, destination_id, with_for_update=True)
        row.failures += 1
        if row.closed_until is not None or row.failures < settings.breaker_failures:
            return
        rest = max(_rest(row.failures, settings, jitter), timedelta(seconds=why.wait))
        row.closed_until = now + rest
        text = f"{why.reason}; results wait, and go when it answers an echo"
        alert_once(session, now, CLOSED, row.name, text)
        name, failures = row.name, row.failures
    log.warning("destination closed", destination=name, failures=failures, reason=why.reason)


def answered(node: Node, destination_id: int) -> None:
    """Note that it answered to what was asked: its failures are forgotten."""
    now = node.now()
    with node.database.transaction() as session:
        row = session.get_one(Destination, destination_id, with_for_update=True)
        row.failures, row.closed_until = 0, None
        resolve_alerts(session, now, CLOSED, row.name)


def to_probe(node: Node) -> set[int]:
    """Closed destinations whose time is over."""
    with node.database.reading() as session:
        return set(session.scalars(select(Destination.id).where(is_over(node))))


def probe(node: Node, destination_id: int, jitter: Callable[[], float]) -> bool:
    """One C-ECHO, unless another process is at it; True where the destination is open now."""
    settings, now = node.settings.delivery, node.now()
    with node.database.reading() as session:
        row = session.get_one(Destination, destination_id)
    if row.closed_until is None or destination_id not in to_probe(node):
        return row.closed_until is None
    # The claim is a later time: whoever dies now leaves the next probe to the others.
    claimed_until = now + timedelta(seconds=4 * settings.timeout)
    mine = Destination.id == destination_id, Destination.closed_until == row.closed_until
    with node.database.transaction() as session:
        claimed: Any = session.execute(
            update(Destination)
            .where(*mine)
            .values(closed_until=claimed_until, failures=Destination.failures + 1)
        )
        if claimed.rowcount != 1:
            return False
    answer = build(row.kind, row.config, node.settings).echo()
    rest = None if answer.reachable else node.now() + _rest(row.failures + 1, settings, jitter())
    with node.database.transaction() as session:
        session.execute(
            update(Destination)
            .where(Destination.id == destination_id, Destination.closed_until == claimed_until)
            .values(closed_until=rest)
        )
        if answer.reachable:
            resolve_alerts(session, node.now(), CLOSED, row.name)
    log.info("destination probed", destination=row.name, reachable=answer.reachable)
    return answer.reachable


def _rest(failures: int, settings: DeliverySettings, jitter: float) -> timedelta:
    beyond = failures - settings.breaker_failures + 1
    return wait(
        beyond, timedelta(seconds=settings.backoff), timedelta(seconds=settings.backoff_max), jitter
    )
