"""Owns the question whose a model bundle is: keys, signatures, and what comes with the package.

A signature is Ed25519 (RFC 8032) over a context, the key's id and the exact bytes of the manifest,
which names the SHA-256 of every other file. The context keeps it from being taken for a signature
of anything else, and another's from being taken for ours. A bundle brings no key that counts:
keys are pinned in the settings, by name.

Refuses to know what a bundle holds; ``inference.bundle`` holds its files against its manifest.
"""

from __future__ import annotations

import json
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dicom_node
from dicom_node.errors import ConfigurationError, Unavailable
from dicom_node.settings import ModelSettings
from inference.bundle import SIGNATURE_NAME, Bundle, read_manifest, read_signature
from inference.errors import BundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DIGESTS = Path(dicom_node.__file__).with_name("shipped.sha256")
"""What comes with the package, one ``sha256sum`` line a manifest; `make digests` writes it."""
CONTEXT = "dicom-node model bundle, version 1"
Passphrase = Callable[[], bytes]
"""Asked only when the key needs one."""


class UntrustedBundle(BundleError):
    """Nobody whom the settings name answers for a bundle; says why."""


@dataclass(frozen=True)
class Trust:
    """Why a bundle may run.

    Attributes:
        signer: the key's name in the settings; empty where it comes with the package.
        key: its id; empty likewise.
    """

    signer: str = ""
    key: str = ""

    @property
    def words(self) -> str:
        """For a person."""
        return f"signed by {self.signer} (key {self.key})" if self.key else "comes with the package"


def check(bundle: Bundle, settings: ModelSettings) -> Trust:
    """Why this bundle may run.

    Args:
        bundle: opened, its files held against its manifest.
        settings: the keys that are trusted, and those that no longer are.

    Raises:
        UntrustedBundle: it is unsigned, signed by a key that is unknown or revoked, or its
            signature is not of this manifest.
        BundleError: its manifest was altered since it was opened.
    """
    title = f"{bundle.manifest.name}@{bundle.manifest.version}"
    if bundle.digest in shipped():
        return Trust()
    content = read_signature(bundle)
    if content is None:
        raise UntrustedBundle(
            f"{title} is not signed; whoever made it runs `dicom-node models sign BUNDLE --key "
            "FILE`, and the key's public half stands in the settings, models.trusted_keys"
        )
    told, signature = _parse(title, content)
    if told in _by_id(settings.revoked_keys):
        raise UntrustedBundle(f"{title} is signed by key {told}, which is revoked")
    known = _by_id(settings.trusted_keys).get(told)
    if known is None:
        raise UntrustedBundle(
            f"{title} is signed by key {told}, which is not among models.trusted_keys"
        )
    name, public = known
    if not _is_of(public, signature, _message(told, read_manifest(bundle))):
        raise UntrustedBundle(f"{title}: {SIGNATURE_NAME} is no signature of its manifest")
    return Trust(name, told)


@cache
def shipped() -> frozenset[str]:
    """Digests of the bundles that come with the package."""
    lines = DIGESTS.read_text(encoding="ascii").splitlines()
    return frozenset(line.split()[0] for line in lines if line.strip())


def key_id(public: bytes) -> str:
    """The first 16 hex digits of the SHA-256 of a public key's 32 bytes."""
    return sha256(public).hexdigest()[:16]


def generate(path: Path, name: str, passphrase: bytes | None = None) -> dict[str, str]:
    """Make a key pair: the private half goes to a file for its owner only.

    Args:
        path: of the private key, PKCS #8 as PEM (RFC 5958); must not exist.
        name: what the key is called in the settings.
        passphrase: encrypts the file; None leaves it plain.

    Returns:
        ``key`` (its id), ``file``, ``setting`` (the entry for ``models.trusted_keys``).

    Raises:
        ConfigurationError: the file is there, or the name cannot stand in the settings.
        Unavailable: the file cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    entry = setting(name, key)
    try:
        ModelSettings(trusted_keys=(entry,))
    except ValueError as error:
        raise ConfigurationError(
            f"{name!r} cannot name a key: letters, digits, space, dot, underscore, hyphen, "
            "at most 32, a letter or digit first"
        ) from error
    content = key.private_bytes(
        form.Encoding.PEM,
        form.PrivateFormat.PKCS8,
        form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption(),
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already; a key is never overwritten") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    return {"key": key_id(_public(key)), "file": str(path), "setting": entry}


def setting(name: str, key: Ed25519PrivateKey) -> str:
    """A key's entry for ``models.trusted_keys``."""
    return f"{name}:{b64encode(_public(key)).decode()}"


def load_key(path: Path, passphrase: Passphrase) -> Ed25519PrivateKey:
    """A private key from its file.

    Raises:
        ConfigurationError: it cannot be read, others may read it, it is no Ed25519 key, or the
            passphrase is not its.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1 << 16)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(f"{path}: others may read this key; `chmod 600 {path}`")
    try:
        try:
            key = load_pem_private_key(content, None)
        except TypeError:  # it is encrypted
            key = load_pem_private_key(content, passphrase())
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: no private key, or another passphrase's") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path}: not an Ed25519 key; `dicom-node models keygen` makes one"
        )
    return key


def sign(bundle: Bundle, key: Ed25519PrivateKey) -> str:
    """Write a bundle's signature beside its manifest, in place of one that is there; the key's id.

    Args:
        bundle: a folder, opened: nobody signs what its own manifest does not fit.
        key: whose word it is.

    Raises:
        BundleError: the manifest was altered since it was opened.
        Unavailable: the folder cannot be written to.
    """
    told = key_id(_public(key))
    signature = key.sign(_message(told, read_manifest(bundle)))
    document = {"context": CONTEXT, "key": told, "signature": b64encode(signature).decode()}
    # Under another name first: half a signature must not replace a whole one.
    waiting = bundle.path / f".{SIGNATURE_NAME}.{uuid4().hex}"
    try:
        try:
            waiting.write_text(json.dumps(document, indent=2) + "\n", encoding="ascii")
            waiting.replace(bundle.path / SIGNATURE_NAME)
        finally:
            waiting.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{bundle.path}: {error.strerror}") from error
    return told


def _message(told: str, manifest: bytes) -> bytes:
    """What is signed; the NULs stand in no part but the last."""
    return b"\0".join((CONTEXT.encode(), told.encode(), manifest))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _parse(title: str, content: bytes) -> tuple[str, bytes]:
    """Key id and signature; the context is ours, or it is another's signature."""
    try:
        document: Any = json.loads(content)
        context, told = document["context"], document["key"]
        signature = b64decode(document["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedBundle(f"{title}: {SIGNATURE_NAME} cannot be read") from error
    if context != CONTEXT or not isinstance(told, str):
        raise UntrustedBundle(f"{title}: {SIGNATURE_NAME} was not made for model bundles")
    # It goes into messages and logs, and whoever made the file chose it.
    if len(told) != 16 or not set(told) <= set("0123456789abcdef"):
        raise UntrustedBundle(f"{title}: {SIGNATURE_NAME} names no key")
    return told, signature


def _by_id(entries: Sequence[str]) -> dict[str, tuple[str, bytes]]:
    """Name and public key, by id."""
    pairs = (entry.rpartition(":") for entry in entries)
    keys = ((name, b64decode(encoded)) for name, _, encoded in pairs)
    return {key_id(public): (name, public) for name, public in keys}


def _is_of(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
