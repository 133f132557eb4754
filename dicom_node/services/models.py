"""Owns the models that the node may run: adding a verified bundle, changing its state.

A bundle is verified twice: here, golden example included, in a child process that loads torch, and
again by the worker, on the bytes that it loads. Nothing of one is loaded before somebody whom the
settings name answers for it (``services.trust``). Refuses to know networks.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

import dicom_node
from dicom_node.domain.job import JobState, after
from dicom_node.domain.model import ModelState, check_transition
from dicom_node.errors import ConfigurationError, NotFound
from dicom_node.services import trust
from dicom_node.services.context import Node
from dicom_node.store.tables import Job, Model
from inference.bundle import SIGNATURE_NAME, Bundle, open_bundle
from inference.errors import BundleError

SHIPPED = Path(dicom_node.__file__).parent / "bundles"
"""The bundles that come with the package."""
CHECK_SECONDS = 600
"""How long the check of all bundles that are added at once may take."""


def bundle_folder(node: Node, digest: str) -> Path:
    """Where the node keeps a bundle."""
    return node.settings.storage.folder / "bundles" / digest


def open_trusted(node: Node, digest: str) -> tuple[Bundle, trust.Trust]:
    """A kept bundle, every file of it verified, and who answers for it now.

    Raises:
        BundleError: it is missing, altered, not the one that was added, or no longer trusted.
    """
    bundle = open_bundle(bundle_folder(node, digest))
    if bundle.digest != digest:
        raise BundleError("manifest.json: altered since the model was added")
    return bundle, trust.check(bundle, node.settings.models)


def open_to_sign(path: Path) -> Bundle:
    """A bundle's folder, verified: nobody shall answer for one that no node would load.

    Raises:
        ConfigurationError: it is none, or a zip.
    """
    if not path.is_dir():
        raise ConfigurationError(f"{path}: sign the bundle's folder, then make a zip of it")
    try:
        return open_bundle(path)
    except BundleError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def add_model(node: Node, path: Path) -> dict[str, Any]:
    """Verify a bundle, keep a copy, and enter it as staged; see `add_models`."""
    return add_models(node, [path])[0]


def add_models(node: Node, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Verify bundles, keep copies, and enter them as staged.

    Args:
        paths: their folders or zips; one child process checks them all.

    Returns:
        For each its name, version, digest, who answers for it, and the largest difference from
        the golden example.

    Raises:
        ConfigurationError: a bundle is refused, with the reason; then none is added.
    """
    parent = bundle_folder(node, "")
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix="adding-") as waiting:
        bundles = [_copy(path, Path(waiting) / str(n)) for n, path in enumerate(paths)]
        try:
            trusted = [trust.check(bundle, node.settings.models) for bundle in bundles]
            checks = verify([bundle.path for bundle in bundles])
        except BundleError as error:
            raise ConfigurationError(str(error)) from error
        # Entered all or none, and before they are kept: a refused bundle leaves nothing behind.
        with node.database.transaction() as session:
            for bundle in bundles:
                _enter(session, bundle, node.now())
            for n, bundle in enumerate(bundles):
                _keep(bundle, bundle_folder(node, bundle.digest), Path(waiting) / f"old-{n}")
    return [
        {
            "name": bundle.manifest.name,
            "version": bundle.manifest.version,
            "digest": bundle.digest,
            "trust": why.words,
            **check,
        }
        for bundle, why, check in zip(bundles, trusted, checks, strict=True)
    ]


def verify(paths: Sequence[Path], device: str = "cpu") -> list[dict[str, Any]]:
    """Load bundles and run their golden examples in a child process, so that we load no torch.

    Raises:
        BundleError: one cannot be loaded, computes something else than it says, or takes too long.
    """
    command = [sys.executable, "-m", "dicom_node.worker.verify", device, *map(str, paths)]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"the check was not done after {CHECK_SECONDS:g} s: try again when the machine is less "
            "busy, one bundle at a time"
        ) from None
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines()
        raise BundleError(lines[-1] if lines else f"the check ended with {child.returncode}")
    return [json.loads(line) for line in child.stdout.splitlines()[-len(paths) :]]


def _copy(path: Path, waiting: Path) -> Bundle:
    """A private copy, opened: what is verified is what is kept."""
    try:
        if path.is_dir():
            open_bundle(path)  # refuse before copying
            shutil.copytree(path, waiting)
            return open_bundle(waiting)
        return open_bundle(path, unpack_to=waiting)
    except BundleError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def set_state(node: Node, name: str, state: ModelState) -> None:
    """Move a version to another state; an activated one retires the active one of its name.

    A version that is retired by hand has its waiting jobs cancelled: it may have been found wrong.
    One that only gave way to its successor still runs what was planned for it.

    Args:
        name: ``name@version``, or a name where there is one version only.

    Raises:
        NotFound: no such version.
        InvalidTransition: the table of ``domain.model`` has no such step.
    """
    with node.database.transaction() as session:
        row = find(session, name)
        check_transition(f"{row.name}@{row.version}", ModelState(row.state), state)
        if state is ModelState.ACTIVE:
            others = session.scalars(
                select(Model).where(Model.name == row.name, Model.state == ModelState.ACTIVE)
            )
            for other in others:
                other.state = ModelState.RETIRED
        if state is ModelState.RETIRED:
            waiting = select(Job).where(Job.model_id == row.id, Job.state == JobState.READY)
            for job in session.scalars(waiting.with_for_update()):
                job.state = after("cancel", str(job.id), JobState(job.state))
                job.finished_at, job.error = node.now(), "its model was retired"
        row.state = state


def list_models(node: Node) -> list[dict[str, Any]]:
    """All versions, by name and version."""
    with node.database.reading() as session:
        rows = session.scalars(select(Model).order_by(Model.name, Model.id)).all()
    return [_told(row) for row in rows]


def show_model(node: Node, name: str) -> dict[str, Any]:
    """One version with its manifest and card, and whether and why it is trusted now."""
    with node.database.reading() as session:
        row = find(session, name)
    folder = bundle_folder(node, row.digest)
    try:
        words, trusted = open_trusted(node, row.digest)[1].words, True
    except BundleError as error:
        words, trusted = str(error), False
    try:
        card = (folder / "card.md").read_text(encoding="utf-8")
    except OSError:
        card = "the bundle's files are missing; add it again"
    about = {"trusted": trusted, "trust": words}
    return {**_told(row), **about, "manifest": row.manifest, "card": card}


def find(session: Session, name: str) -> Model:
    """A version by ``name@version``, or by its name where that is enough."""
    plain, _, version = name.partition("@")
    query = select(Model).where(Model.name == plain)
    if version:
        query = query.where(Model.version == version)
    rows = session.scalars(query).all()
    if not rows:
        raise NotFound("model", name)
    if len(rows) > 1:
        versions = ", ".join(f"{row.name}@{row.version}" for row in rows)
        raise ConfigurationError(f"model {name!r} has several versions: {versions}")
    return rows[0]


def _keep(bundle: Bundle, folder: Path, aside: Path) -> None:
    """Put it in its place, unless it lies there whole; what was altered there goes aside.

    A signature takes the place of the one that is there: another key may answer for it now.
    """
    try:
        open_bundle(folder)
    except BundleError:
        if folder.exists():
            folder.rename(aside)
        bundle.path.rename(folder)
    else:
        if (signature := bundle.path / SIGNATURE_NAME).exists():
            signature.replace(folder / SIGNATURE_NAME)


def _enter(session: Session, bundle: Bundle, now: datetime) -> None:
    manifest = bundle.manifest
    row = session.scalar(
        select(Model).where(Model.name == manifest.name, Model.version == manifest.version)
    )
    if row is not None and row.digest != bundle.digest:
        raise ConfigurationError(
            f"{manifest.name}@{manifest.version} is known with other content; "
            "a changed model needs a new version"
        )
    if row is None:
        session.add(
            Model(
                name=manifest.name,
                version=manifest.version,
                state=ModelState.STAGED,
                digest=bundle.digest,
                manifest=manifest.model_dump(mode="json"),
                added_at=now,
            )
        )


def _told(row: Model) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "state": row.state,
        "title": row.manifest["title"],
        "task": row.manifest["task"],
        "digest": row.digest,
        "added_at": row.added_at,
    }
