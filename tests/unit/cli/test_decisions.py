import pytest

from dicom_node.cli.decisions import labels_of, print_choices, print_rules

LABELS = labels_of([{"series": "1.1", "number": 4, "modality": "CT", "instances": 1}])


def verdict(holds: bool, text: str, *parts: dict[str, object]) -> dict[str, object]:
    return {"holds": holds, "text": text, "parts": list(parts)}


def test_a_rule_is_told_with_the_tree_of_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    tree = verdict(False, "all of", verdict(True, "modality is CT"), verdict(False, "view is PA"))
    rule = {"rule": "chest", "matched": False, "note": "", "verdicts": [["1.1", tree]]}
    print_rules([rule], LABELS, indent=0)
    assert capsys.readouterr().out.splitlines() == [
        "✗ rule chest did not match",
        "    series 4 (CT, 1 instance)",
        "      ✗ all of",
        "        ✓ modality is CT",
        "        ✗ view is PA",
    ]


def test_what_many_candidates_share_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    no = verdict(False, "modality is CT (here MR)")
    verdicts = [[f"2.{n}", no] for n in range(40)]
    print_rules([{"rule": "r", "matched": False, "note": "", "verdicts": verdicts}], {}, indent=0)
    told = capsys.readouterr().out
    assert "40 images" in told and told.count("modality is CT") == 1


def test_choices_are_grouped_by_reason_and_the_taken_ones_come_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = [["1.1", False, "too thick"], ["9.9", True, "fits"]]
    choice = {"rule": "r", "model": "m@1.0.0", "taken": ["9.9"], "reasons": reasons}
    print_choices([choice], LABELS, indent=0)
    assert capsys.readouterr().out.splitlines() == [
        "model m@1.0.0 asked by rule 'r'",
        "    ✓ takes image 9.9: fits",
        "    ✗ passes over series 4 (CT, 1 instance): too thick",
    ]


def test_images_told_as_a_group_are_named_by_their_series(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdicts = [["12 images of 1.1", verdict(True, "always")]]
    print_rules([{"rule": "r", "matched": True, "note": "", "verdicts": verdicts}], LABELS, 0)
    assert "12 images of series 4 (CT, 1 instance)" in capsys.readouterr().out
