from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import dimse_messages
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import P_DATA_TF

from dicom_node.dimse.messages import (
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    COMMAND_CAP,
    COMMAND_FIELD,
    EMPTY_CAP,
    MESSAGE_ID,
    Assembly,
    Command,
    ProtocolBreach,
    command_pdus,
    store_response,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
Value = tuple[int, int, bytes]  # presentation context, control header, content
Message = tuple[int, bytes, bytes | None]  # presentation context, command, data set

quick = settings(max_examples=150, deadline=None)


@dataclass
class Sink:
    """Notes what it is given, and when it ends."""

    context: int
    command: bytes
    ended: list[Message] = field(repr=False)
    data: bytearray = field(default_factory=bytearray)
    has_data: bool = False
    dropped: bool = False

    def write(self, piece: memoryview) -> None:
        self.has_data = True
        self.data += piece

    def end(self) -> None:
        data = bytes(self.data) if self.has_data else None
        self.ended.append((self.context, self.command, data))

    def drop(self) -> None:
        self.dropped = True


def assembled() -> tuple[Assembly, list[Message], list[Sink]]:
    ended: list[Message] = []
    sinks: list[Sink] = []

    def begin(context: int, command: Command) -> Sink:
        sinks.append(Sink(context, command.encoded, ended))
        return sinks[-1]

    return Assembly(begin), ended, sinks


def command(has_data_set: bool, number: int = 1, uid: str = "1.2.3") -> bytes:
    request = C_STORE()
    request.MessageID, request.Priority = number, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(CT), UID(uid)
    request.DataSet = BytesIO(b"xx") if has_data_set else None
    message = dimse_messages.C_STORE_RQ()
    message.primitive_to_message(request)
    first = next(iter(message.encode_msg(1, 0)))
    return bytes(first.presentation_data_value_list[0][1][1:])


def encoded(values: Sequence[Value]) -> memoryview:
    """The variable field of one P-DATA-TF."""
    return memoryview(
        b"".join(struct.pack(">LBB", len(v) + 2, context, c) + v for context, c, v in values)
    )


@st.composite
def fragments(draw: st.DrawFn, content: bytes) -> list[bytes]:
    """The content, cut anywhere; empty pieces too."""
    cuts = draw(st.lists(st.integers(0, len(content)), max_size=6).map(sorted))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[list[Value]]]:
    """Messages, and the values that carry them, dealt to PDUs at will."""
    messages: list[Message] = []
    values: list[Value] = []
    for number in range(draw(st.integers(1, 4))):
        context = draw(st.sampled_from([1, 3, 255]))
        data = draw(st.none() | st.binary(max_size=300))
        told = command(data is not None, number + 1)
        messages.append((context, told, data))
        for is_command, content in ((1, told), (0, data)):
            if content is not None:
                pieces = draw(fragments(content))
                last = len(pieces) - 1
                values += [
                    (context, is_command | (2 if n == last else 0), piece)
                    for n, piece in enumerate(pieces)
                ]
    cuts = draw(st.lists(st.integers(1, len(values)), max_size=8).map(lambda c: sorted(set(c))))
    pdus = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True) if a < b]
    return messages, pdus


@quick
@given(conversations())
def test_messages_are_the_same_however_they_are_cut(
    told: tuple[list[Message], list[list[Value]]],
) -> None:
    messages, pdus = told
    assembly, ended, _ = assembled()
    for pdu in pdus:
        assembly.take(encoded(pdu))
    assert ended == messages


@quick
@given(conversations(), st.data())
def test_whatever_comes_is_a_message_or_a_breach(
    told: tuple[list[Message], list[list[Value]]], data: st.DataObject
) -> None:
    _, pdus = told
    stream = bytearray(b"".join(encoded(pdu) for pdu in pdus))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    assembly, _, sinks = assembled()
    try:
        assembly.take(memoryview(bytes(stream)))
    except ProtocolBreach:
        assembly.drop()
    assert sum(len(sink.data) for sink in sinks) <= len(stream)


@quick
@given(st.binary(max_size=200))
def test_random_bytes_are_a_breach_or_nothing(values: bytes) -> None:
    assembly, ended, _ = assembled()
    try:
        assembly.take(memoryview(values))
    except ProtocolBreach:
        assert ended == []


@quick
@given(st.binary(max_size=100))
def test_a_command_is_parsed_or_refused(encoded_command: bytes) -> None:
    try:
        parsed = Command.parse(encoded_command)
    except ProtocolBreach:
        return
    assert sum(8 + len(value) for value in parsed.values.values()) <= len(encoded_command)


def test_a_command_tells_its_numbers_and_uids() -> None:
    parsed = Command.parse(command(True, number=7, uid="1.2.345"))
    assert parsed.number(COMMAND_FIELD) == C_STORE_RQ
    assert parsed.number(MESSAGE_ID) == 7
    assert parsed.uid(AFFECTED_SOP_INSTANCE_UID) == "1.2.345"
    assert parsed.has_data_set
    assert not Command.parse(command(False)).has_data_set
    assert Command.parse(b"").uid(AFFECTED_SOP_INSTANCE_UID) is None


@pytest.mark.parametrize(
    ("pdus", "reason"),
    [
        ([[]], "without a value"),
        ([[(1, 2, b"data first")]], "out of order"),
        ([[(1, 3, command(True)), (1, 3, command(True))]], "out of order"),
        ([[(1, 3, command(True)), (3, 2, b"")]], "presentation context"),
        ([[(1, 1, b"\0" * 60_000)]] * 2, "command set too long"),
        ([[(1, 1, b"")]] * (EMPTY_CAP + 1), "without end"),
        ([[(1, 3, command(True))], *[[(1, 0, b"")]] * (EMPTY_CAP + 1)], "without end"),
        ([[(1, 3, b"\x08\0\x08\0\0\0\0\0")]], "no command set"),
        ([[(1, 3, b"\0\0")]], "breaks off"),
    ],
)
def test_what_no_conforming_peer_sends_is_a_breach(pdus: list[list[Value]], reason: str) -> None:
    assembly, _, _ = assembled()
    with pytest.raises(ProtocolBreach, match=reason):
        for pdu in pdus:
            assembly.take(encoded(pdu))
    assert COMMAND_CAP < 120_000


@pytest.mark.parametrize("length", [0, 1, 99, 0xFFFFFFFF])
def test_a_value_of_impossible_length_is_a_breach(length: int) -> None:
    assembly, _, _ = assembled()
    with pytest.raises(ProtocolBreach, match="impossible length"):
        assembly.take(memoryview(struct.pack(">LBB", length, 1, 3) + b"abc"))


def test_a_message_that_breaks_off_is_dropped() -> None:
    assembly, ended, sinks = assembled()
    assembly.take(encoded([(1, 3, command(True)), (1, 0, b"half")]))
    assembly.drop()
    assembly.drop()
    assert (ended, [sink.dropped for sink in sinks]) == ([], [True])


@quick
@given(
    status=st.sampled_from([0, 0xA700, 0xC001]),
    comment=st.text(st.characters(min_codepoint=32, max_codepoint=91), max_size=64),
    uid=st.sampled_from(["1.2.3", "1.2.34", "2." + "1" * 62]),
    maximum=st.sampled_from([0, 7, 16, 100, 16384]),
)
def test_an_answer_is_what_pynetdicom_reads(
    status: int, comment: str, uid: str, maximum: int
) -> None:
    request = Command.parse(command(True, number=9, uid=uid))
    message = dimse_messages.DIMSEMessage()
    for pdu in command_pdus(5, store_response(request, status, comment), maximum):
        assert not maximum or len(pdu) - 6 <= maximum
        decoded = P_DATA_TF()
        decoded.decode(pdu)
        done = message.decode_msg(decoded.to_primitive())
    assert done
    assert isinstance(message, dimse_messages.C_STORE_RSP)
    answer = message.message_to_primitive()
    assert (answer.Status, answer.MessageIDBeingRespondedTo) == (status, 9)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (CT, uid)
    assert (message.command_set.get("ErrorComment") or "") == comment.rstrip(" ")
