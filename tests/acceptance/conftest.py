"""One node for all acceptance tests: shipped models, DCMTK's storescp and Orthanc as the PACS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dicom_node.services.models import SHIPPED
from dicom_node.store.tables import Model
from tests.bundles import make_tiny_bundle
from tests.node import Running, dimse, rule, running
from tests.servers import Orthanc, StoreScp, lacking, orthanc, storescp

DESTINATIONS = ("scp", "orthanc")


@dataclass(frozen=True)
class Hospital:
    """The node between a modality (storescu) and two PACS."""

    node: Running
    scp: StoreScp
    orthanc: Orthanc


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    shipped = [SHIPPED / "cxr-lungs", SHIPPED / "ct-body"]
    if not all((bundle / "manifest.json").is_file() for bundle in shipped):
        lacking("the shipped bundles are not in this checkout")
    folder = tmp_path_factory.mktemp("hospital")
    select = {"unit": "image", "modality": ["MG"]}
    lost = make_tiny_bundle(folder / "lost", "lost", select=select).path
    with (
        storescp(folder) as scp,
        orthanc(folder) as archive,
        running(
            folder / "node",
            models=[*shipped, lost],
            destinations={"scp": dimse(scp), "orthanc": dimse(archive)},
            rules=[
                rule("chest", ["cxr-lungs"], DESTINATIONS, when={"modality": ["DX", "CR"]}),
                rule("any CT", ["ct-body"], DESTINATIONS, when={"modality": "CT"}),
                rule("breast", ["lost"], DESTINATIONS, when={"modality": "MG"}),
            ],
            prepare=lose_weights,
        ) as node,
    ):
        yield Hospital(node, scp, archive)


def lose_weights(node: Running) -> None:
    """An active model's weights go missing after it was added."""
    (row,) = node.rows(Model, Model.name == "lost")
    (node.data / "bundles" / row.digest / "weights.safetensors").unlink()
