"""Owns who may open an association; refuses to know how the answer is sent.

A modality is its AE title, bound to what was entered of it: networks, certificates, a user. All
that is entered must hold.
"""

from __future__ import annotations

import hmac
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from enum import StrEnum
from hashlib import scrypt
from ipaddress import ip_address, ip_network

from sqlalchemy import select

from dicom_node.services.context import Node
from dicom_node.store.tables import Modality

_COST = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MiB and some 40 ms for each guess


class Reason(StrEnum):
    """Why somebody may not come in."""

    UNKNOWN = "calling AE title unknown"
    ADDRESS = "not from its addresses"
    PLAIN = "without TLS"
    CERTIFICATE = "not with its certificate"
    IDENTITY = "without its user identity"


@dataclass(frozen=True)
class Identity:
    """User and passcode of PS3.7 D.3.3.7, type 2; not for logs."""

    user: str
    passcode: str


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        title: calling AE title.
        address: the IP address that it comes from.
        certificate: SHA-256 of the one it showed, in hex; None on the port without TLS.
        identity: None where it gave none with a passcode.
    """

    title: str
    address: str
    certificate: str | None = None
    identity: Identity | None = None


@dataclass(frozen=True)
class Admission:
    """Whether, and how.

    Attributes:
        refusal: None: it may.
        maximum_associations: at once, in each listener process; None: as many as there are places.
        identified: its user identity was asked for and is right.
    """

    refusal: Reason | None = None
    maximum_associations: int | None = None
    identified: bool = False


def admit(node: Node, caller: Caller) -> Admission:
    """Whether this caller may open an association."""
    with node.database.reading() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == caller.title))
    if row is None:
        return Admission(Reason.UNKNOWN)
    if row.addresses and not any(
        ip_address(caller.address) in ip_network(network) for network in row.addresses
    ):
        return Admission(Reason.ADDRESS)
    if caller.certificate is None and (row.tls_only or row.certificates):
        return Admission(Reason.PLAIN)
    if row.certificates and caller.certificate not in row.certificates:
        return Admission(Reason.CERTIFICATE)
    if row.user_name is not None and not _is(row, caller.identity):
        return Admission(Reason.IDENTITY)
    return Admission(None, row.maximum_associations, row.user_name is not None)


def kept(passcode: str, salt: bytes | None = None) -> str:
    """A passcode as it may be kept: salted, and slow to guess (RFC 7914).

    Args:
        salt: 16 bytes; None draws them.
    """
    salt = salt or os.urandom(16)
    derived = scrypt(passcode.encode(), salt=salt, dklen=32, **_COST)
    return f"scrypt:{b64encode(salt).decode()}:{b64encode(derived).decode()}"


def _is(row: Modality, identity: Identity | None) -> bool:
    if identity is None or row.passcode is None:
        return False
    salt = b64decode(row.passcode.split(":")[1])
    right = hmac.compare_digest(kept(identity.passcode, salt), row.passcode)
    return hmac.compare_digest(identity.user.encode(), (row.user_name or "").encode()) and right
