import pytest

from dicom_node.results.codes import MODERATE
from dicom_node.results.words import percentages, quantity, verdict
from inference.types import Code, Finding
from tests.results import PNEUMONIA


@pytest.mark.parametrize(
    ("probability", "threshold", "expected"),
    [
        (0.876, 0.5, ("88 %", "50 %")),
        (0.4996, 0.5, ("49.96 %", "50 %")),
        (0.5, 0.5, ("50 %", "50 %")),
        (0.5004, 0.5, ("50.04 %", "50 %")),
        (0.9999, 0.5, ("> 99 %", "50 %")),
        (0.0001, 0.125, ("< 1 %", "12.5 %")),
        (1.0, None, ("100 %", None)),
        (0.0, None, ("0 %", None)),
    ],
)
def test_percentages_tell_the_two_apart_and_claim_no_certainty(
    probability: float, threshold: float | None, expected: tuple[str, str | None]
) -> None:
    assert percentages(probability, threshold) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (23.42, "mm", "23.4 mm"),
        (0.432, "ml", "0.43 ml"),
        (1234.5, "ml", "1,234 ml"),
        (999.0, "mm2", "999 mm²"),
        (12_345.0, "mm2", "123 cm²"),
        (1234.0, "mm2", "12.3 cm²"),
        (77.0, "{pixels}", "77 pixels"),
        (-650.2, "[hnsf'U]", "-650 HU"),
        (0.87654, "1", "0.877"),
        (5.0, "s", "5.0 s"),
    ],
)
def test_a_quantity_is_worded_for_people(value: float, unit: str, expected: str) -> None:
    assert quantity(value, Code(unit, "UCUM", "")) == expected


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (Finding("Pneumonia", PNEUMONIA, False), "Pneumonia: absent."),
        (
            Finding("Pneumonia", PNEUMONIA, True, 0.8, 0.5, MODERATE, 3.5),
            "Pneumonia: present, probability 80 % (threshold 50 %), severity moderate, score 3.5.",
        ),
    ],
)
def test_a_verdict_is_one_sentence(finding: Finding, expected: str) -> None:
    assert verdict(finding) == expected
