from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dicom_node.errors import Unavailable
from dicom_node.store.database import CommitUnknown
from dicom_node.store.group import Group


class Held:
    """A ``perform`` whose first call waits, so that the next ones gather behind it."""

    def __init__(self, then: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self.calls: list[list[Any]] = []
        self.go, self.began = threading.Event(), threading.Event()
        self._then = then

    def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        self.calls.append(list(items))
        if len(self.calls) == 1:
            self.began.set()
            assert self.go.wait(10)
            return list(items)
        return self._then(items)


def behind_one(perform: Held, items: Sequence[Any]) -> dict[Any, Any]:
    """Submit all while "first" is being written; each one's result or error."""
    group: Group[Any, Any] = Group(perform)
    outcomes: dict[Any, Any] = {}

    def submit(item: Any) -> None:
        try:
            outcomes[item] = group.submit(item)
        except Exception as error:
            outcomes[item] = error

    threads = [threading.Thread(target=submit, args=(item,)) for item in ("first", *items)]
    threads[0].start()
    assert perform.began.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(group._waiting) < len(items):
        pass
    assert not set(outcomes) & set(items), "nobody returns before its own commit"
    perform.go.set()
    for thread in threads:
        thread.join(10)
    return outcomes


def test_what_comes_meanwhile_shares_one_transaction() -> None:
    perform = Held(lambda items: [f"wrote {item}" for item in items])
    outcomes = behind_one(perform, [1, 2, 3])
    assert [len(call) for call in perform.calls] == [1, 3]
    assert {n: outcomes[n] for n in (1, 2, 3)} == {n: f"wrote {n}" for n in (1, 2, 3)}


def test_who_comes_alone_does_not_wait() -> None:
    group: Group[int, int] = Group(lambda items: [2 * item for item in items])
    assert [group.submit(n) for n in range(3)] == [0, 2, 4]


def test_one_members_fault_is_its_own() -> None:
    def then(items: Sequence[Any]) -> Sequence[Any]:
        if 2 in items:
            raise ValueError("two")
        return items

    perform = Held(then)
    outcomes = behind_one(perform, [1, 2, 3])
    assert (outcomes[1], outcomes[3]) == (1, 3)
    assert isinstance(outcomes[2], ValueError)
    assert sorted(len(call) for call in perform.calls) == [1, 1, 1, 1, 3]


@pytest.mark.parametrize("kind", [Unavailable, CommitUnknown])
def test_what_is_of_nobodys_making_is_told_to_all_at_once(kind: type[Exception]) -> None:
    def then(_: Sequence[Any]) -> Sequence[Any]:
        raise kind("database")

    perform = Held(then)
    outcomes = behind_one(perform, [1, 2, 3])
    assert [type(outcomes[n]) for n in (1, 2, 3)] == [kind] * 3
    assert len({id(outcomes[n]) for n in (1, 2, 3)}) == 3, "each its own, to raise"
    assert [len(call) for call in perform.calls] == [1, 3], "and not tried one by one"


def test_a_leader_that_is_interrupted_leaves_nobody_waiting() -> None:
    def interrupt(_: Sequence[Any]) -> Sequence[Any]:
        raise KeyboardInterrupt

    group: Group[int, int] = Group(interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            group.submit(1)
