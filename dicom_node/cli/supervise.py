"""Owns child processes: start them, restart what dies, drain them in order on SIGTERM.

Refuses to know what they do. Each child is a process group of its own, so that Ctrl-C reaches the
supervisor alone; and each is told to die with the supervisor (Linux), so that none is left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from dicom_node.services.children import die_with_parent

log = structlog.get_logger(__name__)

PATIENCE = 30.0
"""Seconds that a child may take to drain; a group that takes longer is killed."""
FIRST_WAIT, LONGEST_WAIT, STEADY = 0.5, 30.0, 60.0
"""Seconds before a restart: doubled each time, from the first again after a steady run."""


@dataclass
class Child:
    """One supervised process.

    Attributes:
        name: for logs.
        command: what to run.
        inherit: file descriptors to pass on.
        environment: on top of ours.
    """

    name: str
    command: Sequence[str]
    inherit: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    wait: float = FIRST_WAIT

    def start(self) -> None:
        """Start or restart it."""
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            pass_fds=self.inherit,
            env={**os.environ, **self.environment},
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that can lock
        )

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to it, or to all of its group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)


def supervise(children: Sequence[Child], stop: threading.Event, tick: float = 0.2) -> None:
    """Run the children until ``stop``; then drain them in the order given, the last one last.

    Args:
        children: started in reverse order, so that what others need comes last and leaves last.
        stop: set by a signal handler.
        tick: seconds between two looks.
    """
    try:
        for child in reversed(children):
            child.start()
            log.info("started", child=child.name, pid=child.process.pid if child.process else None)
        while not stop.wait(tick):
            for child in children:
                _look_after(child)
    finally:
        for child in children:
            _drain(child)


def on_signals(stop: Callable[[], None]) -> None:
    """Call ``stop`` on SIGTERM and SIGINT; a second SIGINT ends at once."""

    def handle(number: int, _frame: object) -> None:
        stop()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _look_after(child: Child) -> None:
    now = time.monotonic()
    if child.process is None:
        if now >= child.restart_at:
            child.start()
            log.warning("restarted", child=child.name)
    elif (code := child.process.poll()) is not None:
        if now - child.started_at > STEADY:
            child.wait = FIRST_WAIT
        log.error("died", child=child.name, code=code, again_in=child.wait)
        child.signal(signal.SIGKILL, group=True)  # what it may have left behind
        child.process, child.restart_at = None, now + child.wait
        child.wait = min(child.wait * 2, LONGEST_WAIT)


def _drain(child: Child) -> None:
    if child.process is None:
        return
    child.signal(signal.SIGTERM)
    try:
        child.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        log.error("did not drain, killed", child=child.name, after=PATIENCE)
    child.signal(signal.SIGKILL, group=True)
    child.process.wait()
