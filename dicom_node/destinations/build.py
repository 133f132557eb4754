"""Owns which class serves a configured destination; the one place where one is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.folder import FolderDestination
from dicom_node.destinations.types import Destination
from dicom_node.errors import ConfigurationError
from dicom_node.settings import Settings


def build(kind: str, config: Mapping[str, Any], settings: Settings) -> Destination:
    """The destination of a stored row.

    Args:
        kind: ``dimse`` (config ae_title, host, port) or ``folder`` (config path).
        config: of that kind.
        settings: our AE title and the timeout.

    Raises:
        ConfigurationError: no such kind.
    """
    if kind == "dimse":
        return DimseDestination(
            ae_title=config["ae_title"],
            host=config["host"],
            port=int(config["port"]),
            calling=settings.listener.ae_title,
            timeout=settings.delivery.timeout,
        )
    if kind == "folder":
        return FolderDestination(Path(config["path"]))
    raise ConfigurationError(f"no destinations of kind {kind!r}")
