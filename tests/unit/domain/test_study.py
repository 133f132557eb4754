from __future__ import annotations

import pytest

from dicom_node.domain.study import (
    Candidate,
    InstanceFacts,
    Patient,
    by_series,
    conflicting_patients,
)


def facts(number: int, series: str = "1.1", **told: object) -> InstanceFacts:
    return InstanceFacts(f"1.9.{number}", "1.2", series, "", **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patients", "conflict"),
    [
        ([], False),
        ([Patient("A")], False),
        ([Patient("A"), Patient("A")], False),
        ([Patient("A"), Patient("B")], True),
        ([Patient("A", "H1"), Patient("A", "H2")], True),
        ([Patient("A", "H1"), Patient("A")], False),
        ([Patient(""), Patient("A")], True),
        ([Patient(""), Patient("")], False),
    ],
)
def test_two_patients_in_one_study_conflict(patients: list[Patient], conflict: bool) -> None:
    assert conflicting_patients(patients) is conflict
    assert conflicting_patients(patients[::-1]) is conflict


def test_series_and_their_instances_keep_the_order_of_arrival() -> None:
    a, b, c = facts(3, "1.2"), facts(1, "1.1"), facts(2, "1.2")
    assert list(by_series([a, b, c]).items()) == [("1.2", [a, c]), ("1.1", [b])]


def test_a_candidate_speaks_for_all_its_instances() -> None:
    told = facts(1, modality="CT", image_type=("A", "B"), frames=2, thickness_mm=1.0)
    both = Candidate("1.1", (told, facts(2, image_type=("B",), frames=3)))
    assert both.values("modality") == {"CT"}
    assert both.values("image_type") == {"A", "B"}
    assert both.number("instances") == 2
    assert both.number("frames") == 5
    assert both.number("thickness_mm") == 1.0
