"""Owns the life of a delivery and its retry policy; refuses to know sockets and statuses."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from dicom_node.errors import InvalidTransition


class DeliveryState(StrEnum):
    """Where one result stands on its way to one destination."""

    PENDING = "pending"  # to be sent, now or at its next attempt
    SENDING = "sending"  # a worker holds its lease
    SENT = "sent"  # the destination answered success or a warning
    DEAD = "dead"  # refused for good or out of attempts; an administrator may retry
    REPLACED = "replaced"  # the destination does not take this form; another one goes instead


# event -> (states that it may happen in, state after it)
TRANSITIONS: dict[str, tuple[frozenset[DeliveryState], DeliveryState]] = {
    "claim": (frozenset({DeliveryState.PENDING}), DeliveryState.SENDING),
    "accepted": (frozenset({DeliveryState.SENDING}), DeliveryState.SENT),
    "postpone": (frozenset({DeliveryState.SENDING}), DeliveryState.PENDING),
    "give up": (frozenset({DeliveryState.SENDING, DeliveryState.PENDING}), DeliveryState.DEAD),
    "replace": (
        frozenset({DeliveryState.SENDING, DeliveryState.PENDING}),
        DeliveryState.REPLACED,
    ),
    "retry": (frozenset({DeliveryState.DEAD, DeliveryState.SENT}), DeliveryState.PENDING),
}


def after(event: str, delivery: str, state: DeliveryState) -> DeliveryState:
    """The state after ``event``; raises InvalidTransition where the table has none."""
    before, result = TRANSITIONS[event]
    if state not in before:
        raise InvalidTransition(f"delivery {delivery}", state.value, event)
    return result


def wait(attempts: int, first: timedelta, longest: timedelta, jitter: float) -> timedelta:
    """How long to wait after ``attempts`` failures.

    Args:
        attempts: failures so far, at least 1.
        first: the wait after the first.
        longest: the most that it grows to.
        jitter: in 0..1; spreads the wait over its upper half, so that a PACS that comes back
            is not met by everyone at once.
    """
    doubled = min(first * float(2 ** min(attempts - 1, 30)), longest)
    return doubled * (0.5 + jitter / 2)
