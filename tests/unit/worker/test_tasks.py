"""What a worker's process promises whatever its job does."""

from __future__ import annotations

import subprocess
import sys
import time

HANG = """
import ctypes
from dicom_node.worker.tasks import _deadline
with _deadline(0.5):
    ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock, as a hanging extension does
"""


def test_a_job_that_hangs_with_the_interpreter_lock_ends_its_process() -> None:
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", HANG], capture_output=True, check=False)
    assert ended.returncode == 1
    assert b"Timeout" in ended.stderr
    assert time.monotonic() - started < 30
