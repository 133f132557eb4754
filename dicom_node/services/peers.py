"""Owns who is meant by a peer's name or address, and whether it answers; sends nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

from dicom_node.destinations.build import build
from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Destination
from dicom_node.domain.profile import (
    Compression,
    Document,
    Encoding,
    Form,
    ScForm,
    SegForm,
    SrForm,
)
from dicom_node.errors import ConfigurationError, DeliveryFailed, Unavailable
from dicom_node.results.build import kind_of
from dicom_node.services.context import Node
from dicom_node.services.receive import is_known
from dicom_node.services.registry import check_ae_title, get_destination, list_modalities
from dicom_node.settings import Settings

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})/(?P<title>.+)")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared with, not bound


def at_address(
    text: str, settings: Settings, calling: str | None = None
) -> DimseDestination | None:
    """The peer of ``host:port/AE``; None when the text is no address but a name.

    Args:
        calling: AE title to speak as; None: our own.

    Raises:
        ConfigurationError: a port or an AE title that cannot be one.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return None
    port = int(found["port"])
    if not 1 <= port <= 65535:
        raise ConfigurationError(f"{text}: {port} is no TCP port")
    return DimseDestination(
        ae_title=check_ae_title(found["title"]),
        host=found["host"].strip("[]"),
        port=port,
        calling=check_ae_title(calling or settings.listener.ae_title),
        timeout=settings.delivery.timeout,
    )


def named(node: Node, name: str, calling: str | None = None) -> Destination:
    """A configured destination, by its name.

    Raises:
        NotFound: none is called so.
    """
    row = get_destination(node, name)
    destination = build(row.kind, row.config, node.settings)
    if calling and isinstance(destination, DimseDestination):
        return replace(destination, calling=check_ae_title(calling))
    return destination


def own_listener(node: Node, calling: str | None = None) -> DimseDestination:
    """Our own listener, spoken to as a modality that may send from this machine, where one may."""
    listener = node.settings.listener
    host = _EVERYWHERE.get(listener.host, listener.host)
    return DimseDestination(
        ae_title=listener.ae_title,
        host=host,
        port=listener.port,
        calling=check_ae_title(calling or _known_here(node, host) or listener.ae_title),
        timeout=node.settings.delivery.timeout,
    )


def echo(destination: Destination) -> float:
    """Seconds until the destination answered a C-ECHO (a folder: could be written to).

    Raises:
        Unavailable: it did not answer, or with a fault; says what, and what is behind a rejection.
    """
    answer = destination.echo()
    if not answer.reachable:
        raise Unavailable(explained(answer.detail, destination))
    return answer.seconds


def takes(destination: Destination) -> dict[str, bool] | None:
    """Which forms of a result a PACS takes, in words; None for a folder, which takes them all.

    Raises:
        Unavailable: it cannot be asked.
    """
    if not isinstance(destination, DimseDestination):
        return None
    kinds = {form.words: kind_of(form) for form in _ASKED}
    try:
        accepted = destination.accepts(list(kinds.values()))
    except DeliveryFailed as error:
        raise Unavailable(explained(error.reason, destination)) from error
    return {words: kind in accepted for words, kind in kinds.items()}


_ASKED: tuple[Form, ...] = (
    SegForm(),
    SegForm(compression=Compression.JPEG2000),
    SegForm(Encoding.LABELMAP),
    SegForm(Encoding.LABELMAP, Compression.RLE),
    SrForm(),
    SrForm(Document.ENHANCED),
    ScForm(),
)


def explained(fault: str, destination: Destination) -> str:
    """A fault of an association with what usually is behind it (PS3.8 table 9-21)."""
    if not isinstance(destination, DimseDestination):
        return fault
    behind = {
        "(1,1,3)": f"it does not know the calling AE title {destination.calling}",
        "(1,1,7)": f"it is not called {destination.ae_title}",
        "(2,3,1)": "it is busy or half down; try again",
        "(2,3,2)": "it has too many associations; try again",
    }
    where = f"{destination.host}:{destination.port}/{destination.ae_title}"
    reason = next((words for code, words in behind.items() if code in fault), "")
    return f"{where}: {fault}{f': {reason}' if reason else ''}"


def _known_here(node: Node, host: str) -> str | None:
    titles = (row["ae_title"] for row in list_modalities(node))
    try:
        return next((title for title in titles if is_known(node, title, host)), None)
    except ValueError:  # the listener's host is a name: which address it has is the system's matter
        return None
