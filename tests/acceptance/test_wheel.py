"""The wheel, installed where no checkout is: migrations, bundles and the demo come with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("dicom_node", "inference", "training", "migrations")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "."], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; what it depends on is borrowed from ours."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], home
    )
    (packages,) = (home / "venv").glob("lib/python*/site-packages")
    # After the installation: pip must not find our own copy there. A line of a .pth file adds a
    # folder, and does not run the .pth files in it, so the editable checkout stays out.
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return home


def run(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run to its end, outside the checkout and without what points into it."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("DICOM_NODE_") and k not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**kept, **variables},
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done


def test_the_wheel_holds_all_that_is_no_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    source = wheel.parents[1]
    wanted = [
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and path.parent.name != "reports"  # documents, for who reads the source
    ]
    assert any(name.endswith("weights.safetensors") for name in wanted)
    assert sorted(set(wanted) - set(names)) == []


def test_everything_imported_comes_from_the_wheel(installed: Path) -> None:
    told = run(
        [
            installed / "venv" / "bin" / "python",
            "-c",
            "import json, dicom_node as d, inference as i, training as t, migrations as m;"
            "print(json.dumps([package.__file__ for package in (d, i, t, m)]))",
        ],
        installed,
    )
    for file in json.loads(told.stdout):
        assert Path(file).is_relative_to(installed / "venv"), file


def test_a_database_is_made_from_the_migrations_in_the_wheel(installed: Path) -> None:
    command = installed / "venv" / "bin" / "dicom-node"
    folder = str(installed / "data")
    told = run([command, "db", "upgrade", "--json"], installed, DICOM_NODE_STORAGE__FOLDER=folder)
    revisions = json.loads(told.stdout)
    assert revisions["before"] is None
    assert revisions["after"]
    assert (installed / "data" / "node.sqlite").is_file()


def test_the_demo_runs_from_the_wheel(installed: Path) -> None:
    command = installed / "venv" / "bin" / "dicom-node"
    told: list[dict[str, Any]] = json.loads(run([command, "demo", "--json"], installed).stdout)
    assert [row["modality"] for row in told] == ["DX", "CT"]
    for row in told:
        assert row["found"], row
        for kind in ("report", "segmentation", "pictures"):
            assert row[kind]
            assert all((installed / path).is_file() for path in row[kind])
