"""Owns the child in which jobs run: starts it, watches it, ends it, and fails what it held.

The child is started as a new program and never forked with torch in memory. It reads the job
from the database and writes its results itself, so that no pixel and no object passes between the
two; what the child answers is a line of text. Refuses to know images and models.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from dicom_node.services import claims
from dicom_node.services.children import die_with_parent, why_ended
from dicom_node.services.context import Node
from dicom_node.services.infer import break_off
from dicom_node.services.processes import beating
from dicom_node.worker.child import LATER

CHILD = (sys.executable, "-m", "dicom_node.worker.child")
LOOK = 0.05
"""Seconds between two looks at the child's memory: it can grow by some 100 MiB between them."""

GRACE = 2.0
"""Seconds for a child to tell where it hangs, or to end when asked."""

log = structlog.get_logger(__name__)


class Ended(Exception):
    """The child is gone, or its run broke off; the message is the reason for its jobs."""


class Confined:
    """One child at a time, started when first needed and after each end.

    Args:
        node: whose jobs run; the child claims them in this process's name.
        command: of the child, to which the owner is added.
    """

    def __init__(self, node: Node, command: Sequence[str] = CHILD) -> None:
        self._node, self._command = node, command
        self._child: subprocess.Popen[str] | None = None

    def run(self, queues: Sequence[str]) -> int:
        """Let the child claim and run a batch; beats for its jobs meanwhile.

        Returns:
            How many jobs ran or failed; 0 when nothing was ready.
        """
        node = self._node
        # Only a run that could not even be recorded as broken off leaves anything here.
        break_off(node, "its run broke off")
        with beating(lambda: claims.beat_owned(node), node.settings.worker.lease / 4):
            try:
                answer = self._ask(" ".join(queues))
                if answer.isdecimal():
                    return int(answer)
                reason = answer[:200]
            except Ended as ended:
                reason = str(ended)
            log.error("run broken off", reason=reason)
            counts = not reason.startswith(LATER)
            return break_off(node, reason.removeprefix(LATER), counts)

    def close(self) -> None:
        """Let the child go; it has nothing to do."""
        if self._child is not None and self._child.stdin is not None:
            _close(self._child.stdin)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE)
            self._end()

    def _ask(self, line: str) -> str:
        if self._child is None or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [*self._command, self._node.id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=partial(die_with_parent, signal.SIGKILL),  # noqa: PLW1509 - one prctl call, nothing that can lock
            )
            self._answer(self._child)  # that it is ready
        child = self._child
        if child.stdin is None:
            raise Ended("its process has no way in")
        with suppress(BrokenPipeError):  # then no answer comes either
            child.stdin.write(line + "\n")
            child.stdin.flush()
        return self._answer(child)

    def _answer(self, child: subprocess.Popen[str]) -> str:
        """One line, waited for while the child keeps its limits.

        Raises:
            Ended: it did not, or died.
        """
        worker = self._node.settings.worker
        until = time.monotonic() + worker.job_deadline
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type] # a pipe, as asked for
            while not selector.select(LOOK):
                if _memory(child.pid) > worker.memory_mb << 20:
                    self._end()
                    raise Ended(f"needed more than {worker.memory_mb} MiB (worker.memory_mb)")
                if time.monotonic() > until:
                    child.send_signal(signal.SIGABRT)  # it writes where it hangs, if it can
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(GRACE)
                    self._end()
                    raise Ended(f"ran for over {worker.job_deadline:g} s (worker.job_deadline)")
        line = child.stdout.readline()  # type: ignore[union-attr] # as above
        if not line.endswith("\n"):
            raise Ended(why_ended(self._end()))
        return line.strip()

    def _end(self) -> int:
        """Kill the child, unless it has ended; its exit status."""
        child, self._child = self._child, None
        if child is None:
            return 0
        child.kill()
        if child.stdin is not None:
            _close(child.stdin)
        with child:  # closes the other pipe, waits
            pass
        return child.returncode


def _close(pipe: IO[str]) -> None:
    with suppress(BrokenPipeError):  # it holds what the child no longer heard
        pipe.close()


def _memory(pid: int) -> int:
    """Bytes that a process holds for itself alone (proc(5), statm); 0 where nobody tells."""
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
