"""Owns the question whether a study is complete, and on what evidence.

Refuses to know where the evidence is kept. Every answer carries its reason, for a person.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class Answer(StrEnum):
    """What to do with the study."""

    WAIT = "wait"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # go on, and say so in every report


@dataclass(frozen=True)
class Expectation:
    """Someone told what belongs to the study.

    Attributes:
        source: who ("MPPS", "storage commitment", "rule 'mammography'").
        count: how many instances.
        missing: how many of them are not held.
    """

    source: str
    count: int
    missing: int


@dataclass(frozen=True)
class Evidence:
    """All that is known of an open revision.

    Attributes:
        first_at: arrival of its first instance.
        last_at: arrival of its last instance.
        sending: associations still open that sent an instance of it.
        last_closed_at: when the last such association ended; None while none has.
        expectations: what others told.
        quiet: how long it must be quiet.
        quiet_rule: which entry of the settings says so.
        whole_radiographs: every instance is a complete radiograph by itself.
        hard_cap: the longest wait after ``first_at``.
    """

    first_at: datetime
    last_at: datetime
    sending: int
    last_closed_at: datetime | None
    expectations: tuple[Expectation, ...]
    quiet: timedelta
    quiet_rule: str
    whole_radiographs: bool
    hard_cap: timedelta


@dataclass(frozen=True)
class Judgement:
    """The answer, its reason, and when to ask again (None: only new evidence changes it)."""

    answer: Answer
    reason: str
    again_at: datetime | None = None


def judge(evidence: Evidence, now: datetime) -> Judgement:
    """Weigh, in this order: open associations, told counts, whole images, quiet; then the cap.

    A study that is complete by its evidence is not called incomplete for being looked at late.
    """
    capped_at = evidence.first_at + evidence.hard_cap
    judgement = _weigh(evidence, now)
    if judgement.answer is not Answer.WAIT:
        return judgement
    if now >= capped_at:
        cap = f"hard cap of {evidence.hard_cap.total_seconds():g} s after the first instance"
        return Judgement(Answer.INCOMPLETE, f"{cap}: {judgement.reason}")
    return replace(judgement, again_at=min(judgement.again_at or capped_at, capped_at))


def _weigh(evidence: Evidence, now: datetime) -> Judgement:
    if evidence.sending:
        return Judgement(Answer.WAIT, f"{evidence.sending} associations still sending it")
    missing = [e for e in evidence.expectations if e.missing]
    if missing:
        told = "; ".join(f"{e.source} told {e.count}, {e.missing} missing" for e in missing)
        return Judgement(Answer.WAIT, told)
    if evidence.expectations:
        met = "; ".join(f"{e.source} told {e.count}, all held" for e in evidence.expectations)
        return Judgement(Answer.COMPLETE, met)
    if evidence.whole_radiographs and evidence.last_closed_at is not None:
        return Judgement(Answer.COMPLETE, "complete radiographs, and their association has closed")
    quiet_from = max(evidence.last_at, evidence.last_closed_at or evidence.last_at)
    seconds = f"{evidence.quiet.total_seconds():g} s"
    if now >= quiet_from + evidence.quiet:
        reason = f"quiet for {seconds} ({evidence.quiet_rule}), no association still sending it"
        return Judgement(Answer.COMPLETE, reason)
    reason = f"not yet quiet for {seconds} ({evidence.quiet_rule})"
    return Judgement(Answer.WAIT, reason, quiet_from + evidence.quiet)
