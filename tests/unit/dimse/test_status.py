from __future__ import annotations

import pytest

from dicom_node import errors
from dicom_node.dimse.status import Meaning, meaning_of, response_to, status_for


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Unavailable("locked"), 0xA700),
        (errors.OutOfSpace("full"), 0xA700),
        (OSError(28, "No space left on device"), 0xA700),
        (TimeoutError(), 0xA700),
        (MemoryError(), 0xA700),
        (errors.IdentifierProblem("x"), 0xA900),
        (errors.RefusedInstance("x"), 0xC000),
        (errors.UnreadableDataSet("x"), 0xC001),
        (errors.OverLimit("x"), 0xC002),
        (errors.ConflictingInstance("x"), 0xC003),
        (errors.NodeError("x"), 0xC00F),
        (RecursionError(), 0xC00F),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert status_for(error) == status


def test_no_error_is_ever_a_success() -> None:
    def tree(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(tree(sub) for sub in kind.__subclasses__()))

    for kind in tree(errors.NodeError):
        failure = status_for(kind.__new__(kind))
        assert meaning_of(failure) in (Meaning.LATER, Meaning.NEVER), kind


def test_the_comment_is_a_valid_long_string() -> None:
    reason = "line\none\\two\x1b" + "ü" * 100
    comment = response_to(errors.UnreadableDataSet(reason)).comment
    assert comment == "line?one?two?" + "?" * 51
    assert len(comment) == 64


@pytest.mark.parametrize("error", [errors.Unavailable("Doe^John"), ValueError("Doe^John")])
def test_what_is_no_refusal_does_not_speak_for_itself(error: Exception) -> None:
    assert "Doe" not in response_to(error).comment


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (0x0000, Meaning.STORED),
        (0x0001, Meaning.WARNING),
        (0x0107, Meaning.WARNING),
        (0xB000, Meaning.WARNING),
        (0xB006, Meaning.WARNING),
        (0xB007, Meaning.WARNING),
        (0xA700, Meaning.LATER),
        (0xA701, Meaning.LATER),
        (0xA7FF, Meaning.LATER),
        (0xA900, Meaning.NEVER),
        (0xA9FF, Meaning.NEVER),
        (0x0122, Meaning.NEVER),
        (0xC000, Meaning.NEVER),
        (0xCFFF, Meaning.NEVER),
        (0x0110, Meaning.LATER),
        (0x0124, Meaning.LATER),
        (0xA800, Meaning.LATER),
        (0xFE00, Meaning.LATER),
        (0xFFFF, Meaning.LATER),
    ],
)
def test_each_status_of_a_destination_has_its_meaning(status: int, meaning: Meaning) -> None:
    assert meaning_of(status) is meaning
