from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicom_node.domain.job import Priority
from dicom_node.domain.model import ModelState, ModelVersion
from dicom_node.domain.routing import Plan, expected_missing, judge_rule, parse_rules, plan
from dicom_node.domain.selection import Criteria
from dicom_node.domain.study import InstanceFacts
from dicom_node.errors import ConfigurationError

LUNG = ModelVersion(1, "lung", "1.0.0", ModelState.ACTIVE, Criteria("image", ("DX",), take="all"))
NODULE = ModelVersion(2, "nodule", "2.0.0", ModelState.ACTIVE, Criteria("series", ("CT",)))


def dx(number: int, **told: Any) -> InstanceFacts:
    basis = InstanceFacts(
        f"1.9.{number}", "1.2", "1.1", f"sha{number}", modality="DX", view="PA", rows=9, columns=9
    )
    return replace(basis, **told)


def rule(name: str = "chest", **changes: Any) -> dict[str, Any]:
    written = {"name": name, "models": ["lung"], "destinations": ["pacs"]}
    return {k: v for k, v in {**written, **changes}.items() if v is not None}


def planned(
    rules: list[dict[str, Any]],
    instances: list[InstanceFacts],
    models: tuple[ModelVersion, ...] = (LUNG, NODULE),
) -> Plan:
    return plan(instances, parse_rules({"rule": rules}), models)


def test_a_rule_sends_what_it_lets_through_to_its_models() -> None:
    made = planned([rule(when={"view": ["PA"]})], [dx(1), dx(2, view="LL")])
    (job,) = made.jobs
    assert job.model == LUNG
    assert [i.sop_instance_uid for i in job.inputs] == ["1.9.1"]
    assert (job.destinations, job.rules, job.priority) == (("pacs",), ("chest",), Priority.ROUTINE)
    (choice,) = made.choices
    assert choice.taken == ("1.9.1",)
    assert set(choice.reasons) == {
        ("1.9.1", True, "fits"),
        ("1.9.2", False, "rule 'chest' does not hold"),
    }


def test_two_rules_that_want_the_same_make_one_job() -> None:
    made = planned(
        [
            rule("a", destinations=["pacs", "archive"]),
            rule("b", destinations=["archive", "research"], priority="stat"),
        ],
        [dx(1)],
    )
    (job,) = made.jobs
    assert job.destinations == ("pacs", "archive", "research")
    assert job.rules == ("a", "b")
    assert job.priority is Priority.STAT


def test_rules_that_let_other_inputs_through_make_other_jobs() -> None:
    made = planned(
        [rule("pa", when={"view": "PA"}), rule("all")],
        [dx(1), dx(2, view="AP")],
    )
    assert sorted((job.inputs[0].sop_instance_uid, job.rules) for job in made.jobs) == [
        ("1.9.1", ("pa", "all")),
        ("1.9.2", ("all",)),
    ]


def test_a_shadow_version_runs_beside_and_delivers_nowhere() -> None:
    shadow = replace(LUNG, id=3, version="1.1.0", state=ModelState.SHADOW)
    made = planned([rule()], [dx(1)], (LUNG, shadow))
    assert [(job.model.title, job.destinations) for job in made.jobs] == [
        ("lung@1.0.0", ("pacs",)),
        ("lung@1.1.0", ()),
    ]


@pytest.mark.parametrize("state", [ModelState.STAGED, ModelState.RETIRED])
def test_a_model_that_may_not_run_is_noted_and_makes_no_job(state: ModelState) -> None:
    made = planned([rule(models=["lung", "nodule"])], [dx(1)], (replace(LUNG, state=state),))
    assert made.jobs == ()
    (verdict,) = made.rules
    assert verdict.matched
    assert verdict.note == "names lung, nodule, of which no version is active"


def test_a_rule_may_name_one_version() -> None:
    newer = replace(LUNG, id=3, version="1.1.0", state=ModelState.SHADOW)
    made = planned([rule(models=["lung@1.1.0"])], [dx(1)], (LUNG, newer))
    assert [job.model.title for job in made.jobs] == ["lung@1.1.0"]


def test_a_rule_that_is_switched_off_makes_nothing_and_says_so() -> None:
    made = planned([rule(enabled=False)], [dx(1)])
    assert made.jobs == ()
    assert made.choices == ()
    assert not made.rules[0].matched
    assert made.rules[0].note == "switched off"


@pytest.mark.parametrize("asked", ["STAT", "HIGH", "stat"])
def test_the_modality_may_ask_for_haste(asked: str) -> None:
    made = planned([rule()], [dx(1, priority=asked), dx(2, priority="MEDIUM")])
    assert {j.inputs[0].sop_instance_uid: j.priority for j in made.jobs} == {
        "1.9.1": Priority.STAT,
        "1.9.2": Priority.ROUTINE,
    }


def test_a_rule_that_no_series_satisfies_does_not_match() -> None:
    made = planned([rule(when={"modality": "MR"})], [dx(1)])
    assert not made.rules[0].matched
    assert made.rules[0].note == ""
    assert made.jobs == ()


def test_a_rule_without_a_condition_matches_every_study_with_an_image() -> None:
    assert planned([rule()], [dx(1)]).rules[0].matched
    assert not planned([rule()], []).rules[0].matched


def test_images_are_judged_by_themselves_where_they_differ_from_their_series() -> None:
    (chest,) = parse_rules({"rule": [rule(when={"view": "PA"})]})
    told = judge_rule(chest, [dx(1), dx(2, view="LL"), dx(3, view="LL")]).verdicts
    assert [(uid, verdict.holds) for uid, verdict in told] == [
        ("1.1", True),
        ("1.9.1", True),
        ("2 images of 1.1", False),
    ]
    told = judge_rule(chest, [dx(1), dx(2)]).verdicts
    assert [(uid, verdict.holds) for uid, verdict in told] == [("1.1", True)]


def test_a_rule_that_counts_says_how_many_it_still_waits_for() -> None:
    counting, plain, off = parse_rules(
        {
            "rule": [
                rule("a", expect_instances=3, when={"modality": "DX"}),
                rule("b"),
                rule("c", expect_instances=3, enabled=False),
            ]
        }
    )
    assert expected_missing(counting, [dx(1), dx(2)]) == 1
    assert expected_missing(counting, [dx(n) for n in range(5)]) == 0
    assert expected_missing(counting, [dx(1, modality="MR")]) is None
    assert expected_missing(plain, [dx(1)]) is None
    assert expected_missing(off, [dx(1)]) is None


def test_a_rule_counts_instances_of_every_size() -> None:
    """A mammogram's four views need not be of one size."""
    (counting,) = parse_rules({"rule": [rule(expect_instances=4, when={"modality": "MG"})]})
    views = [dx(n, modality="MG", rows=1000 + n) for n in range(4)]
    assert expected_missing(counting, views) == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rules": []}, r"unknown key 'rules'; rules are \[\[rule\]\] tables"),
        ({"rule": {}}, "two brackets"),
        ({"rule": [rule(name="")]}, "rule 1: name: text is needed"),
        ({"rule": [rule(), rule()]}, "two rules are called 'chest'"),
        ({"rule": [rule(modles=[])]}, "rule 'chest': unknown key 'modles'"),
        ({"rule": [rule(models=None)]}, "rule 'chest': models: a list of names is needed"),
        ({"rule": [rule(models=[])]}, "rule 'chest': models: a list of names is needed"),
        ({"rule": [rule(destinations="pacs")]}, "rule 'chest': destinations: a list of names"),
        ({"rule": [rule(priority="urgent")]}, "rule 'chest': priority: stat or routine, not"),
        ({"rule": [rule(priority=1)]}, "rule 'chest': priority"),
        ({"rule": [rule(expect_instances=0)]}, "rule 'chest': expect_instances: a count of at"),
        ({"rule": [rule(expect_instances=True)]}, "rule 'chest': expect_instances: a count of at"),
        ({"rule": [rule(enabled="yes")]}, "rule 'chest': enabled: true or false is needed"),
        ({"rule": [rule(when={"modalty": 1})]}, "rule 'chest': when.modalty: unknown key"),
        ({"rule": ["chest"]}, "rule 1: a table is needed"),
    ],
)
def test_what_is_wrong_with_a_rule_is_told_with_its_name(
    document: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_rules(document)
