"""Owns DIMSE messages as they travel: fragments into messages, and a C-STORE's answer into PDUs.

Pure: no socket, no clock, no pynetdicom. Refuses to know what a data set means, and to hold one:
whoever is told of a command gets its data set piece by piece.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

COMMAND_CAP: Final = 1 << 16
"""Bytes of one command set."""
EMPTY_CAP: Final = 64
"""Fragments without content in one message; some senders close a message with one."""

C_STORE_RQ: Final = 0x0001
_C_STORE_RSP: Final = 0x8001
_NO_DATA_SET: Final = 0x0101  # PS3.7 E.1: anything else means that a data set follows
_IS_COMMAND, _IS_LAST = 1, 2  # PS3.8 E.2: the message control header

# Elements of group 0000 (PS3.7 table E.1-1)
AFFECTED_SOP_CLASS_UID: Final = 0x0002
COMMAND_FIELD: Final = 0x0100
MESSAGE_ID: Final = 0x0110
_RESPONDED_TO: Final = 0x0120
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_ERROR_COMMENT: Final = 0x0902
AFFECTED_SOP_INSTANCE_UID: Final = 0x1000


class ProtocolBreach(Exception):
    """The peer sent what no conforming peer sends; the association ends."""


@dataclass(frozen=True)
class Command:
    """A command set: its bytes as they came, and its values by element number."""

    encoded: bytes
    values: Mapping[int, bytes]

    @classmethod
    def parse(cls, encoded: bytes) -> Command:
        """Read implicit VR little endian (PS3.7 6.3.1).

        Raises:
            ProtocolBreach: it is no command set.
        """
        values, at = {}, 0
        while at < len(encoded):
            try:
                group, element, length = struct.unpack_from("<HHL", encoded, at)
            except struct.error:
                raise ProtocolBreach("command set breaks off") from None
            at += 8
            if group or length > len(encoded) - at:
                raise ProtocolBreach("no command set")
            values[element] = encoded[at : at + length]
            at += length
        return cls(encoded, values)

    def number(self, element: int) -> int | None:
        """A value of VR US; None where it is absent or malformed."""
        value = self.values.get(element, b"")
        return int.from_bytes(value, "little") if len(value) == 2 else None

    def uid(self, element: int) -> str | None:
        """A value of VR UI as it came, without its padding; None where it is absent or empty."""
        value = self.values.get(element, b"").rstrip(b"\0 ")
        return value.decode("ascii", "replace") or None

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows."""
        return self.number(_DATA_SET_TYPE) != _NO_DATA_SET


class Sink(Protocol):
    """Takes one message's data set, and serves the message at its end."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes; the view is good during the call only."""
        ...

    def end(self) -> None:
        """The message is complete; called at once where it has no data set."""
        ...

    def drop(self) -> None:
        """The message will never be complete."""
        ...


class Assembly:
    """Puts messages together from the fragments of one association.

    Args:
        begin: called with the presentation context's identifier and each complete command.
    """

    def __init__(self, begin: Callable[[int, Command], Sink]) -> None:
        self._begin = begin
        self._command = bytearray()
        self._sink: Sink | None = None
        self._context: int | None = None
        self._empty = 0

    @property
    def under_way(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._context is not None

    def take(self, values: memoryview) -> None:
        """Take the presentation data values of one P-DATA-TF PDU (PS3.8 9.3.5.1).

        Raises:
            ProtocolBreach: they are malformed, or no part of a message.
        """
        if not values:
            raise ProtocolBreach("P-DATA without a value")
        at, size = 0, len(values)
        while at < size:
            if size - at < 6:
                raise ProtocolBreach("presentation data value breaks off")
            length, context, control = struct.unpack_from(">LBB", values, at)
            if length < 2 or length > size - at - 4:
                raise ProtocolBreach("presentation data value of impossible length")
            end = at + 4 + length
            self._take(context, control, values[at + 6 : end])
            at = end

    def drop(self) -> None:
        """Tell the sink of a message that broke off."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.drop()

    def _take(self, context: int, control: int, piece: memoryview) -> None:
        last = bool(control & _IS_LAST)
        if not piece and not last:
            self._empty += 1
            if self._empty > EMPTY_CAP:
                raise ProtocolBreach("empty fragments without end")
        if self._context not in (None, context):
            raise ProtocolBreach("message changes its presentation context")
        self._context = context
        if bool(control & _IS_COMMAND) is (self._sink is not None):
            raise ProtocolBreach("command and data set out of order")
        if self._sink is not None:
            self._sink.write(piece)
            if last:
                self._end(self._sink)
            return
        if len(self._command) + len(piece) > COMMAND_CAP:
            raise ProtocolBreach("command set too long")
        self._command += piece
        if last:
            command = Command.parse(bytes(self._command))
            self._command.clear()
            sink = self._begin(context, command)
            if command.has_data_set:
                self._sink = sink
            else:
                self._end(sink)

    def _end(self, sink: Sink) -> None:
        self._sink, self._context, self._empty = None, None, 0
        sink.end()


def store_response(request: Command, status: int, comment: str = "") -> bytes:
    """The command set that answers a C-STORE (PS3.7 9.3.1.2).

    Args:
        request: what is answered; its UIDs are repeated byte for byte.
        status: of PS3.4 B.2.3.
        comment: ErrorComment, ASCII of at most 64 characters; none when empty.
    """
    values = [
        (AFFECTED_SOP_CLASS_UID, request.values.get(AFFECTED_SOP_CLASS_UID, b"")),
        (COMMAND_FIELD, _C_STORE_RSP.to_bytes(2, "little")),
        (_RESPONDED_TO, request.values[MESSAGE_ID]),
        (_DATA_SET_TYPE, _NO_DATA_SET.to_bytes(2, "little")),
        (_STATUS, status.to_bytes(2, "little")),
        (_ERROR_COMMENT, (comment + " " * (len(comment) % 2)).encode("ascii")),
        (AFFECTED_SOP_INSTANCE_UID, request.values.get(AFFECTED_SOP_INSTANCE_UID, b"")),
    ]
    body = b"".join(
        struct.pack("<HHL", 0, element, len(value)) + value for element, value in values if value
    )
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def command_pdus(context: int, command: bytes, maximum: int) -> Iterator[bytes]:
    """P-DATA-TF PDUs of a command set without a data set.

    Args:
        maximum: bytes that the peer takes of a PDU's variable field; 0: any (PS3.8 D.1).
    """
    room = max(maximum - 6, 1) if maximum else len(command)
    for at in range(0, len(command), room):
        piece = command[at : at + room]
        control = _IS_COMMAND | (_IS_LAST if at + room >= len(command) else 0)
        head = struct.pack(">BBLLBB", 4, 0, len(piece) + 6, len(piece) + 2, context, control)
        yield head + piece
