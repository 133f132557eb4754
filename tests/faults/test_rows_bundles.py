"""Row 27 of the fault matrix: tampered bundles, pickles in disguise. Refused, and no job runs."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.services import models, registry, trust
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.infer import run_jobs
from dicom_node.services.models import add_model, bundle_folder
from dicom_node.settings import ModelSettings
from dicom_node.store.tables import Alert, Job, Model, Result
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle, read_file, write_bundle
from tests.arrivals import arrive, count, one
from tests.bundles import KEY, TRUST, signed
from tests.bundles import OTHER_KEY as OTHER
from tests.dicoms import dx_image
from tests.nodes import add_bundle, route


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def weights_replaced(bundle: Bundle, folder: Path, weights: bytes) -> Bundle:
    """Another bundle whose manifest lists these bytes as its weights, signed by the tests' key."""
    manifest = bundle.manifest.model_dump(mode="json", exclude={"files"})
    files = {name: read_file(bundle, name) for name in bundle.manifest.files}
    write_bundle(folder, manifest, {**files, "weights.safetensors": weights})
    return signed(folder)


def other_weights(bundle: Bundle) -> bytes:
    """As good as its own, which would run."""
    weights = bytearray(read_file(bundle, "weights.safetensors"))
    weights[-1] ^= 1
    return bytes(weights)


def under(node: Node, **settings: Any) -> Node:
    """The same node, as a process sees it that was started with other keys."""
    keys = ModelSettings(**{**TRUST, **settings})
    return replace(node, settings=node.settings.model_copy(update={"models": keys}))


@contextmanager
def waiting_job(node: Node, bundle: Bundle, tmp_path: Path) -> Iterator[Job]:
    """A ready job of an active model, which must still be ready at the end, with no result."""
    add_bundle(node, bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    route(node)
    arrive(node, dx_image())
    assert close_studies(node) == 1
    yield one(node, Job)
    job = one(node, Job)
    assert (job.state, job.attempts, count(node, Result)) == ("ready", 0, 0)
    assert one(node, Alert).kind == "model not loadable"


def test_row_27_an_unsigned_bundle_is_refused_before_anything_of_it_is_loaded(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "verify", lambda _: pytest.fail("it was loaded"))
    folder = shutil.copytree(tiny_bundle.path, tmp_path / "unsigned")
    (folder / "manifest.sig").unlink()
    with pytest.raises(ConfigurationError, match="not signed"):
        add_model(sqlite_node, folder)
    with pytest.raises(ConfigurationError, match="not among models"):
        add_model(under(sqlite_node, trusted_keys=()), tiny_bundle.path)
    with pytest.raises(ConfigurationError, match="revoked"):
        add_model(under(sqlite_node, revoked_keys=TRUST["trusted_keys"]), tiny_bundle.path)
    assert count(sqlite_node, Model) == 0
    assert list(bundle_folder(sqlite_node, "").iterdir()) == []


def test_row_27_a_pickle_in_disguise_is_refused_and_not_unpickled(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Signed, with every digest in order: still nothing of it is executed."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    disguised = weights_replaced(tiny_bundle, tmp_path / "disguised", bomb)
    with pytest.raises(ConfigurationError, match=r"weights\.safetensors: no safetensors"):
        add_model(sqlite_node, disguised.path)
    assert count(sqlite_node, Model) == 0
    assert not (tmp_path / "exploded").exists()


def test_row_27_weights_altered_after_they_were_added_run_no_job(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with waiting_job(sqlite_node, tiny_bundle, tmp_path):
        path = bundle_folder(sqlite_node, tiny_bundle.digest) / "weights.safetensors"
        path.write_bytes(other_weights(tiny_bundle))
        assert run_jobs(sqlite_node, WarmEngines(sqlite_node), ("any",)) == 1


def test_row_27_a_key_revoked_since_runs_no_job_and_a_new_signature_lets_it_run(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, clock: Any, monkeypatch: Any
) -> None:
    node = under(sqlite_node, revoked_keys=TRUST["trusted_keys"])
    with waiting_job(node, tiny_bundle, tmp_path):
        assert run_jobs(node, WarmEngines(node), ("any",)) == 1
    told = models.show_model(node, "tiny")
    assert (told["trusted"], "revoked" in told["trust"]) == (False, True)

    again = shutil.copytree(tiny_bundle.path, tmp_path / "again")
    signed(again, OTHER)
    monkeypatch.setattr(models, "verify", lambda paths: [{} for _ in paths])
    mended = under(node, trusted_keys=[trust.setting("other", OTHER)])
    add_model(mended, again)
    clock.pass_(61)
    assert run_jobs(mended, WarmEngines(mended), ("any",)) == 1
    assert one(node, Job).state == "done"
    assert models.show_model(mended, "tiny")["trust"].startswith("signed by other")


def test_row_27_what_is_swapped_between_check_and_load_is_not_loaded(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that are hashed are the bytes that are loaded."""
    other = weights_replaced(tiny_bundle, tmp_path / "other", other_weights(tiny_bundle))
    check = trust.check

    def then_swapped(bundle: Bundle, settings: ModelSettings) -> trust.Trust:
        found = check(bundle, settings)
        for name in ("weights.safetensors", "manifest.json", "manifest.sig"):
            shutil.copy(other.path / name, bundle.path / name)
        return found

    with waiting_job(sqlite_node, tiny_bundle, tmp_path):
        monkeypatch.setattr(trust, "check", then_swapped)
        assert run_jobs(sqlite_node, WarmEngines(sqlite_node), ("any",)) == 1


def test_row_27_another_bundle_in_the_place_of_one_that_was_added_runs_no_job(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Signed by a trusted key, and still not what was added under this digest."""
    other = weights_replaced(tiny_bundle, tmp_path / "other", other_weights(tiny_bundle))
    trust.sign(other, KEY)
    with waiting_job(sqlite_node, tiny_bundle, tmp_path):
        folder = bundle_folder(sqlite_node, tiny_bundle.digest)
        shutil.rmtree(folder)
        shutil.copytree(other.path, folder)
        assert run_jobs(sqlite_node, WarmEngines(sqlite_node), ("any",)) == 1
