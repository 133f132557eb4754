"""A node with one tiny model, one rule that wants everything, and a folder for the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.services.context import Node
from dicom_node.services.registry import add_destination
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from tests.bundles import make_tiny_bundle
from tests.nodes import Clock, add_bundle, make_node, route


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock, tiny: Bundle) -> Node:
    node = make_node(tmp_path / "node", clock)
    add_bundle(node, tiny)
    add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    route(node)
    return node


@pytest.fixture
def engines(node: Node) -> WarmEngines:
    return WarmEngines(node)
