"""Owns how the node logs; refuses to know what: one event a line, never a patient.

Events carry UIDs, AE titles, counts and seconds. Values from the network are JSON-encoded, so that
a newline in a name cannot forge a line.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import structlog

from dicom_node.settings import LogSettings


def configure(settings: LogSettings, role: str) -> None:
    """Send structured logs to stderr, once per process; quieten libraries that quote headers."""
    level = getattr(logging, settings.level.upper())
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.json_lines
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            _naming(role),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # These log data sets, and quote header values and file paths in their warnings; the last two
    # log what a server writes, and our credentials.
    for name in ("pynetdicom", "pydicom", "highdicom", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def _naming(role: str) -> structlog.typing.Processor:
    """Every line says which role wrote it, whatever thread it came from."""

    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> Any:
        return {"role": role, **event}

    return add
