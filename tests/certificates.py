"""A small certificate authority for tests, and what it issues, as PEM files.

ca = Authority(tmp_path)
node = ca.issue("node")                       # for localhost and 127.0.0.1, both purposes
settings = node.settings()                    # a [tls] section; node.options are DCMTK's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dicom_node.settings import TlsSettings

DAY = timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path
    authority: Authority
    made: x509.Certificate

    @property
    def fingerprint(self) -> str:
        return self.made.fingerprint(hashes.SHA256()).hex()

    def settings(self, **more: Any) -> TlsSettings:
        """As one side's own, trusting its authority."""
        files = {"certificate": self.certificate, "key": self.key, "ca": self.authority.file}
        return TlsSettings(**{**{name: str(path) for name, path in files.items()}, **more})

    @property
    def options(self) -> list[str]:
        """Of DCMTK's command lines."""
        own = ["+tls", str(self.key), str(self.certificate)]
        return [*own, "+cf", str(self.authority.file)]


@dataclass
class Authority:
    """A self-signed CA; files go into ``folder``."""

    folder: Path
    name: str = "Hospital CA"
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        builder = _builder(self.name, self.name, self.key.public_key(), 3650 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        usage = x509.KeyUsage(
            *(False, False, False, False, False, True, True, False, False)
        )  # certificates and revocation lists
        self.certificate = builder.add_extension(usage, True).sign(self.key, hashes.SHA256())
        self.file = self.folder / f"{self.name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = ("localhost", "127.0.0.1"),
        key: Any = None,
        passphrase: bytes | None = None,
        lives: timedelta = 365 * DAY,
        purposes: Sequence[x509.ObjectIdentifier] = BOTH,
    ) -> Pair:
        """A certificate for ``hosts``; one that lives for a negative time has ended."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(name, self.name, key.public_key(), lives)
        names = [
            x509.IPAddress(ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts
        ]
        for extension in (x509.SubjectAlternativeName(names), x509.ExtendedKeyUsage(purposes)):
            builder = builder.add_extension(extension, False)
        made = builder.sign(self.key, hashes.SHA256())
        file, secret = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        file.write_bytes(made.public_bytes(Encoding.PEM))
        how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        secret.touch(0o600)
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
        return Pair(file, secret, self, made)

    def revoke(self, *pairs: Pair, lives: timedelta = 7 * DAY) -> Path:
        """A revocation list with these on it."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(_name(self.name))
        builder = builder.last_update(min(now, now + lives) - DAY).next_update(now + lives)
        for pair in pairs:
            revoked = x509.RevokedCertificateBuilder().serial_number(pair.made.serial_number)
            builder = builder.add_revoked_certificate(revoked.revocation_date(now - DAY).build())
        path = self.folder / "crl.pem"
        path.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, issuer: str, key: Any, lives: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + lives) - DAY)
        .not_valid_after(now + lives)
    )
