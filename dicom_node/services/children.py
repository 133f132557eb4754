"""Owns what holds of child processes: none outlives its parent, or takes more than it may."""

from __future__ import annotations

import ctypes
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child, before it becomes its program: get a signal when the parent is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def limit_memory(size: int) -> None:
    """Let this process and its children not take more bytes (Linux, POSIX).

    What is asked for beyond it fails as `MemoryError`.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def confine(size: int) -> None:
    """In a child that decodes: so many bytes of memory, and no core, which would hold images."""
    limit_memory(size)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def why_ended(code: int) -> str:
    """A child's exit status, in words."""
    if code >= 0:
        return f"its process ended with {code}"
    name = signal.Signals(-code).name
    return f"its process died of {name}" + (
        ": out of memory, or killed by hand" if name == "SIGKILL" else ""
    )
