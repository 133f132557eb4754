import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.cli.output import ago, cell, clean, many, print_json, print_rows, say


def test_text_from_outside_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[bold]x[/nope] \x1b[31mred\x9b2J\u202eevil\n\\[a] \\"
    say("description: ", (hostile, "red"), hostile)
    print_rows([{"text": hostile}], ("text",), False)
    told = capsys.readouterr().out
    assert "[bold]x[/nope]" in told and "\\[a]" in told
    for character in "\x1b\x9b\u202e":
        assert character not in told
    assert len(told.splitlines()) == 3  # one of `say`, heading and row of the table


def test_a_long_identifier_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    uid = "2.25." + "1" * 59
    row = dict.fromkeys("abcd", uid)
    print_rows([row], tuple("abcd"), False)
    assert capsys.readouterr().out.count(uid) == 4


def test_a_listing_as_json_holds_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    print_rows([{"shown": 1, "hidden": at, "path": Path("a")}], ("shown",), True)
    told = json.loads(capsys.readouterr().out)
    assert told == [{"shown": 1, "hidden": "2026-01-02T00:00:00+00:00", "path": "a"}]


def test_an_empty_listing_says_none_to_people_and_nothing_to_scripts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rows([], ("a",), False)
    print_rows([], ("a",), True)
    assert capsys.readouterr().out == "none\n[]\n"


@pytest.mark.parametrize("empty", [None, "", [], ()])
def test_what_is_absent_is_a_dash_but_zero_is_zero(empty: object) -> None:
    assert cell(empty).plain == "-"
    assert cell(0).plain == "0" and cell(False).plain == "False"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "5 s ago"), (120, "2 min ago"), (7200, "2 h ago"), (2 * 86400, "2 d ago")],
)
def test_times_are_told_from_now(seconds: float, words: str) -> None:
    assert ago(datetime.now(UTC) - timedelta(seconds=seconds)) == words


def test_times_to_come_are_told_as_such() -> None:
    assert ago(datetime.now(UTC) + timedelta(minutes=5)) == "in 5 min"


def test_nouns_follow_their_count() -> None:
    assert [many(n, "job") for n in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
    assert clean("a\tb") == "a�b"


def test_json_refuses_what_it_cannot_tell() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        print_json({1})
