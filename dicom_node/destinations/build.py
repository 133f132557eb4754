"""Owns the choice of a destination's adapter from its row; refuses to know deliveries."""

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
    """The adapter for a destination row.

    Args:
        kind: ``dimse`` or ``folder``.
        config: of the row: ae_title, host and port, or path.
        settings: our own AE title and the timeouts.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if kind == "dimse":
        return DimseDestination(
            ae_title=config["ae_title"],
            host=config["host"],
            port=config["port"],
            calling=settings.listener.ae_title,
            timeout=settings.delivery.timeout,
        )
    if kind == "folder":
        return FolderDestination(Path(config["path"]))
    raise ConfigurationError(f"no destinations of kind {kind!r}")
