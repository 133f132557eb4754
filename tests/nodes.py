"""A node in a temporary folder, on SQLite, moved by calling its real services; no network.

node = make_node(tmp_path, clock)
store(node, [dx_image()])    # as one association of a modality would
clock.pass_(60)
settle(node, engines)        # close, run, deliver, until nothing is left to do
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.errors import RefusedInstance
from dicom_node.services import receive, registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.infer import Engines, run_jobs
from dicom_node.services.models import bundle_folder
from dicom_node.services.processes import register
from dicom_node.settings import Settings
from dicom_node.store.migrate import upgrade
from dicom_node.store.tables import Model
from inference.bundle import Bundle
from tests.bundles import TRUST


class Clock:
    """Starts at the real time and stands until it is moved on."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def make_node(folder: Path, clock: Clock | None = None, **sections: Any) -> Node:
    """A node with an empty database of the right revision."""
    given = {"storage": {"folder": folder}, "node_salt": "tests", "models": TRUST}
    settings = Settings(**{**given, **sections})
    node = Node.open(settings, "test", clock or Clock())
    upgrade(node.database)
    register(node)  # associations belong to a process
    return node


def store(
    node: Node, datasets: Sequence[Dataset], calling: str = "CT1", close: bool = True
) -> list[str]:
    """Receive data sets on one association; the refusals' reasons."""
    association = receive.open_association(node, calling, "DICOMNODE", "127.0.0.1")
    refused = []
    for dataset in datasets:
        stream = DicomBytesIO()
        syntax = dataset.file_meta.TransferSyntaxUID
        stream.is_implicit_VR, stream.is_little_endian = syntax.is_implicit_VR, True
        write_dataset(stream, dataset)
        reception = receive.Reception(
            stream.getvalue(),
            str(syntax),
            str(dataset.SOPClassUID),
            str(dataset.SOPInstanceUID),
            association,
        )
        try:
            receive.receive_instance(node, reception)
        except RefusedInstance as error:
            refused.append(error.reason)
    if close:
        receive.close_association(node, association, aborted=False)
    return refused


def add_bundle(node: Node, bundle: Bundle, state: ModelState = ModelState.ACTIVE) -> str:
    """Enter a bundle without the check in a child process; its ``name@version``."""
    shutil.copytree(bundle.path, bundle_folder(node, bundle.digest))
    manifest = bundle.manifest
    with node.database.transaction() as session:
        session.add(
            Model(
                name=manifest.name,
                version=manifest.version,
                state=state,
                digest=bundle.digest,
                manifest=manifest.model_dump(mode="json"),
                added_at=node.now(),
            )
        )
    return f"{manifest.name}@{manifest.version}"


def route(node: Node, name: str = "all", **rule: Any) -> None:
    """Put one rule in force."""
    written = {"name": name, "models": ["tiny"], "destinations": ["out"], **rule}
    registry.apply_rules(node, parse_rules({"rule": [written]}))


def settle(node: Node, engines: Engines) -> None:
    """What scheduler and workers do, once."""
    close_studies(node)
    while run_jobs(node, engines, ("any", "gpu")):
        pass
    deliver(node)
