"""Owns opening, verifying and writing model bundles; refuses to know whether one is trusted.

A bundle comes from the network and is hostile until its digests have been held against a digest
that someone trusts: nothing in it is executed or unpickled, nothing is written outside the
folder that is given, nothing is read that the manifest does not list. Importing this module
loads no torch; ``load_weights`` does.

A bundle's identity is the SHA-256 of the bytes of its manifest, which in turn names the SHA-256
of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from inference.errors import BundleError
from inference.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILES = 64
MAX_BYTES = 4 << 30  # of all files together; the largest backbone is under 0.6 GiB
MAX_MANIFEST_BYTES = 1 << 20
SIGNATURE_NAME = "manifest.sig"
"""The one file that no manifest lists: it is made of the manifest. Whose it is, others judge."""
MAX_SIGNATURE_BYTES = 1 << 12
CHUNK = 1 << 20
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the zip format's first; the same bundle packs to the same bytes


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        digest: SHA-256 of the manifest's bytes, lower-case hex: the bundle's identity.
    """

    path: Path
    manifest: Manifest
    digest: str


def open_bundle(path: Path, unpack_to: Path | None = None) -> Bundle:
    """A bundle from a folder, or from a zip that is unpacked first, every file verified.

    Args:
        path: the folder, or a zip of one (its files at the top or in one folder).
        unpack_to: where a zip goes; made if it is absent, refused if it holds anything.

    Raises:
        BundleError: naming the file that is missing, altered, unlisted, or not what we load.
    """
    if path.is_dir():
        return _verified(path)
    if not path.is_file():
        raise BundleError(f"{path.name}: no such bundle")
    if unpack_to is None:
        raise BundleError(f"{path.name}: a zip needs a folder to be unpacked to")
    _unpack(path, unpack_to)
    return _verified(unpack_to)


def read_file(bundle: Bundle, name: str) -> bytes:
    """The bytes of one listed file, verified as they are: what is hashed is what is returned.

    Raises:
        BundleError: it is not listed, cannot be read, or was altered since the bundle was opened.
    """
    expected = bundle.manifest.files.get(name)
    if expected is None:
        raise BundleError(f"{name}: not listed in the manifest")
    content = _read(bundle.path, name, MAX_BYTES)
    if hashlib.sha256(content).hexdigest() != expected:
        raise BundleError(f"{name}: its SHA-256 is not the manifest's")
    return content


def read_manifest(bundle: Bundle) -> bytes:
    """The bytes of its manifest, verified as they are: those that a signature is held against.

    Raises:
        BundleError: it was altered since the bundle was opened.
    """
    content = _read(bundle.path, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if hashlib.sha256(content).hexdigest() != bundle.digest:
        raise BundleError(f"{MANIFEST_NAME}: altered since the bundle was opened")
    return content


def read_signature(bundle: Bundle) -> bytes | None:
    """The content of its signature file, as it was found; None where it has none.

    Raises:
        BundleError: it is no plain file, or too large to be one.
    """
    if not os.path.lexists(bundle.path / SIGNATURE_NAME):
        return None
    return _read(bundle.path, SIGNATURE_NAME, MAX_SIGNATURE_BYTES)


def load_weights(bundle: Bundle) -> dict[str, Tensor]:
    """The state dict, in the precision in which it is stored, on the CPU.

    Raises:
        BundleError: the file was altered, or is no safetensors.
    """
    return load_tensors(bundle, bundle.manifest.weights)


def load_tensors(bundle: Bundle, name: str) -> dict[str, Tensor]:
    """The tensors of one listed safetensors file, from the very bytes that were verified.

    Raises:
        BundleError: as ``load_weights``.
    """
    from safetensors import SafetensorError  # here, since torch is heavy
    from safetensors.torch import load

    content = read_file(bundle, name)
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{name}: no safetensors ({error})") from error


def write_bundle(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle and open it.

    Args:
        folder: made if absent; must be empty.
        manifest: the manifest's keys without ``files``, which is computed.
        files: path in the bundle to content.

    Raises:
        BundleError: the folder holds something, or the result does not verify.
    """
    _empty(folder)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        whole = Manifest.model_validate({**manifest, "files": digests})
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_NAME}: {error}") from error
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    text = json.dumps(whole.model_dump(mode="json", exclude_defaults=False), indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return _verified(folder)


def pack(bundle: Bundle, target: Path) -> None:
    """The bundle as a zip; the same bundle gives the same bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        signature = [SIGNATURE_NAME] * (bundle.path / SIGNATURE_NAME).is_file()
        for name in sorted([MANIFEST_NAME, *signature, *bundle.manifest.files]):
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, (bundle.path / name).read_bytes())


def _verified(folder: Path) -> Bundle:
    """Every file of the folder is listed, and every listed file is there with its digest."""
    content = _manifest_bytes(folder)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST_NAME}: {_said(error)}") from error
    found = _listing(folder) - {MANIFEST_NAME, SIGNATURE_NAME}
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"{MANIFEST_NAME}: lists {len(manifest.files)} files, over {MAX_FILES}")
    for name in sorted(found - manifest.files.keys()):
        raise BundleError(f"{name}: not listed in the manifest")
    for name in sorted(manifest.files.keys() - found):
        raise BundleError(f"{name}: listed in the manifest and missing")
    for name, expected in manifest.files.items():
        if _digest(folder / name) != expected:
            raise BundleError(f"{name}: its SHA-256 is not the manifest's")
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


def _manifest_bytes(folder: Path) -> bytes:
    if not os.path.lexists(folder / MANIFEST_NAME):
        raise BundleError(f"{MANIFEST_NAME}: missing")
    return _read(folder, MANIFEST_NAME, MAX_MANIFEST_BYTES)


def _read(folder: Path, name: str, limit: int) -> bytes:
    """The content of a plain file; a link is not followed, a pipe not waited for.

    Raises:
        BundleError: it is none, cannot be read, or holds more than ``limit`` bytes.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(folder / name, flags)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(f"{name}: neither a file nor a folder")
            content = b"" if found.st_size > limit else file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{name}: {error.strerror}") from error
    if found.st_size > limit or len(content) > limit:  # it may have grown while it was read
        raise BundleError(f"{name}: over {limit} bytes")
    return content


def _said(error: ValidationError) -> str:
    """Pydantic's findings on one line, without the input, which is not ours to repeat."""
    found = (
        f"{'.'.join(str(part) for part in item['loc']) or 'manifest'}: {item['msg']}"
        for item in error.errors(include_input=False, include_url=False)[:8]
    )
    return "; ".join(found)


def _listing(folder: Path) -> set[str]:
    """Paths of all files, with slashes; links and special files are refused."""
    names = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            names.add(name)
        elif not stat.S_ISDIR(mode):
            raise BundleError(f"{name}: neither a file nor a folder")
        if len(names) > MAX_FILES + 2:
            raise BundleError(f"{folder.name}: over {MAX_FILES} files")
    return names


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BundleError(f"{folder.name}: the folder is not empty")


def _unpack(archive_path: Path, folder: Path) -> None:
    _empty(folder)
    try:
        with zipfile.ZipFile(archive_path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MAX_FILES + 2:
                raise BundleError(f"{archive_path.name}: over {MAX_FILES} files")
            top = _common_folder([entry.filename for entry in entries])
            left = MAX_BYTES
            for entry in entries:
                left = _unpack_one(archive, entry, folder, top, left)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        ValueError,
        RuntimeError,  # encrypted; a NotImplementedError is one too
        EOFError,
        OSError,
    ) as error:
        raise BundleError(f"{archive_path.name}: no zip that we open ({error})") from error


def _unpack_one(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, top: str, left: int
) -> int:
    """Write one entry; the bytes that may still be written after it."""
    name = entry.filename
    parts = PurePosixPath(name.removeprefix(top)).parts
    if "\\" in name or ":" in name or name.startswith("/") or ".." in parts or not parts:
        raise BundleError(f"{name!r}: not a path inside the bundle")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BundleError(f"{name!r}: not a plain file")
    # Of any other zipfile unpacks at once what it has read: a megabyte may become gigabytes.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{name!r}: compressed in another way than deflate")
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    # What the entry declares is the sender's word; what comes out is counted.
    with archive.open(entry) as source, target.open("xb") as sink:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise BundleError(f"{name!r}: the bundle unpacks to over {MAX_BYTES} bytes")
            sink.write(chunk)
    return left


def _common_folder(names: list[str]) -> str:
    """``"folder/"`` where a manifest lies in one folder that holds everything, else ``""``."""
    tops = {name.split("/", 1)[0] + "/" for name in names}
    return tops.pop() if len(tops) == 1 and MANIFEST_NAME not in names else ""
