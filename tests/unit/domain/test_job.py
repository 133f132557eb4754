from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.domain.job import (
    TRANSITIONS,
    Input,
    JobState,
    Priority,
    after,
    due_at,
    inputs_digest,
)
from dicom_node.errors import InvalidTransition

START = datetime(2026, 1, 1, tzinfo=UTC)
AGEING = timedelta(seconds=300)
times = st.integers(0, 10**6).map(lambda s: START + timedelta(seconds=s))

STEPS = {
    ("claim", "ready"): "running",
    ("finish", "running"): "done",
    ("release", "running"): "ready",
    ("give up", "ready"): "dead",
    ("give up", "running"): "dead",
    ("cancel", "ready"): "cancelled",
    ("cancel", "running"): "cancelled",
    ("cancel", "dead"): "cancelled",
    ("retry", "dead"): "ready",
    ("retry", "cancelled"): "ready",
}


@pytest.mark.parametrize(("event", "state"), list(product(TRANSITIONS, JobState)))
def test_a_job_takes_the_steps_of_the_table_and_no_other(event: str, state: JobState) -> None:
    if (event, state.value) in STEPS:
        assert after(event, "7", state).value == STEPS[event, state.value]
    else:
        with pytest.raises(InvalidTransition, match=f"job 7 is {state.value}: cannot {event}"):
            after(event, "7", state)


def test_what_is_done_stays_done() -> None:
    assert all(JobState.DONE not in before for before, _ in TRANSITIONS.values())


@given(times, times)
def test_of_one_priority_the_older_runs_first(one: datetime, other: datetime) -> None:
    for priority in Priority:
        order = due_at(one, priority, AGEING) < due_at(other, priority, AGEING)
        assert order == (one < other)


@given(times, times)
def test_stat_runs_before_routine_of_the_last_ten_ageing_periods(
    stat: datetime, routine: datetime
) -> None:
    first = due_at(stat, Priority.STAT, AGEING) < due_at(routine, Priority.ROUTINE, AGEING)
    assert first == (stat - routine < 10 * AGEING)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60))
def test_routine_never_starves_under_a_flood_of_stat(arrivals: list[tuple[int, bool]]) -> None:
    """One worker, a job a minute, STAT without end: the routine job is run within its bound."""
    ageing = timedelta(minutes=3)
    waiting = [(due_at(START, Priority.ROUTINE, ageing), "routine")]
    now, coming = START, iter(arrivals * 60)
    for _ in range(200):
        for _ in range(next(coming, (1, True))[0]):
            waiting.append((due_at(now, Priority.STAT, ageing), "stat"))
        waiting.sort()
        if waiting and waiting.pop(0)[1] == "routine":
            break
        now += timedelta(minutes=1)
    else:
        pytest.fail("it starved")
    # What came before it aged has to be worked off, nothing that came after.
    before = sum(n for n, _ in (arrivals * 60)[:31])
    assert now - START <= timedelta(minutes=max(30, before))


def test_the_digest_of_inputs_knows_no_order_and_knows_every_change() -> None:
    a, b = Input("1.1", "aa"), Input("1.2", "bb")
    assert inputs_digest((a, b)) == inputs_digest((b, a))
    others = [
        (a,),
        (a, Input("1.2", "bc")),
        (a, Input("1.3", "bb")),
        (a, Input("1.2", "bb", "prior")),
        (a, b, b),
    ]
    assert len({inputs_digest(inputs) for inputs in [(a, b), *others]}) == 6
