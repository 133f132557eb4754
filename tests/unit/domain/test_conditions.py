from __future__ import annotations

import pytest

from dicom_node.domain.conditions import NUMBERS, PATTERNS, WORDS, parse
from dicom_node.domain.study import Candidate, InstanceFacts
from dicom_node.errors import ConfigurationError

ONE = InstanceFacts(
    sop_instance_uid="1.1",
    sop_class_uid="1.2",
    series_instance_uid="1.3",
    sha256="",
    modality="CT",
    body_part="CHEST",
    image_type=("ORIGINAL", "PRIMARY"),
    series_description="Thorax Nativ",
    rows=512,
    frames=10,
    thickness_mm=1.5,
)
CANDIDATE = Candidate("1.3", (ONE, ONE))


@pytest.mark.parametrize(
    ("table", "holds"),
    [
        ({}, True),
        ({"modality": "ct"}, True),
        ({"modality": ["MR", "CT"]}, True),
        ({"modality": ["MR"]}, False),
        ({"laterality": ["L"]}, False),
        ({"image_type": "PRIMARY"}, True),
        ({"modality": "CT", "body_part": "HEAD"}, False),
        ({"series_description": "chest|thorax"}, True),
        ({"series_description": ["chest", "^nativ"]}, False),
        ({"protocol": ".*"}, False),
        ({"thickness_mm": {"max": 1.5}}, True),
        ({"thickness_mm": {"max": 1.4}}, False),
        ({"thickness_mm": {"min": 1, "max": 2}}, True),
        ({"thickness_mm": 1.5}, True),
        ({"rows": 511}, False),
        ({"instances": 2}, True),
        ({"frames": {"min": 20}}, True),
        ({"frames": {"min": 21}}, False),
        ({"columns": {"min": 1}}, False),
        ({"not": {"modality": "MR"}}, True),
        ({"not": {"modality": "CT"}}, False),
        ({"any": [{"modality": "MR"}, {"body_part": "CHEST"}]}, True),
        ({"any": [{"modality": "MR"}, {"body_part": "HEAD"}]}, False),
        ({"all": [{"modality": "CT"}, {"body_part": "HEAD"}]}, False),
        ({"all": [{"modality": "CT"}, {"not": {"any": [{"body_part": "HEAD"}]}}]}, True),
    ],
)
def test_a_condition_holds_as_it_reads(table: dict[str, object], holds: bool) -> None:
    assert parse(table).judge(CANDIDATE).holds is holds


def test_an_absent_number_lies_in_no_range() -> None:
    unknown = Candidate("1", (InstanceFacts("1.1", "1.2", "1.3", ""),))
    verdict = parse({"thickness_mm": {"max": 3}}).judge(unknown)
    assert not verdict.holds
    assert verdict.text == "thickness_mm is at most 3 (here not told)"


def test_a_verdict_tells_the_whole_tree() -> None:
    table = {"modality": ["CT"], "not": {"any": [{"rows": {"min": 1, "max": 9}}]}}
    assert parse(table).judge(CANDIDATE).lines() == [
        "✓ all of",
        "  ✓ modality is CT (here CT)",
        "  ✓ not",
        "    ✗ any of",
        "      ✗ rows is at least 1 and at most 9 (here 512)",
    ]
    assert parse({}).judge(CANDIDATE).lines() == ["✓ always"]


def test_a_verdict_never_repeats_what_a_person_typed() -> None:
    verdict = parse({"series_description": "nativ"}).judge(CANDIDATE)
    assert verdict.text == "series_description matches /nativ/ (here a value)"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"modalty": "CT"}, "when.modalty: unknown key; known are all, any, body_part"),
        ({"modality": []}, "when.modality: text or a list of texts is needed"),
        ({"modality": ""}, "when.modality: text"),
        ({"modality": ["CT", 1]}, "when.modality: text"),
        ({"protocol": "("}, "when.protocol: not a regular expression"),
        ({"rows": "512"}, "when.rows: a number or"),
        ({"rows": True}, "when.rows: a number or"),
        ({"rows": {}}, "when.rows: a number or"),
        ({"rows": {"min": True}}, "when.rows: a number or"),
        ({"rows": {"least": 1}}, "when.rows: a number or"),
        ({"any": []}, "when.any: a list of tables is needed"),
        ({"any": {"modality": "CT"}}, "when.any: a list of tables is needed"),
        ({"any": ["CT"]}, r"when.any\[0\]: a table is needed"),
        ({"not": [{"modality": "CT"}]}, "when.not: a table is needed"),
        ({"all": [{"not": {"rows": "x"}}]}, r"when.all\[0\].not.rows: a number or"),
    ],
)
def test_what_is_wrong_with_a_condition_is_told_with_its_place(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(table)


def test_every_key_names_a_fact() -> None:
    for key in WORDS | PATTERNS:
        CANDIDATE.values(key)
    for key in NUMBERS:
        CANDIDATE.number(key)
