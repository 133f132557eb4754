"""Owns the local audit log: append-only files, chained by hashes, written by many processes.

One record a line: the SHA-256 of the line before it, a space, and an RFC 5424 message, whose
sequenceId grows by one. A line that was altered, removed or put in breaks the chain; lines removed
from the end are missed by ``head``, which names the last one. Who may write here could forge all
of that anew: what a receiver elsewhere holds (`audit.syslog`) is what nobody here can alter.

Files are named by the sequence of their first record, and the last one is written to: rotation
begins a file and touches no other. ``head`` is the lock as well. What a crash left half written at
the end was never a record, and is cut off by whoever writes next. Refuses to know XML and sockets.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from dicom_node.errors import OutOfSpace, Unavailable

NOTHING = "0" * 64
"""What the first record is chained to."""
_HEAD_BYTES = 256
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Head:
    """The last record: its sequence, its line's SHA-256, its file and where it ends in it."""

    sequence: int = 0
    sha256: str = NOTHING
    file: str = ""
    end: int = 0


@dataclass(frozen=True)
class Record:
    """One record as it lies in the log; ``end`` is where it ends in its file."""

    sequence: int
    previous: str
    sha256: str
    message: bytes
    file: str
    end: int


@dataclass(frozen=True)
class Verdict:
    """What `Trail.verify` found: the first and last sequence, and every break in the chain."""

    first: int
    last: int
    records: int
    faults: tuple[str, ...]


class Trail:
    """The log in one folder.

    Args:
        folder: made with mode 0700 when the first record comes.
        rotate: bytes after which a new file is begun.
        patience: seconds to wait for another process that holds the lock; it may be frozen.
    """

    def __init__(self, folder: Path, rotate: int = 64 << 20, patience: float = 0.5) -> None:
        self.folder, self._rotate, self._patience = folder, rotate, patience
        self._threads = threading.Lock()

    def append(self, make: Callable[[int], bytes], durable: bool = False) -> int:
        """Add a record; returns its sequence.

        Args:
            make: the RFC 5424 message with this sequenceId, without a newline.
            durable: return only when it is on disk.

        Raises:
            OutOfSpace: the disk is full; nothing of the record stays.
            Unavailable: the folder cannot be written to, or another process holds the lock.
        """
        with self._writing() as head_file:
            head = self._recovered(head_file)
            sequence = head.sequence + 1
            name, at = head.file, head.end
            if not name or at >= self._rotate:
                name, at = f"{sequence:020}.log", 0
            line = head.sha256.encode() + b" " + make(sequence)
            log = open_private(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                _write_all(log, line + b"\n", at)
                if durable:
                    os.fsync(log)
            finally:
                os.close(log)
            if at == 0:
                _sync_folder(self.folder)
            moved = Head(sequence, sha256(line).hexdigest(), name, at + len(line) + 1)
            _write_head(head_file, moved)
        return sequence

    def sync(self) -> Head:
        """Put everything up to the head on disk, and tell the head."""
        head = self.head()
        if head.file:
            with suppress(FileNotFoundError):
                log = os.open(self.folder / head.file, os.O_RDONLY)
                try:
                    os.fsync(log)
                finally:
                    os.close(log)
        return head

    def head(self) -> Head:
        """The last record as ``head`` names it; of an unwritten log, none."""
        try:
            return _parsed((self.folder / "head").read_bytes()) or Head()
        except FileNotFoundError:
            return Head()
        except OSError as error:
            raise Unavailable(f"audit log {self.folder}: {error.strerror}") from error

    def read(self, file: str = "", start: int = 0) -> Iterator[Record]:
        """The whole records, oldest first, from a place in a file on; torn ones are left out.

        Raises:
            Unavailable: the log cannot be read.
        """
        try:
            for path in self.files():
                if path.name >= file:
                    yield from _records(path, start if path.name == file else 0)
        except OSError as error:
            raise Unavailable(f"audit log {self.folder}: {error.strerror}") from error

    def files(self) -> list[Path]:
        """The log's files, oldest first."""
        return sorted(self.folder.glob("*.log"))

    def verify(self) -> Verdict:
        """Follow the chain from the oldest file that is there to the head."""
        # Read first: what is added while we look is then more than it names, never less.
        head, faults = self.head(), []
        first, last, count, expected, headed = 0, 0, 0, None, head.sequence == 0
        for record in self.read():
            count += 1
            if expected is None:
                first = record.sequence
                expected = NOTHING if first == 1 else record.previous
            elif record.sequence != last + 1:
                faults.append(f"record {record.sequence} follows record {last}")
            if record.previous != expected:
                faults.append(f"before record {record.sequence}: altered, removed or put in")
            if record.sequence == head.sequence:
                headed = True
                if record.sha256 != head.sha256:
                    faults.append(f"record {record.sequence} is not the one that was written last")
            last, expected = record.sequence, record.sha256
        if not headed:
            faults.append(f"records up to {head.sequence} were written; the last here is {last}")
        return Verdict(first, last, count, tuple(faults))

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """Hold the lock, as the descriptor of ``head``."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._threads.acquire(timeout=self._patience):
                raise Unavailable(f"audit log {self.folder}: another thread holds it")
            try:
                descriptor = open_private(self.folder / "head", os.O_RDWR | os.O_CREAT)
                try:
                    self._lock(descriptor)
                    yield descriptor
                finally:
                    os.close(descriptor)
            finally:
                self._threads.release()
        except OSError as error:
            kind = OutOfSpace if error.errno in _FULL else Unavailable
            raise kind(f"audit log {self.folder}: {error.strerror}") from error

    def _lock(self, descriptor: int) -> None:
        until = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    reason = f"audit log {self.folder}: another process holds it"
                    raise Unavailable(reason) from None
                time.sleep(0.002)  # flock has no deadline of its own; an append takes less

    def _recovered(self, head_file: int) -> Head:
        """The head, after what a process left behind that died between record and head."""
        head = _parsed(os.pread(head_file, _HEAD_BYTES, 0))
        files = self.files()
        if head is None:  # a new log, or a head that was lost with the power
            head = Head()
            for record in self.read():
                head = _head(record)
        if not files:
            return Head(head.sequence, head.sha256)
        newest, size = files[-1], _size(files[-1])
        if newest.name == head.file and size == head.end:
            return head
        start = head.end if newest.name == head.file else 0
        if newest.name < head.file or size < start:
            # Records are gone: a new file, chained to what was, so that `verify` shows it.
            return Head(head.sequence, head.sha256)
        end = start
        for record in _records(newest, start):
            head, end = _head(record), record.end
        if size > end:
            os.truncate(newest, end)
        return Head(head.sequence, head.sha256, newest.name, end)


def _head(record: Record) -> Head:
    return Head(record.sequence, record.sha256, record.file, record.end)


def _records(path: Path, start: int) -> Iterator[Record]:
    end = start
    try:
        file = path.open("rb")
    except FileNotFoundError:  # archived a moment ago
        return
    with file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            previous, _, message = line[:-1].partition(b" ")
            yield Record(
                sequence_of(message),
                previous.decode(errors="replace"),
                sha256(line[:-1]).hexdigest(),
                message,
                path.name,
                end,
            )


def sequence_of(message: bytes) -> int:
    """The sequenceId of an RFC 5424 message; 0 where there is none."""
    _, _, rest = message[:512].partition(b'sequenceId="')
    digits = rest.partition(b'"')[0]
    return int(digits) if digits.isdigit() else 0


def open_private(path: Path, flags: int) -> int:
    """Open for the node alone; what root makes on its behalf stays the folder owner's."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        with suppress(OSError):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _write_all(descriptor: int, data: bytes, size: int) -> None:
    """Append all of it or nothing: a full disk takes the first half of a line."""
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _write_head(descriptor: int, head: Head) -> None:
    os.pwrite(descriptor, json.dumps(asdict(head)).ljust(_HEAD_BYTES).encode(), 0)


def _parsed(data: bytes) -> Head | None:
    try:
        return Head(**json.loads(data))
    except (ValueError, TypeError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
