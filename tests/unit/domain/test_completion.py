from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from dicom_node.domain.completion import Answer, Evidence, Expectation, judge

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
MET = Expectation("MPPS", 3, 0)
UNMET = Expectation("MPPS", 3, 2)
EVIDENCE = Evidence(
    first_at=START,
    last_at=START + timedelta(seconds=100),
    sending=0,
    last_closed_at=START + timedelta(seconds=101),
    expectations=(),
    quiet=timedelta(seconds=30),
    quiet_rule="modality CT",
    whole_radiographs=False,
    hard_cap=timedelta(seconds=1800),
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_an_open_association_makes_it_wait_until_the_cap() -> None:
    judgement = judge(replace(EVIDENCE, sending=2, expectations=(MET,)), at(500))
    assert judgement.answer is Answer.WAIT
    assert judgement.reason == "2 associations still sending it"
    assert judgement.again_at == at(1800)


def test_a_missing_instance_that_was_told_makes_it_wait_until_the_cap() -> None:
    judgement = judge(replace(EVIDENCE, expectations=(MET, UNMET)), at(500))
    assert judgement.answer is Answer.WAIT
    assert judgement.reason == "MPPS told 3, 2 missing"
    assert judgement.again_at == at(1800)


def test_all_that_was_told_completes_it_without_quiet() -> None:
    judgement = judge(replace(EVIDENCE, expectations=(MET,)), at(102))
    assert judgement.answer is Answer.COMPLETE
    assert judgement.reason == "MPPS told 3, all held"


def test_whole_radiographs_complete_it_when_their_association_closes() -> None:
    radiographs = replace(EVIDENCE, whole_radiographs=True)
    judgement = judge(radiographs, at(101))
    assert judgement.answer is Answer.COMPLETE
    assert judgement.reason == "complete radiographs, and their association has closed"
    # An association that never closed in order proves nothing.
    assert judge(replace(radiographs, last_closed_at=None), at(101)).answer is Answer.WAIT


def test_a_told_count_that_is_not_met_keeps_whole_radiographs_waiting() -> None:
    evidence = replace(EVIDENCE, whole_radiographs=True, expectations=(UNMET,))
    assert judge(evidence, at(101)).answer is Answer.WAIT


def test_quiet_counts_from_the_last_instance_or_association_whichever_is_later() -> None:
    before = judge(EVIDENCE, at(130.9))
    assert before.answer is Answer.WAIT
    assert before.reason == "not yet quiet for 30 s (modality CT)"
    assert before.again_at == at(131)
    after = judge(EVIDENCE, at(131))
    assert after.answer is Answer.COMPLETE
    assert after.reason == "quiet for 30 s (modality CT), no association still sending it"
    unclosed = replace(EVIDENCE, last_closed_at=None)
    assert judge(unclosed, at(129)).again_at == at(130)
    assert judge(unclosed, at(130)).answer is Answer.COMPLETE


def test_a_wait_for_quiet_never_goes_beyond_the_cap() -> None:
    late = replace(EVIDENCE, last_at=at(1795), last_closed_at=None)
    assert judge(late, at(1796)).again_at == at(1800)


def test_the_cap_goes_on_with_the_reason_for_which_it_waited() -> None:
    for evidence, why in (
        (replace(EVIDENCE, expectations=(UNMET,)), "MPPS told 3, 2 missing"),
        (replace(EVIDENCE, sending=1), "1 associations still sending it"),
        (replace(EVIDENCE, last_at=at(1799)), "not yet quiet for 30 s (modality CT)"),
    ):
        assert judge(evidence, at(1799.9)).answer is Answer.WAIT
        judgement = judge(evidence, at(1800))
        assert judgement.answer is Answer.INCOMPLETE
        assert judgement.reason == f"hard cap of 1800 s after the first instance: {why}"
        assert judgement.again_at is None


def test_a_complete_study_that_was_looked_at_late_is_not_called_incomplete() -> None:
    """The scheduler was down overnight: that says nothing of the study."""
    assert judge(EVIDENCE, at(40_000)).answer is Answer.COMPLETE
    assert judge(replace(EVIDENCE, expectations=(MET,)), at(40_000)).answer is Answer.COMPLETE
