"""Owns how audit records leave: RFC 5424 messages over TLS (RFC 5425), the local log as the spool.

Syslog has no answers. So each batch has a connection of its own, and counts as shipped when the
receiver has returned our close_notify, which it must send (RFC 5425 section 4.4) and can only send
after it has read what came before. Else the whole batch goes again: in order, at least once; a
receiver tells doubles by sequenceId. Refuses to know what the records say.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import structlog

from dicom_node.audit.trail import Record, Trail, open_private
from dicom_node.errors import ConfigurationError, NodeError, Unavailable
from dicom_node.settings import AuditSettings

FACILITY = 10
"""Security and authorisation messages (PS3.15 A.6)."""
MESSAGE_ID = "DICOM+RFC3881"
_SEVERITY = {"0": 5, "4": 4, "8": 3, "12": 2}  # notice, warning, error, critical
_BATCH_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"

T = TypeVar("T")

log = structlog.get_logger(__name__)


def message(sequence: int, at: datetime, host: str, pid: int, outcome: str, xml: bytes) -> bytes:
    """An audit message as RFC 5424 has it; PRI 85 for what went well, as PS3.15 A.6 wants it."""
    pri = FACILITY * 8 + _SEVERITY[outcome]
    name = "".join(c for c in host if "!" <= c <= "~")[:255] or "-"
    head = f"<{pri}>1 {at.isoformat()} {name} dicom-node {pid} {MESSAGE_ID}"
    return f'{head} [meta sequenceId="{sequence}"] '.encode() + _BOM + xml


@dataclass(frozen=True)
class Shipped:
    """How far shipping came: the last record that the receiver has, and where to go on.

    Attributes:
        at: when that was, ISO 8601; empty: never.
        fault: why the last attempt failed; empty: it did not.
    """

    sequence: int = 0
    file: str = ""
    end: int = 0
    at: str = ""
    fault: str = ""


class Shipper:
    """Ships what the log holds; one process at a time, whoever is first.

    Args:
        trail: the log.
        settings: receiver, certificates, timeouts.
    """

    def __init__(self, trail: Trail, settings: AuditSettings) -> None:
        self._trail, self._settings = trail, settings
        self._state = trail.folder / "shipped"

    def run(self, stop: threading.Event, report: Callable[[str], None], every: float = 1.0) -> None:
        """Keep the log on disk, and ship what is new, until ``stop``; never raises.

        Args:
            report: told why an attempt failed, and once (nothing) when one went well again.
            every: seconds between two looks; after a failure twice as long each time, up to
                ``audit.backoff_max``.
        """
        wait, failed = every, True  # perhaps the one before us did
        while not stop.wait(wait):
            try:
                self._trail.sync()
                if self._settings.receiver:
                    self.ship(stop)
                    if failed:
                        report("")
                wait, failed = every, False
            except NodeError as error:
                wait, failed = min(wait * 2, max(every, self._settings.backoff_max)), True
                log.warning("audit records not shipped", reason=str(error), again_in=wait)
                report(str(error))
            except Exception as error:  # the thread must outlive whatever it meets
                wait = max(every, self._settings.backoff_max)
                log.error("audit records not shipped", error=type(error).__name__)

    def ship(self, stop: threading.Event | None = None) -> int:
        """Ship all that waits; returns how many records went.

        Raises:
            ConfigurationError: no receiver is set, or a certificate cannot be used.
            Unavailable: the receiver did not take them; they wait.
        """
        if not self._settings.receiver:
            raise ConfigurationError("audit.receiver is not set: there is nobody to ship to")
        shipped = 0
        with self._alone() as ours:
            while ours and not (stop and stop.is_set()):
                records = self._batch()
                if not records:
                    break
                try:
                    self._send(records)
                except NodeError as error:
                    self._note(replace(self.shipped(), fault=str(error)))
                    raise
                last, now = records[-1], datetime.now(UTC).isoformat(timespec="seconds")
                self._note(Shipped(last.sequence, last.file, last.end, now))
                shipped += len(records)
        return shipped

    def shipped(self) -> Shipped:
        """How far it came; by any process."""
        try:
            return Shipped(**json.loads(self._state.read_bytes()))
        except FileNotFoundError:
            return Shipped()
        except (OSError, ValueError, TypeError) as error:
            raise Unavailable(f"{self._state}: {type(error).__name__}") from error

    def waiting(self) -> int:
        """Records that the receiver does not have yet."""
        return max(0, self._trail.head().sequence - self.shipped().sequence)

    def _batch(self) -> list[Record]:
        """The next records; only what is on disk, or a crash could give their numbers again."""
        head, done = self._trail.sync(), self.shipped()
        records, size = [], 0
        for record in self._trail.read(done.file, done.end):
            if record.sequence > head.sequence or size > _BATCH_BYTES:
                break
            records.append(record)
            size += len(record.message)
        return records

    def _send(self, records: list[Record]) -> None:
        host, port = self._settings.receiver, self._settings.port
        where = f"audit receiver {host}:{port}"
        context = tls_context(self._settings)
        framed = b"".join(b"%d %b" % (len(r.message), r.message) for r in records)
        try:
            with socket.create_connection((host, port), self._settings.timeout) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = _Tls(plain, context, host)
                peer.send(framed)
                peer.close(self._settings.confirm)
        except ssl.SSLCertVerificationError as error:
            reason = f"{where}: its certificate is not trusted: {error.verify_message}"
            raise Unavailable(reason) from error
        except OSError as error:
            reason = getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error)
            raise Unavailable(f"{where}: {reason or type(error).__name__}") from error

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        try:
            descriptor = open_private(self._trail.folder / "shipping", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # nothing was ever recorded
            yield False
            return
        except OSError as error:
            raise Unavailable(f"audit log {self._trail.folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)

    def _note(self, state: Shipped) -> None:
        """Atomic: half a note would ship everything anew."""
        waiting = self._state.with_suffix(".new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_private(waiting, flags), "w", encoding="utf-8") as file:
                json.dump(asdict(state), file)
                file.flush()
                os.fsync(file.fileno())
            waiting.replace(self._state)
        except OSError as error:
            raise Unavailable(f"{self._state}: {error.strerror}") from error


class _Tls:
    """TLS over a connected socket, by hand, for the sake of how it ends.

    `ssl.SSLSocket.unwrap` takes a fatal alert for a close_notify: under TLS 1.3 a receiver that
    refuses our certificate says so only after we have sent, and everything would seem to be there.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._drive(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._drive(partial(self._tls.write, left)) :]

    def close(self, confirm: bool) -> None:
        """Say that nothing follows; with ``confirm``, until the peer has said so, too.

        Raises:
            OSError: it said something else, or nothing.
        """
        with suppress(ssl.SSLWantReadError):  # nothing is read here: what comes is judged below
            self._tls.unwrap()
        self._sock.sendall(self._out.read())
        with suppress(ssl.SSLZeroReturnError):
            while confirm and self._drive(partial(self._tls.read, 1024)):
                pass  # a receiver has nothing to say (RFC 5425)

    def _drive(self, step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._sock.sendall(self._out.read())
                if data := self._sock.recv(1 << 16):
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                self._sock.sendall(self._out.read())
                return done


def tls_context(settings: AuditSettings) -> ssl.SSLContext:
    """TLS 1.2 or later; the receiver's certificate is always checked, ours shown if there is one.

    Raises:
        ConfigurationError: a file cannot be read, or is no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python's default may take a connection that breaks off for one that was closed.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key or None, _no_password)
    except (OSError, ValueError) as error:
        named = f"{settings.ca} {settings.certificate} {settings.key}".split()
        reason = getattr(error, "strerror", "") or str(error)
        raise ConfigurationError(f"audit certificates {', '.join(named)}: {reason}") from error
    return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal, where a service has none."""
    return ""
