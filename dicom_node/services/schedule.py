"""Owns the rounds in which the node looks after itself; refuses to do the work that it finds.

Close what is complete, take back what the dead held, nudge what waits. Safe when two run: a lease
in the database says which one acts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.errors import NodeError
from dicom_node.services import breaker, commitments, deliveries
from dicom_node.services.alerts import alert_once, fault
from dicom_node.services.canaries import Canaries
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import take_back
from dicom_node.services.dispatch import DELIVER, INFER, Nudger
from dicom_node.services.forms import without_layout
from dicom_node.services.jobs import is_ready
from dicom_node.services.moments import has_come
from dicom_node.services.processes import Watch, alive, bury, gone_here
from dicom_node.services.purge import finish, purge
from dicom_node.store.database import without_bound
from dicom_node.store.tables import (
    Delivery,
    Destination,
    Instance,
    Job,
    Lease,
    Quarantined,
    Result,
)

GRACE = 3600.0
"""Seconds after which a file that still has no row belongs to no running reception."""

log = structlog.get_logger(__name__)


class Scheduler:
    """One process's turn at scheduling; call ``round`` again and again."""

    def __init__(self, node: Node, nudger: Nudger) -> None:
        self._node, self._nudger = node, nudger
        lease = node.settings.worker.lease
        self._leases, self._processes, self._rival = Watch(lease), Watch(lease), Watch(lease)
        self._nudged_at = -math.inf
        self._sure_until = 0.0
        self._purged_at = time.monotonic()
        self._nameless: dict[Path, float] = {}
        self._reconciled_at = time.monotonic()
        self._tidying: Thread | None = None
        self._canaries = Canaries(node, nudger)

    def round(self) -> bool:
        """One round; False when another scheduler holds the lease."""
        if not self._is_ours():
            return False
        self._bury_the_dead()
        self._take_back()
        close_studies(self._node)
        self._nudge()
        self._tidy()
        self._canaries.round()
        return True

    def reconcile(self) -> None:
        """At start: hold disk and database against each other; the rounds come back to it."""
        self._reconciled_at = time.monotonic()
        reconcile(self._node, self._nameless)

    def _is_ours(self) -> bool:
        """Hold or take the lease; a rival that is gone, or whose beat stands still, has lost it."""
        if time.monotonic() < self._sure_until:
            return True
        node = self._node
        with node.database.reading() as session:
            row = session.get(Lease, "scheduler")
        if row is None:
            try:
                with node.database.transaction() as session:
                    session.add(Lease(name="scheduler", owner=node.id))
            except IntegrityError:
                return False
        elif not self._take(row):
            return False
        # Until then no rival can have seen our beat stand still; a round costs no write.
        self._sure_until = time.monotonic() + node.settings.worker.lease / 6
        return True

    def _take(self, lease: Lease) -> bool:
        """Beat, or take over; False while a living rival holds it, or when one was faster."""
        node = self._node
        if lease.owner != node.id:
            living = {process.id for process in alive(node) if not gone_here(process)}
            still = self._rival.still({lease.owner: lease.beat})
            if lease.owner in living and not still:
                return False
        with node.database.transaction() as session:
            taken: Any = session.execute(
                update(Lease)
                .where(
                    Lease.name == lease.name,
                    Lease.owner == lease.owner,
                    Lease.beat == lease.beat,
                )
                .values(owner=node.id, beat=lease.beat + 1)
            )
            return bool(taken.rowcount == 1)

    def _bury_the_dead(self) -> None:
        processes = alive(self._node)
        still = self._processes.still({p.id: p.beat for p in processes})
        dead = [p.id for p in processes if p.id in still or gone_here(p)]
        if dead:
            log.warning("processes are gone", processes=dead)
            bury(self._node, dead)
            sweep(self._node)

    def _take_back(self) -> None:
        """Jobs and deliveries whose worker is gone, or whose heartbeat stands still."""
        node = self._node
        with node.database.reading() as session:
            jobs = session.scalars(select(Job).where(Job.state == JobState.RUNNING)).all()
            sending = session.scalars(
                select(Delivery).where(Delivery.state == DeliveryState.SENDING)
            ).all()
        living = {process.id for process in alive(node)}  # after them: a claimant has its row
        rows: list[Job | Delivery] = [*jobs, *sending]
        counters: dict[Hashable, Hashable] = {
            (type(row).__name__, row.id): (row.token, row.beat) for row in rows
        }
        still = self._leases.still(counters)
        for row in rows:
            if row.owner in living and (type(row).__name__, row.id) not in still:
                continue
            if isinstance(row, Job):
                self._release_job(row)
            else:
                take_back(node, row)

    def _release_job(self, job: Job) -> None:
        node = self._node
        last = job.attempts >= node.settings.worker.attempts
        with node.database.transaction() as session:
            released: Any = session.execute(
                update(Job)
                .where(
                    Job.id == job.id,
                    Job.state == JobState.RUNNING,
                    Job.token == job.token,
                    Job.beat == job.beat,
                )
                .values(
                    state=JobState.DEAD if last else JobState.READY,
                    token=Job.token + 1,  # the old worker's claim is stale from here on
                    owner=None,
                    nudged_at=None,  # its nudge died with its worker
                    finished_at=node.now() if last else None,
                    error="its worker died or was frozen",
                )
            )
            if released.rowcount == 1 and last:
                text = f"its worker died {job.attempts} times; `dicom-node jobs retry {job.id}`"
                alert_once(session, node.now(), "job dead", f"job {job.id}", text)
        log.warning("job taken back", job=job.id, attempt=job.attempts, dead=last)

    def _tidy(self) -> None:
        """Purge at its interval; reconcile again once what had no row has had its time for one."""
        now, settings = time.monotonic(), self._node.settings.retention
        if self._tidying is not None and self._tidying.is_alive():
            return
        if settings.anything and now - self._purged_at >= settings.interval:
            self._purged_at = now
            self._beside("purge", lambda: purge(self._node))
        elif self._nameless and now - self._reconciled_at >= GRACE:
            self._beside("reconciliation", self.reconcile)

    def _beside(self, name: str, do: Callable[[], object]) -> None:
        """Beside the rounds: a slow archive or a million files must hold up no study."""

        def once() -> None:
            try:
                with without_bound():
                    do()
            except Exception as error:  # the next one may go through; the rounds go on
                reason = str(error) if isinstance(error, NodeError) else fault(error)
                log.error(f"{name} broken off", reason=reason)

        # A daemon: the process may end at any moment, and `finish` completes what a purge left.
        self._tidying = Thread(target=once, name=name, daemon=True)
        self._tidying.start()

    def _nudge(self) -> None:
        """Say at once what has become ready, and again what still waits."""
        node, now = self._node, self._node.now()
        after = timedelta(seconds=node.settings.scheduler.nudge_after)
        again = has_come(Job.nudged_at, now - after, longest=after)
        ready = is_ready(now) & (Job.nudged_at.is_(None) | again)
        with node.database.reading() as session:
            queues = session.execute(
                select(Job.queue, func.count()).where(ready).group_by(Job.queue)
            ).all()
            due = (
                session.scalar(
                    select(Delivery.id)
                    .join(Destination)
                    .where(
                        breaker.is_open(),
                        commitments.is_due(node) | deliveries.is_due(node),
                    )
                    .limit(1)
                )
                or session.scalar(select(Destination.id).where(breaker.is_over(node)).limit(1))
                or session.execute(without_layout().limit(1)).first()
            )
        for queue, count in queues:
            if all(self._nudger.nudge(INFER, queue) for _ in range(min(count, 4))):
                with node.database.transaction() as session:
                    session.execute(
                        update(Job)
                        .where(ready, Job.queue == queue)
                        .values(nudged_at=now)
                        .execution_options(synchronize_session=False)
                    )
        wait = time.monotonic() - self._nudged_at < after.total_seconds()
        if due and not wait and self._nudger.nudge(DELIVER, "deliver"):
            self._nudged_at = time.monotonic()


def sweep(node: Node) -> int:
    """Remove the temporary files of the dead, how many; at a start they are not buried yet."""
    living = {process.id for process in alive(node) if not gone_here(process)} | {node.id}
    return sum(folder.sweep(living) for folder in (node.instances, node.results))


def reconcile(node: Node, nameless: dict[Path, float] | None = None) -> dict[str, int]:
    """Hold disk and database against each other, both ways.

    Temporary files of the dead go, and files that no row named `GRACE` seconds ago and none names
    now: no reception can still be about to name them, whatever the clock says. A row without its
    file raises an alert, unless the file was purged; a purge that was cut off is finished.

    Args:
        node: whose.
        nameless: files without a row, and when by our monotonic clock they were seen first: told of
            those before, left with those of now. None where nobody looks again.
    """
    finish(node)
    found = {"temporary": sweep(node), "orphans": 0, "missing": 0}
    # Before the rows: what is there and is named meanwhile is found named.
    present = {folder: set(folder.names()) for folder in (node.instances, node.results)}
    with node.database.reading() as session:
        instances = set(session.scalars(select(Instance.path).where(Instance.purging_at.is_(None))))
        quarantined = set(
            session.scalars(select(Quarantined.path).where(Quarantined.purging_at.is_(None)))
        )
        results = set(session.scalars(select(Result.path).where(Result.purging_at.is_(None))))
        kept = session.scalars(select(Job.prediction).where(Job.prediction.is_not(None)))
        results |= {name for name in kept if name}
    seen = {} if nameless is None else nameless
    known, now = dict(seen), time.monotonic()
    seen.clear()
    for folder, named in ((node.instances, instances | quarantined), (node.results, results)):
        for name in present[folder] - named:
            path = folder.path(name)
            first = known.get(path, now)
            if now - first < GRACE:
                seen[path] = first
            else:
                folder.remove(name)
                found["orphans"] += 1
        for name in named - present[folder]:
            if folder.path(name).exists():  # it came after we had looked
                continue
            found["missing"] += 1
            with node.database.transaction() as session:
                alert_once(session, node.now(), "file missing", name[:64], "a row names this file")
    if any(found.values()):
        log.warning("reconciled", **found)
    return found
