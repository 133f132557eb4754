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
        kind: ``dimse`` (config ae_title, host, port; perhaps tls, tls_name), ``dicomweb``
            (config url, and what `DicomwebDestination` has beside it) or ``folder`` (config path).
        config: of that kind.
        settings: our AE title, the timeout, our certificate.

    Raises:
        ConfigurationError: no such kind, or its configuration cannot be right.
    """
    if kind == "dimse":
        return DimseDestination(
            ae_title=config["ae_title"],
            host=config["host"],
            port=int(config["port"]),
            calling=settings.listener.ae_title,
            timeout=settings.delivery.timeout,
            tls=settings.tls if config.get("tls") else None,
            tls_name=config.get("tls_name", ""),
        )
    if kind == "dicomweb":
        # Only what speaks HTTP loads a client of it.
        from dicom_node.destinations.dicomweb import DicomwebDestination

        return DicomwebDestination.of(config, settings.delivery.timeout)
    if kind == "folder":
        return FolderDestination(Path(config["path"]))
    raise ConfigurationError(f"no destinations of kind {kind!r}")
