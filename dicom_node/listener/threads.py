"""Owns what the listener's many threads share: the C library's heaps and the interpreter's lock.

Refuses to know what the threads do. glibc gives threads up to eight heaps a core, and each keeps
what its largest moment took. With a thread for each association memory would grow for hours, to
gigabytes on a large machine, and speed nothing up: Python's threads take turns.

A thread that has work without pause keeps the interpreter until another has asked for so long, and
whoever answers a short question asks hundreds of times: beside one peer that floods the listener
with requests, an echo took up to 1.9 s with Python's 5 ms, up to 0.9 s with 1 ms and 0.04 s with
half of one. Sixteen senders at once are served up to a tenth slower.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h; mallopt(3)
HEAPS = 2
TURN = 0.0005
"""Seconds that a thread keeps the interpreter while others wait for it."""


def suit_many_threads() -> None:
    """Call before threads start; another C library than glibc is left as it is."""
    sys.setswitchinterval(TURN)
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)
