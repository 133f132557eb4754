"""One node for the faults that a running node must survive, with a model that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.dataset import Dataset

from tests import dicoms
from tests.dicoms import save, uid
from tests.faults.invariants import CANARY, CANARY_ID
from tests.node import Running, dimse, rule, running
from tests.pacs import Pacs

if TYPE_CHECKING:  # it loads torch, which most tests here do without
    from inference.bundle import Bundle

LEASE = 4.0
SLOW_SLICES = 8
"""Of a CT: on one core each takes the slow model about a quarter of a second."""


@dataclass
class Site:
    """A node with a fast model for radiographs and a slow one for CT, and its PACS."""

    node: Running
    pacs: Pacs
    folder: Path

    def radiograph(self, name: str) -> tuple[str, list[Path]]:
        """A study for the fast model."""
        return self._study(name, [dicoms.dx_image(study_uid=uid("fault", name))])

    def slow_ct(self, name: str) -> tuple[str, list[Path]]:
        """A study for the slow one."""
        return self._study(
            name,
            dicoms.ct_series(SLOW_SLICES, study_uid=uid("fault", name)),
        )

    def _study(self, name: str, datasets: list[Dataset]) -> tuple[str, list[Path]]:
        for ds in datasets:
            ds.PatientName, ds.PatientID = CANARY, f"{CANARY_ID} {name}"
        folder = self.folder / name.replace(" ", "-")
        files = [save(ds, folder / f"{n}.dcm") for n, ds in enumerate(datasets)]
        return str(datasets[0].StudyInstanceUID), files


@pytest.fixture(scope="session")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A CT model that enlarges its input: a forward pass that a test can interrupt."""
    from tests.bundles import make_tiny_bundle, tiny_manifest

    preprocessing: dict[str, Any] = tiny_manifest(ct=True)["preprocessing"]
    return make_tiny_bundle(
        tmp_path_factory.mktemp("bundles") / "slow",
        "slow",
        2,
        ct=True,
        preprocessing={**preprocessing, "size": [512, 512]},
        batch=1,
    )


def site_settings(**sections: dict[str, Any]) -> dict[str, Any]:
    """Leases that lapse soon, and attempts enough for all that a test does to one job."""
    worker = {"lease": LEASE, "attempts": 5, "device": "cpu"}
    return {"worker": {**worker, **sections.pop("worker", {})}, **sections}


def site_rules() -> list[dict[str, Any]]:
    return [
        rule("radiographs", ["tiny"], ["pacs"], when={"modality": ["DX"]}),
        rule("tomograms", ["slow"], ["pacs"], when={"modality": "CT"}),
    ]


@pytest.fixture(scope="session")
def site(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, slow_bundle: Bundle
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        Pacs(folder / "pacs") as pacs,
        running(
            folder / "node",
            models=[tiny_bundle.path, slow_bundle.path],
            destinations={"pacs": dimse(pacs)},
            rules=site_rules(),
            **site_settings(),
        ) as node,
    ):
        yield Site(node, pacs, folder / "studies")
