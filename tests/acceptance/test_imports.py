"""Only the workers load torch; the packages with common names are ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import inference
import training
from tests.acceptance.conftest import Hospital
from tests.node import described, maps_torch

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "highdicom")
LOADED_AFTER = """
import json, sys
from dicom_node.cli.main import main
sys.argv = ["dicom-node", *{words}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(name for name in sys.modules if "." not in name)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["studies", "--help"]])
def test_the_command_loads_nothing_heavy_to_explain_itself(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED_AFTER.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(json.loads(done.stderr.splitlines()[-1])) & set(HEAVY) == set()


def test_only_the_child_of_the_worker_that_runs_models_loads_torch(hospital: Hospital) -> None:
    child = hospital.node.worker()
    family = hospital.node.processes()
    assert len(family) >= 7, [described(p) for p in family]
    assert [described(p) for p in family if maps_torch(p) and p.pid != child.pid] == []
    assert "dicom_node.worker.child" in child.cmdline()
    parent = child.parent()
    assert parent is not None and "--queues gpu,any" in " ".join(parent.cmdline())


def test_the_packages_with_common_names_are_ours() -> None:
    for package in (inference, training):
        assert package.__file__ is not None
        assert Path(package.__file__).parents[1] == ROOT
