"""Owns the settings and the node of this run of the command; built when first asked for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dicom_node import telemetry
from dicom_node.services.context import Node
from dicom_node.settings import LogSettings, Settings, load
from dicom_node.store.migrate import require_head

_chosen: dict[str, Path | None] = {"config": None}


def choose(config: Path | None) -> None:
    """Remember which file was named on the command line."""
    _chosen["config"] = config


@cache
def settings() -> Settings:
    """The settings, read once.

    Raises:
        ConfigurationError: names each wrong key.
    """
    return load(_chosen["config"])


@cache
def node() -> Node:
    """The node's adapters, on a database of the right revision.

    Raises:
        Unavailable: the database is away, or needs ``db upgrade``.
    """
    # What services log would stand between the lines of our output, or in the middle of JSON.
    telemetry.configure(LogSettings(level="error", json_lines=False), "cli")
    opened = Node.open(settings(), "cli")
    require_head(opened.database)
    return opened
