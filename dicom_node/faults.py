"""Owns the named steps at which a test makes the node fail; refuses to know what the steps do.

Off, a step costs one look at a module variable. The environment arms it, and only where it says
twice that this is a test:

    FAULT_TESTING=yes FAULT=instances/synced:3:kill dicom-node listen
    FAULT_TESTING=yes FAULT=@orders dicom-node up

The first kills the process the third time that it gets to the step. With ``@`` a file is looked
for at every step: it holds ``step:action``, and whoever comes to that step removes it and acts, so
that of many processes one is hit, once.

========  ================================================================
action    what happens
========  ================================================================
kill      SIGKILL of the process
stop      SIGSTOP: it is frozen until somebody continues it
sleep=S   the thread waits S seconds
raise     RuntimeError
ENOSPC    OSError of that number; any name of ``errno``
========  ================================================================
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE, TESTING = "FAULT", "FAULT_TESTING"

STEPS = (
    "instances/opened",
    "instances/written",
    "instances/synced",
    "instances/renamed",
    "instances/durable",
    "receive/commit",
    "receive/committed",
    "receive/answer",
    "close/commit",
    "close/committed",
    "job/claimed",
    "job/predicted",
    "job/built",
    "results/opened",
    "results/written",
    "results/synced",
    "results/renamed",
    "results/durable",
    "job/commit",
    "job/committed",
    "delivery/claimed",
    "delivery/sent",
    "delivery/commit",
    "delivery/recorded",
    "migration/statement",
    "migration/commit",
)
"""All of them, in the order in which a study meets them; a test holds this to the code."""

_armed: Callable[[str], None] | None = None


def step(name: str, room: str) -> None:
    """Do nothing, unless a test wants this step to fail: ``room/name`` is how it names it."""
    if _armed is not None:
        _armed(f"{room}/{name}")


def arm(environment: Mapping[str, str]) -> str | None:
    """Arm what the environment asks for, once per process.

    Returns:
        What to tell the operator, where a fault is asked for outside of a test: it is ignored.

    Raises:
        ValueError: no such step or action.
    """
    global _armed  # noqa: PLW0603 - one per process, set before any thread begins
    wanted = environment.get(VARIABLE)
    if not wanted:
        return None
    if environment.get(TESTING) != "yes":
        return f"{VARIABLE} is ignored: only tests may make the node fail"
    _armed = _in_file(Path(wanted[1:])) if wanted.startswith("@") else _counted(wanted)
    return None


def _counted(wanted: str) -> Callable[[str], None]:
    """Of ``step:n:action``."""
    name, number, action = wanted.split(":")
    _check(name, action)
    lock, left = threading.Lock(), int(number)

    def at(here: str) -> None:
        nonlocal left
        if here != name:
            return
        with lock:
            left -= 1
            hit = left == 0
        if hit:
            _act(action)

    return at


def _in_file(orders: Path) -> Callable[[str], None]:
    """Of a file that holds ``step:action``, for whoever comes first."""

    def at(here: str) -> None:
        try:
            name, _, action = orders.read_text().partition(":")
            if here != name:
                return
            orders.unlink()
        except OSError:  # there is none, or another process took it
            return
        _act(action)

    return at


def _check(name: str, action: str) -> None:
    if name not in STEPS:
        raise ValueError(f"{VARIABLE}: no step {name!r}; there are {', '.join(STEPS)}")
    known = {"kill", "stop", "raise"} | set(errno.errorcode.values())
    if action not in known and not action.startswith("sleep="):
        raise ValueError(f"{VARIABLE}: no action {action!r}")


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("sleep="):
        time.sleep(float(action.removeprefix("sleep=")))
    elif action == "raise":
        raise RuntimeError("a fault that a test wanted")
    else:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))
