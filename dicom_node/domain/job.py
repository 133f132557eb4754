"""Owns the life of a job: its states, its transitions (one table), its priority.

Refuses to know who runs it and where it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from hashlib import sha256

from dicom_node.errors import InvalidTransition


class JobState(StrEnum):
    """Where a job stands."""

    READY = "ready"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    DONE = "done"  # results stored
    DEAD = "dead"  # given up, with its reason; an administrator may retry
    CANCELLED = "cancelled"  # an administrator stopped it


class Priority(IntEnum):
    """Lower is more urgent; waiting lifts a job by one step each ageing period."""

    STAT = 0
    ROUTINE = 10


# event -> (states that it may happen in, state after it)
TRANSITIONS: dict[str, tuple[frozenset[JobState], JobState]] = {
    "claim": (frozenset({JobState.READY}), JobState.RUNNING),
    "finish": (frozenset({JobState.RUNNING}), JobState.DONE),
    "release": (frozenset({JobState.RUNNING}), JobState.READY),
    "give up": (frozenset({JobState.READY, JobState.RUNNING}), JobState.DEAD),
    # Of a dead one too: an administrator decides that it stays undone, and its images may go.
    "cancel": (frozenset({JobState.READY, JobState.RUNNING, JobState.DEAD}), JobState.CANCELLED),
    "retry": (frozenset({JobState.DEAD, JobState.CANCELLED}), JobState.READY),
}


@dataclass(frozen=True)
class Input:
    """One instance that a job reads; ``role`` is "current" ("prior" is reserved)."""

    sop_instance_uid: str
    sha256: str
    role: str = "current"


def after(event: str, job: str, state: JobState) -> JobState:
    """The state after ``event``; raises InvalidTransition where the table has none."""
    before, result = TRANSITIONS[event]
    if state not in before:
        raise InvalidTransition(f"job {job}", state.value, event)
    return result


def inputs_digest(inputs: tuple[Input, ...]) -> str:
    """SHA-256 in hex over role, UID and content of every input, whatever their order."""
    lines = sorted(f"{i.role} {i.sop_instance_uid} {i.sha256}" for i in inputs)
    return sha256("\n".join(lines).encode()).hexdigest()


def due_at(created_at: datetime, priority: Priority, ageing: timedelta) -> datetime:
    """The instant by which jobs are ordered: the earliest runs first.

    Ordering by ``priority - waited / ageing`` is ordering by ``created + priority x ageing``, which
    never changes: routine work ages without anyone touching its row, and an index can sort it.
    """
    return created_at + int(priority) * ageing
