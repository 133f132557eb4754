"""Adding bundles as an administrator does, with the check in a child process; and their states."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.errors import ConfigurationError, InvalidTransition, NotFound
from dicom_node.services import models, registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.infer import run_jobs
from dicom_node.services.models import add_model, bundle_folder, set_state
from dicom_node.store.tables import Job, Model, Result
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle, open_bundle
from tests.arrivals import arrive, count, one
from tests.bundles import make_tiny_bundle, signed
from tests.dicoms import dx_image
from tests.nodes import add_bundle


def kept(node: Node) -> list[str]:
    folder = bundle_folder(node, "")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_bundle_is_checked_kept_staged_and_runs_once_active(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    node = sqlite_node
    added = add_model(node, tiny_bundle.path)
    assert (added["name"], added["version"]) == ("tiny", "0.0.1")
    assert added["digest"] == tiny_bundle.digest
    assert kept(node) == [tiny_bundle.digest]
    row = one(node, Model)
    assert (row.state, row.manifest["title"]) == ("staged", "Tiny test model")
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    set_state(node, "tiny", ModelState.ACTIVE)
    arrive(node, dx_image())
    assert close_studies(node) == 1
    assert run_jobs(node, WarmEngines(node), ("any",)) == 1
    assert (one(node, Job).state, count(node, Result)) == ("done", 2)


def test_a_check_that_does_not_end_is_refused_and_says_what_to_do(
    sqlite_node: Node, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "CHECK_SECONDS", 0.1)
    with pytest.raises(ConfigurationError, match=r"not done after 0.1 s: .*one bundle at a time"):
        add_model(sqlite_node, tiny_bundle.path)
    assert (kept(sqlite_node), count(sqlite_node, Model)) == ([], 0)


def test_a_zip_is_as_good_and_adding_again_changes_nothing(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check in a child process has tests of its own.
    monkeypatch.setattr(models, "verify", lambda paths: [{} for _ in paths])
    packed = shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny_bundle.path)
    add_model(sqlite_node, Path(packed))
    set_state(sqlite_node, "tiny", ModelState.ACTIVE)
    add_model(sqlite_node, tiny_bundle.path)
    assert one(sqlite_node, Model).state == "active"
    assert kept(sqlite_node) == [tiny_bundle.digest]


def altered(bundle: Bundle, folder: Path, name: str) -> Path:
    shutil.copytree(bundle.path, folder)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["weights.safetensors", "card.md", "golden_output.safetensors"])
def test_an_altered_bundle_is_refused_and_leaves_nothing(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        add_model(sqlite_node, altered(tiny_bundle, tmp_path / "altered", name))
    assert (count(sqlite_node, Model), kept(sqlite_node)) == (0, [])


def test_a_bundle_that_computes_something_else_than_it_says_is_refused(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Another's golden output, with every digest in order."""
    other = make_tiny_bundle(tmp_path / "other", seed=5)
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_bundle.path, folder)
    shutil.copy(other.path / "golden_output.safetensors", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = sha256((folder / "golden_output.safetensors").read_bytes()).hexdigest()
    manifest["files"]["golden_output.safetensors"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
    signed(folder)
    with pytest.raises(ConfigurationError, match="differs by"):
        add_model(sqlite_node, folder)
    assert (count(sqlite_node, Model), kept(sqlite_node)) == (0, [])


def test_a_zip_that_leads_out_of_its_folder_is_refused(sqlite_node: Node, tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("manifest.json", "{}")
    with pytest.raises(ConfigurationError):
        add_model(sqlite_node, path)
    assert not list(tmp_path.rglob("escaped"))
    assert kept(sqlite_node) == []


def test_a_changed_model_needs_a_new_version(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "verify", lambda paths: [{} for _ in paths])
    add_bundle(sqlite_node, tiny_bundle)
    other = make_tiny_bundle(tmp_path / "other", seed=5)
    with pytest.raises(ConfigurationError, match="a changed model needs a new version"):
        add_model(sqlite_node, other.path)
    assert count(sqlite_node, Model) == 1
    assert kept(sqlite_node) == [tiny_bundle.digest]


def test_an_activated_version_retires_the_one_before(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    add_bundle(sqlite_node, tiny_bundle)
    newer = make_tiny_bundle(tmp_path / "newer", version="0.0.2")
    add_bundle(sqlite_node, newer, ModelState.STAGED)
    with pytest.raises(ConfigurationError, match=r"several versions: tiny@0\.0\.1, tiny@0\.0\.2"):
        set_state(sqlite_node, "tiny", ModelState.ACTIVE)
    set_state(sqlite_node, "tiny@0.0.2", ModelState.ACTIVE)
    states = {row["version"]: row["state"] for row in models.list_models(sqlite_node)}
    assert states == {"0.0.1": "retired", "0.0.2": "active"}
    with pytest.raises(InvalidTransition):
        set_state(sqlite_node, "tiny@0.0.2", ModelState.SHADOW)
    with pytest.raises(NotFound):
        set_state(sqlite_node, "nobody", ModelState.ACTIVE)


def test_a_model_is_shown_with_its_card_while_its_files_are_there(
    sqlite_node: Node, tiny_bundle: Bundle
) -> None:
    add_bundle(sqlite_node, tiny_bundle)
    assert models.show_model(sqlite_node, "tiny")["card"].startswith("# Tiny test model")
    shutil.rmtree(bundle_folder(sqlite_node, tiny_bundle.digest))
    assert "missing" in models.show_model(sqlite_node, "tiny")["card"]


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_bundle_comes_back_when_it_is_added_again(
    sqlite_node: Node, tiny_bundle: Bundle, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "verify", lambda paths: [{} for _ in paths])
    add_bundle(sqlite_node, tiny_bundle)
    folder = bundle_folder(sqlite_node, tiny_bundle.digest)
    if damage == "missing":
        shutil.rmtree(folder)
    else:
        (folder / "weights.safetensors").write_bytes(b"")
    add_model(sqlite_node, tiny_bundle.path)
    assert kept(sqlite_node) == [tiny_bundle.digest]
    open_bundle(folder)
    assert one(sqlite_node, Model).state == "active"


def test_the_services_load_no_torch() -> None:
    script = (
        "import sys, pkgutil, importlib, dicom_node.services as s\n"
        "[importlib.import_module(f'dicom_node.services.{m.name}')"
        " for m in pkgutil.iter_modules(s.__path__)]\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
