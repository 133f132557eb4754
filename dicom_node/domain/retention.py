"""Owns the rule by which files may go: what must have happened first, and how long ago.

Refuses to know files, rows and clocks; ``services.purge`` brings the facts and acts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dicom_node.domain.delivery import Confirmation, DeliveryState, Terms
from dicom_node.domain.job import JobState
from dicom_node.domain.study import StudyState

# States of a delivery after which the destination holds the result, or holds another in its place.
_HELD_THERE = frozenset({DeliveryState.COMMITTED, DeliveryState.CONFIRMED, DeliveryState.REPLACED})
# The same, where nobody asked the destination whether it keeps what it accepted.
_ACCEPTED = _HELD_THERE | {DeliveryState.SENT}


def asks_commitment(config: Mapping[str, Any]) -> bool:
    """Whether a destination with this configuration is asked what it holds."""
    return Terms.parse(config.get("delivery", {})).commitment is not Confirmation.NONE


def frees(state: str, asks: bool) -> bool:
    """Whether a delivery in this state needs its files no longer.

    Args:
        state: of the delivery. A state that is not known here needs them: so do "unconfirmed" and,
            where the destination is asked, "sent".
        asks: whether the destination is asked for commitment.
    """
    return state in (_HELD_THERE if asks else _ACCEPTED)


@dataclass(frozen=True)
class StudyFacts:
    """What decides whether the images of one study may go.

    Attributes:
        state: of the study.
        youngest: when its last instance came.
        jobs: states of its jobs; a dead one that was run again counts by its successor only.
        deliveries: (state, whether the destination is asked for commitment) of all its results.
        unsent: finished jobs whose results are still to be built for a destination.
        quarantined: instances of it in quarantine that nobody has settled.
    """

    state: str
    youngest: datetime
    jobs: Collection[str]
    deliveries: Collection[tuple[str, bool]]
    unsent: int = 0
    quarantined: int = 0


def why_kept(facts: StudyFacts, now: datetime, keep: timedelta) -> str:
    """Why a study's images must stay; empty when they may go."""
    if facts.state != StudyState.CLOSED:
        return f"the study is {facts.state}"
    if now - facts.youngest < keep:
        return "not old enough"
    if facts.quarantined:
        return "an instance in quarantine waits for a decision"
    over = {JobState.DONE, JobState.CANCELLED}
    if waiting := sorted({state for state in facts.jobs if state not in over}):
        return f"a job is {waiting[0]}"
    if facts.unsent:
        return "results are still to be built for a destination"
    return why_undelivered(facts.deliveries)


def why_undelivered(deliveries: Collection[tuple[str, bool]]) -> str:
    """Why the files of results must stay, by their (state, asks) each; empty when they may go."""
    if waiting := sorted({state for state, asks in deliveries if not frees(state, asks)}):
        return f"a delivery is {waiting[0]}"
    return ""
