"""Owns TLS by PS3.15 B.12 (BCP 195: RFC 8996, RFC 9325), both ways, and what is said of it.

Refuses to know who may do what: it says whose certificate it was. TLS 1.2 and 1.3, never lower and
without a fallback, as the retired B.10 asked already; of TLS 1.2 the four suites that RFC 9325
section 4.2 recommends; ECDHE on curves of 256 bits and more (PS3.15 B.13); both sides show a
certificate of the configured CA. OpenSSL's security level 2 refuses RSA keys below 2048 bits and
signatures by SHA-1 wherever they stand in a peer's chain.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from dicom_node.errors import ConfigurationError
from dicom_node.settings import TlsSettings

log = structlog.get_logger(__name__)

SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
"""Of TLS 1.2. Those of TLS 1.3 are all good, and OpenSSL's own."""
RSA_BITS, EC_BITS = 2048, 256
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
T = TypeVar("T")


@dataclass(frozen=True)
class Validity:
    """How long one of the files holds.

    Attributes:
        setting: which one, as ``tls.certificate``.
        what: the certificate's subject, or the revocation list's issuer.
        begins: from when on.
        ends: until when; None for a revocation list that names no next one.
    """

    setting: str
    what: str
    begins: datetime
    ends: datetime | None


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """What the listener accepts connections with.

    Raises:
        ConfigurationError: names the file that cannot be used, why, and what to do.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would not look at the certificate again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    _equip(context, settings)
    return context


class ClientContext(ssl.SSLContext):
    """A context for one outgoing connection; ``fault`` tells why TLS failed on it."""

    fault: str = ""


class _TellingSocket(ssl.SSLSocket):
    """pynetdicom swallows these errors; a peer's alert comes with the first read (TLS 1.3)."""

    def do_handshake(self, block: bool = False) -> None:
        self._telling(lambda: super(_TellingSocket, self).do_handshake(block))

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        return self._telling(lambda: super(_TellingSocket, self).read(len, buffer))

    def _telling(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            if isinstance(self.context, ClientContext):
                self.context.fault = fault_of(error)
            raise


def client_context(settings: TlsSettings) -> ClientContext:
    """What one connection to a destination is made with; its host's name is checked.

    Raises:
        ConfigurationError: as `server_context`, or nothing is configured.
    """
    if not settings.configured:
        raise ConfigurationError("TLS is asked for, and tls.certificate is not set")
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _TellingSocket
    _equip(context, settings)
    return context


class Renewed:
    """The listener's context of the files as they are now, so that renewing needs no restart.

    Called in any thread. Where the new files cannot be used, the former stay in use.

    Raises:
        ConfigurationError: at the beginning, as `server_context`.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._seen, self._context = self._look(), server_context(settings)

    def __call__(self) -> ssl.SSLContext:
        """The context for the next connection."""
        with self._lock:
            if (now := self._look()) != self._seen:
                self._seen = now
                try:
                    self._context = server_context(self._settings)
                    log.info("TLS files read anew")
                except ConfigurationError as error:
                    log.error("TLS files cannot be used, the former stay", reason=str(error))
            return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        looks: list[tuple[int, int, int] | None] = []
        for path in _files(self._settings).values():
            try:
                found = Path(path).stat()
                looks.append((found.st_ino, found.st_mtime_ns, found.st_size))
            except OSError:
                looks.append(None)
        return looks


def fingerprint(der: bytes) -> str:
    """What a certificate is known by: SHA-256 of its DER, in hex."""
    return sha256(der).hexdigest()


def fingerprint_from(text: str) -> str:
    """The same, of what an administrator gives: hex, with colons or not, or a file (PEM, DER).

    Raises:
        ConfigurationError: it is neither.
    """
    bare = text.rpartition("=")[2].replace(":", "").strip().lower()
    if _FINGERPRINT.fullmatch(bare):
        return bare
    data = _read("certificate", text)
    try:
        pem = b"-----BEGIN" in data
        certificate = (x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate)(
            data
        )
    except ValueError as error:
        raise ConfigurationError(
            f"{text} is neither a certificate (PEM, DER) nor a SHA-256 fingerprint of 64 hex digits"
        ) from error
    return fingerprint(certificate.public_bytes(Encoding.DER))


def own_fingerprint(settings: TlsSettings) -> str:
    """Of our own certificate.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    return fingerprint(
        _certificates("tls.certificate", settings.certificate)[0].public_bytes(Encoding.DER)
    )


def own_name(settings: TlsSettings) -> str:
    """A name that our certificate is made out to; empty where it has none.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    certificate = _certificates("tls.certificate", settings.certificate)[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    dns = names.get_values_for_type(x509.DNSName)
    plain = [name for name in dns if "*" not in name]
    return next(iter([*plain, *map(str, names.get_values_for_type(x509.IPAddress))]), "")


def peer_fingerprint(sock: Any) -> str | None:
    """Whose certificate the other side of a connection showed; None without TLS."""
    der = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
    return fingerprint(der) if der else None


def fault_of(error: OSError) -> str:
    """What went wrong with TLS, in words that name no file and no secret."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    return (
        "too slow" if isinstance(error, TimeoutError) else (error.strerror or str(error) or "lost")
    )


def validities(settings: TlsSettings) -> list[Validity]:
    """Of every certificate and revocation list that is configured.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    found = [
        Validity(
            f"tls.{name}",
            certificate.subject.rfc4514_string(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
        for name in ("certificate", "ca")
        for certificate in _certificates(f"tls.{name}", getattr(settings, name))
    ]
    found += [
        Validity("tls.crl", crl.issuer.rfc4514_string(), crl.last_update_utc, crl.next_update_utc)
        for crl in (_revoked(settings.crl) if settings.crl else ())
    ]
    return found


def _equip(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """What both directions share."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    context.set_ciphers(":".join(SUITES) + ":@SECLEVEL=2")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _check(settings)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigurationError(
            f"tls.certificate {settings.certificate} and tls.key {settings.key}: {reason}; "
            "give the certificate that was made for this key"
        ) from error
    context.load_verify_locations(settings.ca)
    if settings.crl:
        context.load_verify_locations(settings.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _check(settings: TlsSettings) -> None:
    """Each file is what it should be, and no key is weak."""
    for name in ("certificate", "ca"):
        path = getattr(settings, name)
        for certificate in _certificates(f"tls.{name}", path):
            weak = _weakness(certificate.public_key())
            if weak:
                raise ConfigurationError(
                    f"tls.{name} {path}: {certificate.subject.rfc4514_string()} has {weak}; "
                    f"needed are RSA of {RSA_BITS} bits, a curve of {EC_BITS}, or more"
                )
    data = _read("tls.key", settings.key)
    try:
        load_pem_private_key(data, None)
    except TypeError as error:
        raise ConfigurationError(
            f"tls.key {settings.key} has a passphrase, which nobody could type; "
            "take it off, and let only the node's user read the file"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"tls.key {settings.key} holds no private key in PEM") from error
    if settings.crl:
        _revoked(settings.crl)


def _weakness(key: Any) -> str:
    """What is wrong with a public key; empty where nothing is."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"an RSA key of {key.key_size} bits" if key.key_size < RSA_BITS else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"a curve of {key.key_size} bits" if key.key_size < EC_BITS else ""
    good = isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey))
    return "" if good else "a key of another kind"


def _certificates(setting: str, path: str) -> list[x509.Certificate]:
    data = _read(setting, path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(f"{setting} {path} holds no certificate in PEM") from error


def _revoked(path: str) -> list[x509.CertificateRevocationList]:
    blocks = _CRL.findall(_read("tls.crl", path))
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError:
        lists = []
    if not lists:
        raise ConfigurationError(f"tls.crl {path} holds no revocation list in PEM")
    return lists


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting} {path}: {error.strerror}") from error


def _files(settings: TlsSettings) -> dict[str, str]:
    names = ("certificate", "key", "ca", "crl")
    return {f"tls.{name}": path for name in names if (path := getattr(settings, name))}
