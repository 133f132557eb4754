"""Owns who is alive: every listener, worker and scheduler has a row whose beat grows.

Life is judged by the observer's monotonic clock over the beat counter, never by another machine's
time: a clock that jumps a day kills nobody. Refuses to know what the processes do.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy import select, update

from dicom_node.errors import Unavailable
from dicom_node.services import audit
from dicom_node.services.alerts import fault
from dicom_node.services.context import Node
from dicom_node.services.receive import end_association
from dicom_node.store.tables import Association, Process

log = structlog.get_logger(__name__)


class Watch:
    """Tells which counters stood still for too long, by this process's monotonic clock."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def still(self, counters: Mapping[Hashable, Hashable]) -> set[Hashable]:
        """Keys whose counter has not changed for ``patience`` seconds; forgets absent keys."""
        now = self._clock()
        seen = {}
        for key, value in counters.items():
            before = self._seen.get(key)
            seen[key] = before if before is not None and before[0] == value else (value, now)
        self._seen = seen
        return {key for key, (_, since) in seen.items() if now - since >= self._patience}


@contextmanager
def beating(beat: Callable[[], None], every: float) -> Iterator[None]:
    """Call ``beat`` every so many seconds in a thread while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every):
            try:
                beat()
            except Exception as error:  # the lease may lapse; the fencing token guards the rest
                reason = str(error) if isinstance(error, Unavailable) else fault(error)
                log.warning("heartbeat missed", reason=reason)

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def register(node: Node) -> None:
    """Enter this process into the table."""
    host, pid = place()
    with node.database.transaction() as session:
        session.add(
            Process(
                id=node.id,
                role=node.role,
                host=host,
                pid=pid,
                started_at=node.now(),
                beat_at=node.now(),
            )
        )
    audit.started(node)


@contextmanager
def registered(node: Node) -> Iterator[None]:
    """Stand in the table of processes, beating, while the block runs."""
    register(node)

    def beat() -> None:
        with node.database.transaction() as session:
            session.execute(
                update(Process)
                .where(Process.id == node.id)
                .values(beat=Process.beat + 1, beat_at=node.now(), ended_at=None)
            )

    with beating(beat, every=node.settings.worker.lease / 6):
        try:
            yield
        finally:
            bury(node, [node.id])


def alive(node: Node) -> list[Process]:
    """Processes that have not ended."""
    with node.database.reading() as session:
        return list(session.scalars(select(Process).where(Process.ended_at.is_(None))))


def gone_here(process: Process) -> bool:
    """True when a process of this very machine (and container) no longer runs; no need to wait.

    Elsewhere only its beat can tell.
    """
    machine, _, began = process.host.rpartition(" ")
    return machine == _machine() and began != _began(process.pid)


def place() -> tuple[str, int]:
    """Where this process runs: its machine and when it began there, and its id there."""
    pid = os.getpid()
    return f"{_machine()} {_began(pid)}", pid


def _machine() -> str:
    """Host name and space of process ids: containers may share the one and not the other."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: no process is known to be gone but by its beat
        return f"{socket.gethostname()} elsewhere"


def _began(pid: int) -> str:
    """Clock ticks from boot to the start of a process: no clock that jumps, no reused id, deceives.

    Empty when there is no such process (proc(5), field 22 of stat).
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def bury(node: Node, dead: Iterable[str]) -> None:
    """End processes and the associations that they held, so that no study waits for a ghost."""
    gone = list(dead)
    audit.ended(node, gone)
    with node.database.transaction() as session:
        now = node.now()
        session.execute(update(Process).where(Process.id.in_(gone)).values(ended_at=now))
        open_ones = select(Association.id).where(
            Association.process_id.in_(gone), Association.closed_at.is_(None)
        )
        for association in session.scalars(open_ones).all():
            end_association(session, association, now, aborted=True)
