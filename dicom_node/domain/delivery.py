"""Owns the life of a delivery, its retry policy, and how a destination is asked what it holds.

Refuses to know sockets and statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from dicom_node.errors import ConfigurationError, InvalidTransition


class DeliveryState(StrEnum):
    """Where one result stands on its way to one destination."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    COMMITTED = "committed"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"
    DEAD = "dead"
    REPLACED = "replaced"


MEANINGS: Mapping[DeliveryState, str] = {
    DeliveryState.PENDING: "to be sent, now or at its next attempt",
    DeliveryState.SENDING: "a worker holds its lease",
    DeliveryState.SENT: "the destination answered success or a warning; what it keeps is yet to be "
    "told, or is not asked",
    DeliveryState.COMMITTED: "the destination took over the keeping (storage commitment)",
    DeliveryState.CONFIRMED: "the destination finds it when queried",
    DeliveryState.UNCONFIRMED: "delivered, but the destination does not say that it holds it",
    DeliveryState.DEAD: "refused for good or out of attempts; an administrator may retry",
    DeliveryState.REPLACED: "the destination does not take this form; another one goes instead",
}

ARRIVED = frozenset(
    {
        DeliveryState.SENT,
        DeliveryState.COMMITTED,
        DeliveryState.CONFIRMED,
        DeliveryState.UNCONFIRMED,
    }
)
"""The destination has taken it; they differ in what it said since."""
DOUBTED = ARRIVED - {DeliveryState.COMMITTED}
"""Arrived, and the destination has not committed itself."""

_WAITING = frozenset({DeliveryState.PENDING})
_SENDING = frozenset({DeliveryState.SENDING})
_SENT = frozenset({DeliveryState.SENT})

# event -> (states that it may happen in, state after it)
TRANSITIONS: dict[str, tuple[frozenset[DeliveryState], DeliveryState]] = {
    "claim": (_WAITING, DeliveryState.SENDING),
    "accepted": (_SENDING, DeliveryState.SENT),
    "postpone": (_SENDING, DeliveryState.PENDING),
    "give up": (_SENDING | _WAITING, DeliveryState.DEAD),
    "replace": (_SENDING | _WAITING, DeliveryState.REPLACED),
    "commit": (DOUBTED, DeliveryState.COMMITTED),
    "confirm": (_SENT, DeliveryState.CONFIRMED),
    "leave open": (_SENT, DeliveryState.UNCONFIRMED),
    "lose": (DOUBTED, DeliveryState.PENDING),
    "lose for good": (DOUBTED, DeliveryState.DEAD),
    "retry": (ARRIVED | {DeliveryState.DEAD}, DeliveryState.PENDING),
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
        attempts: failures so far; none counts as one.
        first: the wait after the first.
        longest: the most that it grows to.
        jitter: in 0..1; spreads the wait over its upper half, so that a PACS that comes back
            is not met by everyone at once.
    """
    doubled = min(first * float(2 ** max(min(attempts - 1, 30), 0)), longest)
    return doubled * (0.5 + jitter / 2)


class Confirmation(StrEnum):
    """How a destination is asked whether it holds what it took."""

    AUTO = "auto"  # by storage commitment, and where that is not answered by a query
    COMMITMENT = "commitment"
    QUERY = "query"
    NONE = "none"


class Question(StrEnum):
    """What is asked next of one delivery."""

    COMMITMENT = "commitment"
    QUERY = "query"
    NOTHING = "nothing"


def question(asked: int, patience: int, by: Confirmation) -> Question:
    """What to ask after ``asked`` questions without the answer hoped for.

    Args:
        asked: questions so far.
        patience: how often storage commitment is asked for; the query follows twice as often.
        by: the destination's way.
    """
    if by is Confirmation.NONE:
        return Question.NOTHING
    if asked < patience and by is not Confirmation.QUERY:
        return Question.COMMITMENT
    if asked < 3 * patience and by is not Confirmation.COMMITMENT:
        return Question.QUERY
    return Question.NOTHING


def is_missed(asked: int, patience: int) -> bool:
    """Whether a query that finds nothing, the ``asked``-th question, has the bytes sent again.

    Once: a destination that hides from queries what it holds must not be sent it without end.
    """
    return asked == 2 * patience


MAXIMUM_ASSOCIATIONS = 16


@dataclass(frozen=True)
class Terms:
    """How one destination is delivered to.

    Attributes:
        commitment: how it is asked what it holds.
        associations: that one process opens to it at a time, for different jobs.
    """

    commitment: Confirmation = Confirmation.AUTO
    associations: int = 2

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Terms:
        """From a destination's configuration.

        Raises:
            ConfigurationError: not known, or out of bounds.
        """
        try:
            terms = cls(
                Confirmation(told.get("commitment", Confirmation.AUTO)),
                int(told.get("associations", cls.associations)),
            )
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        if unknown := set(told) - {"commitment", "associations"}:
            raise ConfigurationError(f"no term of delivery is called {min(unknown)!r}")
        if not 1 <= terms.associations <= MAXIMUM_ASSOCIATIONS:
            raise ConfigurationError(f"1 to {MAXIMUM_ASSOCIATIONS} associations at a time")
        return terms

    def told(self) -> dict[str, Any]:
        """What differs from the default, for the configuration."""
        default = Terms()
        return {
            name: value if isinstance(value, int) else str(value)
            for name, value in vars(self).items()
            if value != getattr(default, name)
        }
