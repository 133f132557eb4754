"""Owns durable files: bytes on disk before anyone is told so; refuses to know what they hold.

A file is written under a temporary name, fsynced, renamed, and its directory fsynced: a crash at
any step leaves nothing, or the whole file. Names are drawn here and never come from the network;
they fan out over 256 directories, made beforehand, so that a file costs two fsyncs. Temporary
names begin with their owner, so that a sweep can tell the dead's.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from dicom_node.errors import NotFound, OutOfSpace, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Stored:
    """A file that is on disk: its name below the folder, its digest over the digested part."""

    name: str
    sha256: str
    size: int


class Folder:
    """One folder of durable files.

    Args:
        root: made if absent.
        owner: who writes here (a process id row); stands in temporary names.
        reserve: bytes to keep free on the disk.
    """

    def __init__(self, root: Path, owner: str, reserve: int = 0) -> None:
        self.root, self.owner, self.reserve = root, owner, reserve
        self._temporary = root / "incoming"
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._fan_out()
        except OSError as error:
            raise Unavailable(f"folder {root}: {error.strerror}") from error

    def write(self, suffix: str, head: bytes, body: bytes | Iterable[bytes]) -> Stored:
        """Write ``head`` then ``body`` durably under a new name; the digest is of ``body`` only.

        Raises:
            OutOfSpace: the disk is full, or would fall below the reserve.
            Unavailable: any other failure of the disk; the file must not be trusted.
        """
        unique = uuid4().hex
        name = f"{unique[:2]}/{unique}{suffix}"
        temporary, final = self._temporary / f"{self.owner}.{unique}", self.root / name
        digest, size = sha256(), len(head)
        try:
            if self.reserve and shutil.disk_usage(self.root).free < self.reserve:
                raise OutOfSpace(f"less than {self.reserve >> 20} MiB free in {self.root}")
            with temporary.open("xb") as file:
                file.write(head)
                for piece in (body,) if isinstance(body, bytes) else body:
                    digest.update(piece)
                    size += len(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(final)
            _sync_directory(final.parent)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with suppress(OSError):
                final.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL:
                raise OutOfSpace(f"{self.root}: {error.strerror}") from error
            raise Unavailable(f"{self.root}: {error.strerror}") from error
        return Stored(name, digest.hexdigest(), size)

    def path(self, name: str) -> Path:
        """Where a stored file lies.

        Raises:
            NotFound: the name leads out of the folder.
        """
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise NotFound("file", name)
        return path

    def modified(self, name: str) -> datetime:
        """When a stored file was written; now, where it has just gone."""
        try:
            return datetime.fromtimestamp(self.path(name).stat().st_mtime, UTC)
        except OSError:
            return datetime.now(UTC)

    def remove(self, name: str) -> None:
        """Remove a file that no row names."""
        with suppress(OSError):
            self.path(name).unlink(missing_ok=True)

    def sweep(self, alive: set[str]) -> int:
        """Remove temporary files whose owner is not among ``alive``; how many."""
        removed = 0
        for path in self._temporary.iterdir():
            if path.name.partition(".")[0] not in alive:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def names(self) -> Iterator[str]:
        """Every stored file's name."""
        for path in self.root.glob("??/*"):
            yield str(path.relative_to(self.root))

    def _fan_out(self) -> None:
        """Directories must be durable before a file is renamed into them: it would vanish too."""
        if not (self.root / "ff").is_dir():
            for number in range(256):
                (self.root / f"{number:02x}").mkdir(exist_ok=True)
        # Always: another process may have made them a moment ago and not synced them yet.
        _sync_directory(self.root)
        _sync_directory(self.root.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
