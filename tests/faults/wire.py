"""Speaks DICOM's upper layer byte by byte, so that a test can say what no library would.

with Wire(port) as wire:
    assert wire.associate()
    assert wire.store(cls, uid, data) == 0x0000

PS3.8 section 9.3 (PDUs), PS3.7 section 6.3 and annex E (command sets, Implicit VR Little Endian).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from tests import dicoms

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50"
VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT, MPPS = "1.2.840.10008.1.20.1", "1.2.840.10008.3.1.2.3.3"
CONTEXTS = (
    (VERIFICATION, (IMPLICIT,)),
    (dicoms.CT, (EXPLICIT,)),
    (dicoms.DX_PRESENTATION, (EXPLICIT,)),
)
ECHO, STORE, ACTION, CREATE = 0x0030, 0x0001, 0x0130, 0x0140
PATIENCE = 30.0


class Gone(Exception):
    """The node closed the connection, or aborted, instead of answering."""


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Any PDU; ``length`` may lie."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def associate_rq(
    contexts: Sequence[tuple[str, Sequence[str]]] = CONTEXTS,
    calling: bytes = b"STORESCU",
    called: bytes = b"DICOMNODE",
) -> bytes:
    """A-ASSOCIATE-RQ; presentation contexts get 1, 3, 5…"""
    items = _item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (abstract, syntaxes) in enumerate(contexts):
        inside = _item(0x30, abstract.encode())
        inside += b"".join(_item(0x40, syntax.encode()) for syntax in syntaxes)
        items += _item(0x20, bytes((2 * number + 1, 0, 0, 0)) + inside)
    user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3.4")
    head = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16), calling.ljust(16))
    return pdu(1, head + items + _item(0x50, user))


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def p_data(context: int, data: bytes, *, command: bool, last: bool = True) -> bytes:
    """One P-DATA-TF with one PDV."""
    control = (1 if command else 0) | (2 if last else 0)
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


def command_set(**elements: int | str) -> bytes:
    """A command set of these elements, by the names below; the group length comes first."""
    body = b""
    for name, value in sorted(elements.items(), key=lambda pair: ELEMENTS[pair[0]]):
        data = struct.pack("<H", value) if isinstance(value, int) else value.encode()
        data += b"\0" * (len(data) % 2)
        body += struct.pack("<HHL", 0, ELEMENTS[name], len(data)) + data
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


ELEMENTS = {
    "sop_class": 0x0002,
    "field": 0x0100,
    "message": 0x0110,
    "priority": 0x0700,
    "data_set": 0x0800,
    "status": 0x0900,
    "sop_instance": 0x1000,
    "requested_class": 0x0003,
    "requested_instance": 0x1001,
    "action": 0x1008,
}
NO_DATA, SOME_DATA = 0x0101, 0x0001


def store_rq(sop_class: str, sop_instance: str, message: int = 1) -> bytes:
    return command_set(
        sop_class=sop_class,
        field=STORE,
        message=message,
        priority=0,
        data_set=SOME_DATA,
        sop_instance=sop_instance,
    )


def echo_rq(message: int = 1) -> bytes:
    return command_set(sop_class=VERIFICATION, field=ECHO, message=message, data_set=NO_DATA)


def fragments(context: int, data: bytes, size: int = 16000) -> Iterator[bytes]:
    """A data set as P-DATA-TF PDUs."""
    for at in range(0, max(len(data), 1), size):
        yield p_data(context, data[at : at + size], command=False, last=at + size >= len(data))


def encoded(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """A data set without file meta information."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, UID(syntax).is_implicit_VR
    write_dataset(stream, ds)
    return stream.getvalue()


@dataclass
class Wire:
    """One connection as a modality; statuses come back, `Gone` is raised where none does."""

    port: int
    patience: float = PATIENCE
    contexts: Sequence[tuple[str, Sequence[str]]] = CONTEXTS
    calling: bytes = b"STORESCU"
    called: bytes = b"DICOMNODE"

    def __post_init__(self) -> None:
        self.messages = 0
        try:
            self.sock = socket.create_connection(("127.0.0.1", self.port), self.patience)
        except OSError as error:
            raise Gone(str(error)) from error
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Gone(str(error)) from error

    def associate(self) -> bool:
        """Whether it was accepted; `rejection` tells why not."""
        self.send(associate_rq(self.contexts, self.calling, self.called))
        kind, body = self.read()
        self.rejection = tuple(body[1:4]) if kind == 3 else None
        return kind == 2

    def store(self, sop_class: str, sop_instance: str, data: bytes) -> int:
        """C-STORE; the status."""
        self.request(sop_class, sop_instance, data)
        return self.status()

    def request(self, sop_class: str, sop_instance: str, data: bytes) -> None:
        """C-STORE without waiting for the answer."""
        self.messages += 1
        context = self.context(sop_class)
        command = store_rq(sop_class, sop_instance, self.messages)
        self.send(p_data(context, command, command=True) + b"".join(fragments(context, data)))

    def context(self, sop_class: str) -> int:
        return next(
            2 * n + 1 for n, (abstract, _) in enumerate(self.contexts) if abstract == sop_class
        )

    def echo(self) -> int:
        self.messages += 1
        command = echo_rq(self.messages)
        self.send(p_data(self.context(VERIFICATION), command, command=True))
        return self.status()

    def status(self) -> int:
        """Of the next response."""
        command = b""
        while True:
            kind, body = self.read()
            if kind != 4:
                raise Gone(f"PDU of type {kind}")
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">LBB", body, at)
                if control & 1:
                    command += body[at + 6 : at + 4 + length]
                    if control & 2:
                        return _status_in(command)
                at += 4 + length

    def release(self) -> None:
        self.send(pdu(5, b"\0" * 4))
        self.read()

    def abort(self) -> None:
        self.send(pdu(7, b"\0" * 4))

    def read(self) -> tuple[int, bytes]:
        """The next PDU: its type and body."""
        kind, _, length = struct.unpack(">BBL", self._exactly(6))
        return kind, self._exactly(length)

    def until_closed(self, patience: float) -> bool:
        """Whether the node ends the connection in time; what it says is thrown away."""
        until = time.monotonic() + patience
        with suppress(OSError):
            while (left := until - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.sock.recv(65536):
                    return True
            return False
        return time.monotonic() < until

    def _exactly(self, size: int) -> bytes:
        data = b""
        self.sock.settimeout(self.patience)
        try:
            while len(data) < size:
                if not (more := self.sock.recv(size - len(data))):
                    raise Gone("closed")
                data += more
        except OSError as error:
            raise Gone(str(error) or type(error).__name__) from error
        return data


def _status_in(command: bytes) -> int:
    at = 0
    while at + 8 <= len(command):
        _, element, length = struct.unpack_from("<HHL", command, at)
        if element == ELEMENTS["status"]:
            return int(struct.unpack_from("<H", command, at + 8)[0])
        at += 8 + length
    raise Gone("a response without status")


def echo_seconds(port: int, patience: float = PATIENCE) -> float:
    """How long a new association and its C-ECHO take."""
    started = time.monotonic()
    with Wire(port, patience, contexts=((VERIFICATION, (IMPLICIT,)),)) as wire:
        assert wire.associate(), "rejected"
        assert wire.echo() == 0
        wire.release()
    return time.monotonic() - started
