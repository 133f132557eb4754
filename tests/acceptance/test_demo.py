"""The demo measures what was drawn, and leaves nothing running however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest

from tests.node import COMMAND, described, tree
from tests.servers import eventually

pytestmark = pytest.mark.slow


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running demo; at the end none of its processes and sockets may be left."""
    process = subprocess.Popen(
        [COMMAND, "demo", "--output", str(folder), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")},
        cwd=folder.parent,
        process_group=0,
    )
    family: dict[int, psutil.Process] = {}
    try:
        yield process
        family |= {p.pid: p for p in tree(process.pid)}
        process.wait(200)
        _, left = psutil.wait_procs(list(family.values()), timeout=5)
        assert not left, [described(p) for p in left]
        assert mentioning(folder) == []
        assert not [path for path in folder.rglob("*") if path.is_socket()]
    finally:
        for running in [*tree(process.pid), *mentioning(folder)]:
            running.kill()
        process.wait()


def mentioning(folder: Path) -> list[psutil.Process]:
    """Processes that know this folder: by their command line or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(folder) in word for word in words):
            found.append(process)
    return found


def told(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What a whole run says."""
    with demo(folder, "--json", *options) as process:
        out, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    answer: list[dict[str, Any]] = json.loads(out)
    return answer


def area(row: dict[str, Any], side: str) -> float:
    """In square centimetres, read from the sentences, which come from the delivered report."""
    (line,) = [line for line in row["found"] if "lung" in line.lower() and side in line.lower()]
    found = re.search(r"area ([0-9.e+]+) (mm²|cm²)", line)
    assert found, line
    return float(found[1]) * (0.01 if found[2] == "mm²" else 1)


def test_the_numbers_follow_what_is_drawn(tmp_path: Path) -> None:
    whole = told(tmp_path / "whole")
    smaller = told(tmp_path / "smaller", "--left-lung", "0.6")
    before, after = (
        {side: area(r[0], side) for side in ("left", "right")} for r in (whole, smaller)
    )
    assert 100 < before["left"] < 400
    assert after["left"] < 0.75 * before["left"]
    assert after["right"] == pytest.approx(before["right"], rel=0.1)

    for row in (*whole, *smaller):
        assert row["seconds"] > 0
        (report,), (segmentation,) = row["report"], row["segmentation"]
        assert pydicom.dcmread(report).Modality == "SR"
        assert pydicom.dcmread(segmentation).Modality == "SEG"
        assert all(Path(picture).read_bytes()[1:4] == b"PNG" for picture in row["pictures"])


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, sign: signal.Signals) -> None:
    folder = tmp_path / "demo"
    with demo(folder) as process:
        eventually(lambda: len(tree(process.pid)) >= 7, 60, "a node and a PACS are running")
        family = tree(process.pid)
        process.send_signal(sign)
        process.wait(120)
        if sign == signal.SIGKILL:  # its children notice by themselves, and drain
            _, left = psutil.wait_procs(family, timeout=90)
            assert not left, [described(p) for p in left]
            return
    assert process.returncode in (130, -signal.SIGINT)


def test_a_demo_that_fails_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with demo(tmp_path / "demo", "--study", str(tmp_path / "empty")) as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "no DICOM files in" in errors
    assert "Traceback" not in errors
