"""Owns the one transaction that carries what several threads write at once; knows no table.

Whoever comes while none is running carries all that wait; the others sleep until theirs is on disk.
So a commit costs one fsync however many wait for it, and nobody waits for a timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from dicom_node.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Perform = Callable[[Sequence[Item]], Sequence[Result]]

MAXIMUM = 64
"""Members of one transaction."""


@dataclass
class _Member(Generic[Item, Result]):
    item: Item
    outcome: Result | BaseException | None = None
    done: bool = False


class Group(Generic[Item, Result]):
    """Runs ``perform`` on what comes, several at a time.

    Args:
        perform: writes all items in one transaction and returns, once it is committed, a result
            for each; where it raises, nothing of any is written, but by ``CommitUnknown``.
    """

    def __init__(self, perform: Perform[Item, Result]) -> None:
        self._perform = perform
        self._changed = threading.Condition()
        self._waiting: list[_Member[Item, Result]] = []
        self._running = False

    def submit(self, item: Item) -> Result:
        """Write it, alone or with others; returns when it is committed.

        Raises:
            Exception: whatever ``perform`` raised of this item alone, or, where database or disk
                cannot take anything now, of all.
        """
        member: _Member[Item, Result] = _Member(item)
        with self._changed:
            self._waiting.append(member)
            while self._running and not member.done:
                self._changed.wait()
            if not member.done:
                self._running = True
                # Who leads is a member itself, wherever it stands in a long queue.
                others = [other for other in self._waiting if other is not member]
                members = [member, *others[: MAXIMUM - 1]]
                self._waiting = others[MAXIMUM - 1 :]
        if not member.done:
            self._carry(members)
        if isinstance(member.outcome, BaseException):
            raise member.outcome
        return cast(Result, member.outcome)

    def _carry(self, members: Sequence[_Member[Item, Result]]) -> None:
        try:
            self._settle(members)
        except BaseException as error:
            for member in members:
                if member.outcome is None:
                    member.outcome = copy(error)
            raise
        finally:
            with self._changed:
                for member in members:
                    member.done = True
                self._running = False
                self._changed.notify_all()

    def _settle(self, members: Sequence[_Member[Item, Result]]) -> None:
        """Give every member its outcome."""
        try:
            results = self._perform([member.item for member in members])
        except Unavailable as error:  # of nobody's making; whether it is certain it says itself
            for member in members:
                member.outcome = _own(error)
        except Exception as error:
            if len(members) == 1:
                members[0].outcome = error
                return
            for member in members:  # nothing is written yet: each alone bears its own fault
                self._settle([member])
        else:
            for member, result in zip(members, results, strict=True):
                member.outcome = result


def _own(error: Any) -> Any:
    """An error for one thread to raise; threads that share one would write into its traceback."""
    own = copy(error)
    own.__cause__ = error
    return own
