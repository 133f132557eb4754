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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from uuid import uuid4

from dicom_node import faults
from dicom_node.errors import NotFound, OutOfSpace, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_LOOK_EVERY = 4 << 20
"""Bytes of a file after which the reserve is looked at again: many may be written at once."""


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

    def begin(self, head: bytes) -> Draft:
        """A new file that begins with ``head``, which the digest leaves out.

        Raises:
            OutOfSpace: the disk is full, or has fallen below the reserve.
            Unavailable: any other failure of the disk.
        """
        with self.translated():
            self.look()
        return Draft(self, head)

    def look(self) -> None:
        """See that the reserve is free.

        Raises:
            OutOfSpace: it is not.
            OSError: the disk cannot say.
        """
        if self.reserve and shutil.disk_usage(self.root).free < self.reserve:
            raise OutOfSpace(f"less than {self.reserve >> 20} MiB free in {self.root}")

    def write(self, suffix: str, head: bytes, body: bytes | Iterable[bytes | memoryview]) -> Stored:
        """Write ``head`` then ``body`` durably under a new name; the digest is of ``body`` only.

        Raises:
            OutOfSpace: the disk is full, or would fall below the reserve.
            Unavailable: any other failure of the disk; the file must not be trusted.
        """
        draft = self.begin(head)
        try:
            for piece in (body,) if isinstance(body, bytes) else body:
                draft.write(piece)
            return draft.keep(suffix)
        finally:
            draft.drop()

    def path(self, name: str) -> Path:
        """Where a stored file lies.

        Raises:
            NotFound: the name leads out of the folder.
        """
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise NotFound("file", name)
        return path

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

    def sweep_own(self) -> None:
        """Remove our temporary files, when whoever wrote them in our name is gone."""
        for path in self._temporary.glob(f"{self.owner}.*"):
            path.unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """Every stored file's name."""
        for path in self.root.glob("??/*"):
            yield str(path.relative_to(self.root))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What the disk refuses leaves as an error of ours."""
        try:
            yield
        except OSError as error:
            full = OutOfSpace if error.errno in _FULL else Unavailable
            raise full(f"{self.root}: {error.strerror}") from error

    def _fan_out(self) -> None:
        """Directories must be durable before a file is renamed into them: it would vanish too."""
        if not (self.root / "ff").is_dir():
            for number in range(256):
                (self.root / f"{number:02x}").mkdir(exist_ok=True)
        # Always: another process may have made them a moment ago and not synced them yet.
        _sync_directory(self.root)
        _sync_directory(self.root.parent)


class Draft:
    """A file in the making, under a temporary name: nothing of it stays unless it is kept.

    Args:
        folder: where it is to be kept.
        head: its first bytes, no part of the digest.
    """

    def __init__(self, folder: Folder, head: bytes) -> None:
        self._folder, self._head, self._size, self._looked = folder, len(head), 0, 0
        self._digest, self._unique = sha256(), uuid4().hex
        self._path = folder.root / "incoming" / f"{folder.owner}.{self._unique}"
        self._file: FileIO | None = None
        try:
            with folder.translated():
                self._file = self._path.open("x+b", buffering=0)
                faults.step("opened", folder.root.name)
                self._append(self._file, memoryview(head))
        except BaseException:
            self.drop()
            raise

    @property
    def sha256(self) -> str:
        """Of the bytes after the head."""
        return self._digest.hexdigest()

    def write(self, piece: bytes | memoryview) -> None:
        """Add bytes.

        Raises:
            OutOfSpace: the disk is full, or has fallen below the reserve.
            Unavailable: any other failure of the disk.
        """
        self._digest.update(piece)
        with self._folder.translated():
            self._append(self._open, memoryview(piece))

    def body(self) -> memoryview:
        """All after the head, without reading it."""
        with self._folder.translated():
            mapped = mmap(self._open.fileno(), 0, access=ACCESS_READ)
        return memoryview(mapped)[self._head :]

    def keep(self, suffix: str) -> Stored:
        """Make it durable under a name of its own.

        Raises:
            OutOfSpace: the disk is full.
            Unavailable: any other failure of the disk; the file must not be trusted, and is gone.
        """
        name = f"{self._unique[:2]}/{self._unique}{suffix}"
        final, room = self._folder.root / name, self._folder.root.name
        try:
            with self._folder.translated():
                faults.step("written", room)
                os.fsync(self._open.fileno())
                faults.step("synced", room)
                self._path.rename(final)
                faults.step("renamed", room)
                _sync_directory(final.parent)
                faults.step("durable", room)
        except BaseException:
            self.drop()
            with suppress(OSError):
                final.unlink(missing_ok=True)
            raise
        self._close()
        return Stored(name, self.sha256, self._size)

    def drop(self) -> None:
        """Remove it, unless it was kept."""
        if self._file is not None:
            self._close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    @property
    def _open(self) -> FileIO:
        if self._file is None:
            raise ValueError("the file was kept or dropped")
        return self._file

    def _append(self, file: FileIO, piece: memoryview) -> None:
        while piece:
            if self._size - self._looked >= _LOOK_EVERY:
                self._folder.look()
                self._looked = self._size
            count = file.write(piece[:_LOOK_EVERY]) or 0
            self._size += count
            piece = piece[count:]

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # it is durable, or unwanted
                file.close()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
