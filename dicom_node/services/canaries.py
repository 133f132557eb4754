"""Owns the canaries: small tasks, one a queue, which show that somebody takes what lies in it.

A process may beat and yet take no nudge. The scheduler asks, whichever worker takes the question
answers in the database. Who is busy with a job or a delivery cannot answer and is not late.
Refuses to know what the queues are for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.services.alerts import alert_once, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.dispatch import CANARY, QUEUES, Nudger
from dicom_node.services.processes import Watch
from dicom_node.store.tables import Alert, Canary, Delivery, Job

UNSERVED = "queue not served"
PATIENCE = 3
"""Intervals that a question may stay unanswered."""

log = structlog.get_logger(__name__)


class Canaries:
    """One scheduler's questions; call ``round`` again and again."""

    def __init__(
        self, node: Node, nudger: Nudger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node, self._nudger, self._clock = node, nudger, clock
        self._interval = node.settings.scheduler.canary
        self._watch = Watch(PATIENCE * self._interval, clock)
        self._next = clock()

    def round(self) -> None:
        """Once an interval: tell who is late, and ask every queue."""
        if not self._interval or self._clock() < self._next:
            return
        self._next = self._clock() + self._interval
        with self._node.database.transaction() as session:
            known = {row.queue: row for row in session.scalars(select(Canary))}
            waited: dict[Hashable, Hashable] = {
                queue: row.answered for queue, row in known.items() if _missed(session, row)
            }
            for queue in sorted(self._watch.still(waited), key=str):
                text = f"nobody has taken a task from it for {PATIENCE * self._interval:g} s"
                alert_once(session, self._node.now(), UNSERVED, str(queue), text)
                log.error(UNSERVED, queue=queue)
            for queue in QUEUES:
                row = known.get(queue)
                if row is None:
                    row = Canary(queue=queue, asked=0, answered=0)
                    session.add(row)
                if row.answered == row.asked:
                    row.asked, row.asked_at = row.asked + 1, self._node.now()
        for queue in QUEUES:  # again where nobody answered: the task may be lost
            self._nudger.nudge(CANARY, queue)


def answer(node: Node, queue: str) -> None:
    """A worker has taken the question."""
    with node.database.transaction() as session:
        session.execute(
            update(Canary)
            .where(Canary.queue == queue)
            .values(answered=Canary.asked, answered_at=node.now(), answered_by=node.id)
        )
        resolve_alerts(session, node.now(), UNSERVED, queue)


def list_queues(node: Node) -> list[dict[str, Any]]:
    """Each queue that was asked: when it was last served, and whether it is late."""
    unserved = select(Alert.subject).where(Alert.kind == UNSERVED, Alert.resolved_at.is_(None))
    with node.database.reading() as session:
        late = set(session.scalars(unserved))
        rows = session.scalars(select(Canary).order_by(Canary.queue)).all()
    return [
        {"queue": row.queue, "answered_at": row.answered_at, "late": row.queue in late}
        for row in rows
    ]


def _missed(session: Session, row: Canary) -> bool:
    """Unanswered, where an answer can be expected."""
    if row.answered == row.asked:
        return False
    if row.answered_by is None:  # a node need not have a worker for every queue
        waiting = select(Job.id).where(Job.state == JobState.READY, Job.queue == row.queue)
        return session.scalar(waiting.limit(1)) is not None
    busy = (
        select(Job.id).where(Job.state == JobState.RUNNING, Job.owner == row.answered_by),
        select(Delivery.id).where(
            Delivery.state == DeliveryState.SENDING, Delivery.owner == row.answered_by
        ),
    )
    return all(session.scalar(query.limit(1)) is None for query in busy)
