"""Owns the pictures of a job's input where pages are made after the job, decoded in a child.

Who delivers makes pages too, and no codec may hang or end it: ``python -m
dicom_node.services.pictures MIB`` reads the images, and may be killed. Its first line of stdin
names the files, each further one a frame and its window, as JSON; it answers each with one byte,
the samples of a pixel, and the picture's bytes, or with `CANNOT` and a reason.
Refuses to know rows, and what is drawn over a picture.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Timer

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ResultError, Unavailable
from dicom_node.results.types import Picture, Source
from dicom_node.services.children import confine, die_with_parent, why_ended
from dicom_node.settings import WorkerSettings
from inference.display import Window, shown, window_of
from inference.errors import ReadingError
from inference.reading import read_files

CHILD = (sys.executable, "-m", "dicom_node.services.pictures")
PATIENCE = 120.0
"""Seconds for all pages of a job, where ``worker.job_deadline`` is no less: a delivery waits."""

CANNOT = b"!"


def window(source: Source, frame: int) -> Window | None:
    """How a frame of the input wants to be seen."""
    ref = source.frames[frame]
    return window_of(source.by_uid[ref.sop_instance_uid], ref.frame)


@contextmanager
def pictures(limits: WorkerSettings, source: Source, files: Sequence[Path]) -> Iterator[Picture]:
    """Frames as people see them; the child starts when the first is asked for.

    Args:
        limits: what a job may take.
        source: the input's headers.
        files: the input.

    Raises:
        ResultError: (by the picture) the images cannot be read.
        Unavailable: (by the picture) its process died or was killed.
    """
    with ExitStack() as stack:
        start = cache(lambda: stack.enter_context(_child(limits, files)))
        yield lambda frame: start().picture(source, frame)


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        assert process.stdin and process.stdout  # noqa: S101 - narrows: pipes, as asked for
        self._process, self._seconds, self._late = process, seconds, Event()
        self._in, self._out = process.stdin, process.stdout
        self.timer = Timer(seconds, self._end)

    def _end(self) -> None:
        self._late.set()
        self._process.kill()

    def picture(self, source: Source, frame: int) -> NDArray[np.uint8]:
        self.tell([frame, window(source, frame)])
        samples = self._out.read(1)
        if samples == CANNOT:
            reason = self._out.readline(300).decode(errors="replace").strip()
            raise ResultError(f"the images cannot be read: {reason}")
        header = source.by_uid[source.frames[frame].sop_instance_uid]
        shape = (int(header.Rows), int(header.Columns), *((3,) if samples == b"3" else ()))
        data = self._out.read(math.prod(shape)) if samples else b""
        if len(data) < math.prod(shape):
            self._process.kill()  # it has ended, or says what it should not
            ended = why_ended(self._process.wait())
            late = f"they took over {self._seconds:g} s"
            raise Unavailable(f"its images were not read: {late if self._late.is_set() else ended}")
        return np.frombuffer(data, np.uint8).reshape(shape)

    def tell(self, line: object) -> None:
        with suppress(BrokenPipeError):  # then no answer comes either
            self._in.write(json.dumps(line).encode() + b"\n")
            self._in.flush()


@contextmanager
def _child(limits: WorkerSettings, files: Sequence[Path]) -> Iterator[_Child]:
    process = subprocess.Popen(
        [*CHILD, str(limits.memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what a library says may quote a header
    )
    child = _Child(process, min(PATIENCE, limits.job_deadline))
    child.timer.start()
    try:
        child.tell([str(file) for file in files])
        yield child
    finally:
        child.timer.cancel()
        process.kill()
        with suppress(BrokenPipeError), process:  # closes the pipes, waits
            pass


def main(mib: str) -> None:
    """In the child."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    die_with_parent(signal.SIGKILL)
    confine(int(mib) << 20)
    files = json.loads(sys.stdin.readline())
    try:
        stack = read_files(map(Path, files))
    except ReadingError as error:
        answers.write(CANNOT + error.reason.encode() + b"\n")
        answers.flush()
        return
    for line in sys.stdin:
        frame, told = json.loads(line)
        picture = shown(stack, frame, told and (told[0], told[1]))
        answers.write((b"3" if picture.ndim == 3 else b"1") + picture.tobytes())
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
