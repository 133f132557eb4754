"""The containers' check, run as a container would run it, against a real node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dicom_node.services.context import Node
from dicom_node.services.processes import bury, registered
from dicom_node.settings import Settings, StorageSettings
from dicom_node.store.migrate import upgrade

HEALTHY = Path(__file__).parents[3] / "deploy/healthy.py"


def make_node(folder: Path) -> Node:
    node = Node.open(Settings(storage=StorageSettings(folder=folder)), "worker")
    upgrade(node.database)
    return node


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    programs = Path(sys.executable).parent
    return subprocess.run(
        [sys.executable, str(HEALTHY)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "DICOM_NODE_STORAGE__FOLDER": str(folder),
        },
    )


def test_a_container_is_healthy_while_a_process_of_it_beats(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with registered(node):
        assert check(tmp_path).returncode == 0


def test_a_container_whose_process_was_buried_is_not_healthy(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with registered(node):
        bury(node, [node.id])
        told = check(tmp_path)
    assert told.returncode == 1
    assert "none beats" in told.stderr


def test_a_database_that_is_away_is_no_reason_to_restart_a_container(tmp_path: Path) -> None:
    told = check(tmp_path)  # nothing was ever made here
    assert told.returncode == 0
    assert "db upgrade" in told.stderr
