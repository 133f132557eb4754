from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.destinations.build import build
from dicom_node.destinations.dicomweb import DicomwebDestination
from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.folder import FolderDestination
from dicom_node.errors import ConfigurationError
from dicom_node.settings import DeliverySettings, ListenerSettings, Settings

SETTINGS = Settings(
    listener=ListenerSettings(ae_title="US"),
    delivery=DeliverySettings(timeout=7),
)


def test_a_pacs_gets_our_title_and_timeout() -> None:
    config = {"ae_title": "PACS", "host": "pacs.example", "port": 104}
    assert build("dimse", config, SETTINGS) == DimseDestination(
        "PACS", "pacs.example", 104, calling="US", timeout=7
    )


def test_a_folder_is_its_path() -> None:
    assert build("folder", {"path": "/out"}, SETTINGS) == FolderDestination(Path("/out"))


def test_a_dicomweb_service_has_our_timeout_or_its_own() -> None:
    config = {"url": "https://pacs.example/dicom-web/", "secret_file": "/s", "profile": {}}
    assert build("dicomweb", config, SETTINGS) == DicomwebDestination(
        "https://pacs.example/dicom-web", timeout=7, secret_file=Path("/s")
    )
    assert build("dicomweb", {**config, "timeout": 3}, SETTINGS).timeout == 3  # type: ignore[attr-defined] # of this kind


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="carrier pigeon"):
        build("carrier pigeon", {}, SETTINGS)
