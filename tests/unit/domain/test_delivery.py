from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.domain.delivery import (
    MEANINGS,
    TRANSITIONS,
    Confirmation,
    DeliveryState,
    Terms,
    after,
    is_missed,
    question,
    wait,
)
from dicom_node.errors import ConfigurationError, InvalidTransition

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
    ("commit", "sent"): "committed",
    ("commit", "confirmed"): "committed",
    ("commit", "unconfirmed"): "committed",
    ("confirm", "sent"): "confirmed",
    ("leave open", "sent"): "unconfirmed",
    ("lose", "sent"): "pending",
    ("lose", "confirmed"): "pending",
    ("lose", "unconfirmed"): "pending",
    ("lose for good", "sent"): "dead",
    ("lose for good", "confirmed"): "dead",
    ("lose for good", "unconfirmed"): "dead",
    ("retry", "sent"): "pending",
    ("retry", "committed"): "pending",
    ("retry", "confirmed"): "pending",
    ("retry", "unconfirmed"): "pending",
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


def test_every_state_has_its_meaning() -> None:
    assert set(MEANINGS) == set(DeliveryState)


@pytest.mark.parametrize(
    ("by", "asked"),
    [
        ("auto", ["commitment"] * 2 + ["query"] * 4 + ["nothing"]),
        ("commitment", ["commitment"] * 2 + ["nothing"] * 5),
        ("query", ["query"] * 6 + ["nothing"]),
        ("none", ["nothing"] * 7),
    ],
)
def test_commitment_is_asked_for_first_and_a_query_follows(by: str, asked: list[str]) -> None:
    assert [question(n, 2, Confirmation(by)).value for n in range(7)] == asked


def test_what_queries_do_not_find_is_sent_again_once() -> None:
    assert [n for n in range(20) if is_missed(n, 2)] == [4]


def test_terms_tell_what_differs_from_the_default() -> None:
    assert Terms.parse({}).told() == {}
    told = {"commitment": "query", "associations": 4}
    assert Terms.parse(told).told() == told


@pytest.mark.parametrize(
    "told", [{"commitment": "perhaps"}, {"associations": 0}, {"associations": 99}, {"speed": 1}]
)
def test_terms_that_make_no_sense_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Terms.parse(told)
