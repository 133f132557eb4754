"""Owns how often the same thing is told: once, then once in a while with the number of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Kind = tuple[str, ...]
_MOST = 1000
"""Kinds that are remembered: peers choose how many there are."""


class Throttle:
    """Lets the first of a kind pass, then one in ``every`` seconds; counts what it holds back.

    Args:
        every: seconds.
        clock: monotonic seconds.
    """

    def __init__(self, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._kinds: dict[Kind, tuple[float, int]] = {}  # when one last passed; held back since
        self._lock = threading.Lock()

    def passes(self, kind: Kind) -> int | None:
        """How many of the kind were held back since the last that passed; None: hold this back."""
        now = self._clock()
        with self._lock:
            last, held = self._kinds.pop(kind, (None, 0))
            if last is not None and now - last < self._every:
                self._kinds[kind] = (last, held + 1)
                return None
            if len(self._kinds) >= _MOST:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = (now, 0)
            return held

    def left(self) -> dict[Kind, int]:
        """What was held back and not told yet, by kind; forgets it."""
        with self._lock:
            kinds, self._kinds = self._kinds, {}
        return {kind: count for kind, (_, count) in kinds.items() if count}
