from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.domain.retention import StudyFacts, frees, why_kept
from dicom_node.domain.study import StudyState

NOW = datetime(2026, 1, 31, tzinfo=UTC)
KEEP = timedelta(days=30)
FREE = StudyFacts("closed", NOW - KEEP, ["done", "cancelled"], {("sent", False)})


@pytest.mark.parametrize("state", [*DeliveryState, "committed", "confirmed", "unconfirmed", "new"])
def test_a_delivery_frees_its_files_in_these_states_and_no_other(state: str) -> None:
    assert frees(state, asks=False) == (state in {"sent", "committed", "confirmed", "replaced"})
    assert frees(state, asks=True) == (state in {"committed", "confirmed", "replaced"})


def test_a_study_that_needs_nothing_more_may_go_when_it_is_old_enough() -> None:
    assert why_kept(FREE, NOW, KEEP) == ""
    young = replace(FREE, youngest=NOW - KEEP + timedelta(seconds=1))
    assert why_kept(young, NOW, KEEP) == "not old enough"


@pytest.mark.parametrize("state", [s for s in StudyState if s is not StudyState.CLOSED])
def test_a_study_that_is_not_closed_stays(state: str) -> None:
    assert why_kept(replace(FREE, state=state), NOW, KEEP) == f"the study is {state}"


@pytest.mark.parametrize("state", JobState)
def test_a_job_keeps_its_images_until_it_is_over(state: JobState) -> None:
    over = state in {JobState.DONE, JobState.CANCELLED}
    reason = why_kept(replace(FREE, jobs=["done", state]), NOW, KEEP)
    assert reason == ("" if over else f"a job is {state}")


def test_what_is_undelivered_unbuilt_or_undecided_keeps_the_images() -> None:
    for change in (
        {"deliveries": {("sent", False), ("dead", False)}},
        {"deliveries": {("sent", True)}},
        {"unsent": 1},
        {"quarantined": 1},
    ):
        assert why_kept(replace(FREE, **change), NOW, KEEP)
