"""A result that is built again is the same to the byte: another process, hash seed, clock, locale.

A job that dies after it has built and before it is recorded runs again elsewhere; what was sent
already must not get a twin (`dicom_node.results.identity`).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.domain.profile import Compression, Document, Encoding, ScForm, SegForm, SrForm
from tests.judges.exhibits import apart, made, predicted, source_of

ROOT = Path(__file__).parents[2]
FORMS = (
    SegForm(),
    SegForm(compression=Compression.JPEG2000),
    SegForm(Encoding.FRACTIONAL, Compression.RLE),
    SegForm(Encoding.LABELMAP),
    SrForm(),
    SrForm(Document.ENHANCED),
    ScForm(),
)
AGAIN = """
import hashlib, json, pathlib, pickle, sys
from tests.judges.exhibits import made
prediction, source, stack, forms = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
files, _ = made(prediction, source, stack, forms)
print(json.dumps({form: hashlib.sha256(data).hexdigest() for form, data in files.items()}))
"""
ELSEWHERE = {
    "Tokyo": {"PYTHONHASHSEED": "0", "TZ": "Asia/Tokyo", "LANG": "C", "LC_ALL": "C"},
    "Istanbul": {
        "PYTHONHASHSEED": "4711",
        "TZ": "America/St_Johns",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "PYTHONUTF8": "0",
    },
}


@pytest.mark.parametrize("name", ["MR", "DX"])
def test_another_process_builds_the_same_bytes(name: str, tmp_path: Path) -> None:
    source, stack = source_of(name)
    prediction = apart(predicted(stack))
    files, _ = made(prediction, source, stack, FORMS)
    here = {form: hashlib.sha256(data).hexdigest() for form, data in files.items()}
    assert len(here) >= len(FORMS)
    kept = tmp_path / "prediction"
    kept.write_bytes(pickle.dumps((prediction, source, stack, FORMS)))
    for surroundings in ELSEWHERE.values():
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, kept],
            env={**os.environ, **surroundings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == here
