"""Owns who is meant by a peer's name or address, and whether it answers; sends nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

from sqlalchemy import select

from dicom_node.destinations.build import build
from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Destination
from dicom_node.dimse.tls import own_fingerprint, own_name
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
from dicom_node.services.admission import Caller, admit
from dicom_node.services.context import Node
from dicom_node.services.registry import check_ae_title, get_destination, list_modalities
from dicom_node.settings import Settings
from dicom_node.store.tables import Modality

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})/(?P<title>.+)")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared with, not bound


def at_address(
    text: str, settings: Settings, calling: str | None = None, tls: bool = False
) -> DimseDestination | None:
    """The peer of ``host:port/AE``; None when the text is no address but a name.

    Args:
        calling: AE title to speak as; None: our own.
        tls: speak TLS, with our certificate.

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
        tls=settings.tls if tls else None,
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


def modality(node: Node, ae_title: str) -> DimseDestination | None:
    """Where a modality takes associations from us, if it was told; over TLS if it must use that."""
    with node.database.reading() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == ae_title))
    if row is None or row.host is None or row.port is None:
        return None
    secure = node.settings.tls
    tls = row.tls_only or row.certificates or "plain" not in secure.ports
    return DimseDestination(
        ae_title=row.ae_title,
        host=row.host,
        port=row.port,
        calling=node.settings.listener.ae_title,
        timeout=node.settings.delivery.timeout,
        tls=secure if tls else None,
    )


def own_listener(node: Node, calling: str | None = None, tls: bool = False) -> DimseDestination:
    """Our own listener, spoken to as a modality that may send from this machine, where one may.

    Args:
        calling: AE title to speak as; None: one that may.
        tls: by its TLS port, which is taken where there is no other.

    Raises:
        ConfigurationError: TLS is asked for, and its files cannot be used.
    """
    listener, secure = node.settings.listener, node.settings.tls
    tls = tls or "plain" not in secure.ports
    if tls and "tls" not in secure.ports:
        raise ConfigurationError("the listener has no TLS port; see the settings of [tls]")
    host = _EVERYWHERE.get(listener.host, listener.host)
    certificate = own_fingerprint(secure) if tls else None
    return DimseDestination(
        ae_title=listener.ae_title,
        host=host,
        port=secure.port if tls else listener.port,
        calling=check_ae_title(
            calling or _known_here(node, host, certificate) or listener.ae_title
        ),
        timeout=node.settings.delivery.timeout,
        tls=secure if tls else None,
        tls_name=own_name(secure) if tls else "",
    )


def echo(destination: Destination) -> float:
    """Seconds until the destination answered a C-ECHO or a query, or a folder was written to.

    Raises:
        Unavailable: it did not answer, or with a fault; says what, and what is behind a rejection.
    """
    answer = destination.echo()
    if not answer.reachable:
        raise Unavailable(explained(answer.detail, destination))
    return answer.seconds


def takes(destination: Destination) -> dict[str, bool] | None:
    """Which forms of a result a PACS takes, in words; None where nobody can be asked.

    Raises:
        Unavailable: it cannot be asked.
    """
    if not isinstance(destination, DimseDestination):
        return None
    from dicom_node.results.build import kind_of  # loads highdicom, which listeners do without

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
        "(1,1,3)": f"it does not know the calling AE title {destination.calling}, not from this "
        "address, or not with this certificate",
        "(1,2,1)": "it wants a user identity",
        "(1,1,7)": f"it is not called {destination.ae_title}",
        "(2,3,1)": "it is busy or half down; try again",
        "(2,3,2)": "it has too many associations; try again",
    }
    where = f"{destination.host}:{destination.port}/{destination.ae_title}"
    reason = next((words for code, words in behind.items() if code in fault), "")
    return f"{where}: {fault}{f': {reason}' if reason else ''}"


def _known_here(node: Node, host: str, certificate: str | None) -> str | None:
    callers = (Caller(row["ae_title"], host, certificate) for row in list_modalities(node))
    try:
        return next((c.title for c in callers if admit(node, c).refusal is None), None)
    except ValueError:  # the listener's host is a name: which address it has is the system's matter
        return None
