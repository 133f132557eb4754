"""Finds the shared data that is not part of the repository, or skips with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("DICOM_NODE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


def shared(*parts: str) -> Path:
    """The path of a file or folder of the shared data; skips the test where it is absent."""
    path = ROOT.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"shared data absent: {'/'.join(parts)} (DICOM_NODE_DATA names the folder)")
    return path.resolve()
