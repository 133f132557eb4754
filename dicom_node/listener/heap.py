"""Owns how many heaps the C library keeps for the listener's threads, and not what is in them.

glibc gives threads up to eight heaps a core, and each keeps what its largest moment took. With a
thread for each association memory would grow for hours, to gigabytes on a large machine, and speed
nothing up: Python's threads take turns.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h; mallopt(3)
HEAPS = 2


def keep_few_heaps() -> None:
    """Call before threads start; another C library than glibc is left as it is."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)
