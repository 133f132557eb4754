from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.domain.delivery import TRANSITIONS, DeliveryState, after, wait
from dicom_node.errors import InvalidTransition

FIRST, LONGEST = timedelta(seconds=5), timedelta(seconds=600)
STEPS = {
    ("claim", "pending"): "sending",
    ("accepted", "sending"): "sent",
    ("postpone", "sending"): "pending",
    ("give up", "sending"): "dead",
    ("give up", "pending"): "dead",
    ("replace", "sending"): "replaced",
    ("replace", "pending"): "replaced",
    ("retry", "dead"): "pending",
    ("retry", "sent"): "pending",
}


@pytest.mark.parametrize(("event", "state"), list(product(TRANSITIONS, DeliveryState)))
def test_a_delivery_takes_the_steps_of_the_table_and_no_other(
    event: str, state: DeliveryState
) -> None:
    if (event, state.value) in STEPS:
        assert after(event, "3", state).value == STEPS[event, state.value]
    else:
        with pytest.raises(InvalidTransition, match=f"delivery 3 is {state.value}: cannot {event}"):
            after(event, "3", state)


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_a_wait_lies_in_the_upper_half_of_its_doubling(attempts: int, jitter: float) -> None:
    waited = wait(attempts, FIRST, LONGEST, jitter)
    whole = min(FIRST * 2 ** min(attempts - 1, 20), LONGEST)
    assert whole / 2 <= waited <= whole


def test_the_wait_doubles_up_to_the_longest() -> None:
    waits = [wait(n, FIRST, LONGEST, 1.0).total_seconds() for n in range(1, 10)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert wait(1, FIRST, LONGEST, 0.0) == FIRST / 2
