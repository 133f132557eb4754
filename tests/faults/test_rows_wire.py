"""Rows 10 to 13 of the matrix: whatever comes over the wire, others are served.

With TLS, certificates and identities they stand in ``tests/integration/test_tls.py``.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from dicom_node.services import registry
from dicom_node.store.tables import Association, Instance
from tests import dicoms
from tests.dicoms import uid
from tests.faults.fuzz import Report, fuzz
from tests.faults.invariants import (
    CANARY,
    Ledger,
    Sent,
    i1,
    i4,
    i5,
    i6,
    memory,
    push,
    sent,
    slice_of,
)
from tests.faults.wire import (
    CREATE,
    DEFLATED,
    EXPLICIT,
    MPPS,
    SOME_DATA,
    VERIFICATION,
    Gone,
    Wire,
    associate_rq,
    command_set,
    echo_rq,
    echo_seconds,
    fragments,
    p_data,
    pdu,
    store_rq,
)
from tests.node import Running, in_parallel, running
from tests.servers import eventually, free_port

PATIENCE = 1.5
"""Seconds that the node gives a peer to finish what it began."""
USUAL = 15.0
"""Seconds that a study takes from its first byte until it is closed, on a busy machine."""
MB = 1 << 20


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node with short deadlines and few places."""
    with running(
        tmp_path_factory.mktemp("gate"),
        roles=["listen", "scheduler"],
        modalities=("STORESCU", "ELSEWHERE"),
        prepare=lambda node: _move(node, "ELSEWHERE"),
        listener={
            "port": free_port(),
            "reserve_mb": 16,
            "association_timeout": PATIENCE,
            "idle_timeout": PATIENCE,
            "maximum_connections": 64,
            "maximum_connections_per_address": 64,
            "maximum_associations": 24,
            "maximum_object_mb": 8,
        },
        worker={"lease": 4},
        broker={"url": "redis://127.0.0.1:1/0", "socket_timeout": 0.2},
    ) as node:
        yield node


def _move(node: Running, title: str) -> None:
    registry.remove_modality(node.node, title)
    registry.add_modality(node.node, title, ["192.0.2.0/24"])


def listener_of(node: Running) -> psutil.Process:
    (found,) = [p for p in node.processes("listen") if not p.children()]
    return found


@contextmanager
def others_are_served(node: Running, grown: int = 64 * MB) -> Iterator[list[float]]:
    """Echoes all along: each within a second; and the listener's memory does not grow."""
    seconds: list[float] = []
    stop = threading.Event()

    def echo() -> None:
        nonlocal peak
        while not seconds or not stop.wait(0.2):  # one at least, however soon it is over
            peak = max(peak, memory(process))
            try:
                seconds.append(echo_seconds(node.port, 10))
            except (Gone, AssertionError):
                seconds.append(float("inf"))

    process = listener_of(node)
    before = peak = memory(process)
    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join()
    assert seconds
    assert max(seconds) < 1, f"an echo took {max(seconds)} s"
    assert max(peak, memory(process)) - before < grown, "memory grew"


# 10: each attack gives the sockets that it opened, to be seen closed by the node


def silent(port: int) -> list[Wire]:
    return [Wire(port) for _ in range(30)]


def partial_headers(port: int) -> list[Wire]:
    wires = [Wire(port) for _ in range(50)]
    for wire in wires:
        wire.send(b"\x01\x00\x00")
    return wires


def a_byte_now_and_then(port: int) -> list[Wire]:
    wires = [Wire(port) for _ in range(5)]

    def dribble(wire: Wire) -> None:
        with suppress(Gone):
            for byte in associate_rq():
                wire.send(bytes((byte,)))
                time.sleep(0.2)

    for wire in wires:
        threading.Thread(target=dribble, args=(wire,), daemon=True).start()
    return wires


def four_gibibytes(port: int) -> list[Wire]:
    """Before the association and inside it."""
    early, late = Wire(port), Wire(port)
    early.send(pdu(1, b"\0" * 1000, 0xFFFFFFFF))
    assert late.associate()
    late.send(pdu(4, b"\0" * 1000, 0xFFFFFFF0))
    threading.Thread(target=_pour, args=(late, b"\0" * MB), daemon=True).start()
    return [early, late]


def endless_fragments(port: int) -> list[Wire]:
    """Of a command set, and of a data set."""
    wires = [Wire(port), Wire(port)]
    for wire, command in zip(wires, (True, False), strict=True):
        assert wire.associate()
        if not command:
            wire.send(p_data(3, store_rq(dicoms.CT, "1.2.3"), command=True))
        piece = p_data(3, b"\0" * 16000, command=command, last=False)
        threading.Thread(target=_pour, args=(wire, piece), daemon=True).start()
    return wires


def pipelined_flood(port: int) -> list[Wire]:
    """Requests without end whose answers nobody reads."""
    wire = Wire(port, contexts=((VERIFICATION, ("1.2.840.10008.1.2",)),))
    assert wire.associate()
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    many = p_data(1, echo_rq(), command=True) * 1000
    threading.Thread(target=_pour, args=(wire, many), daemon=True).start()
    return [wire]


def several_floods(port: int) -> list[Wire]:
    """One after the other: a single busy thread holds up the others longest."""
    wires = []
    for _ in range(4):
        wires += pipelined_flood(port)
        time.sleep(2)  # a flood keeps the node busy for so long, until nothing more can be sent
    return wires


def fragments_now_and_then(port: int) -> list[Wire]:
    """Of a byte each: of a command set, and of a data set."""
    wires = [Wire(port), Wire(port)]
    for wire, command in zip(wires, (True, False), strict=True):
        assert wire.associate()
        request = store_rq(dicoms.CT, "1.2.3")
        if not command:
            wire.send(p_data(3, request, command=True))
        piece = p_data(3, request[:1], command=command, last=False)
        threading.Thread(target=_pour, args=(wire, piece, 0.2), daemon=True).start()
    return wires


def _pour(wire: Wire, piece: bytes, pause: float = 0) -> None:
    """Until the node has enough."""
    until = time.monotonic() + 30
    with suppress(Gone):
        while time.monotonic() < until:
            wire.send(piece)
            time.sleep(pause)


@pytest.mark.parametrize(
    "attack",
    [
        silent,
        partial_headers,
        a_byte_now_and_then,
        four_gibibytes,
        endless_fragments,
        fragments_now_and_then,
        pipelined_flood,
        pytest.param(several_floods, marks=pytest.mark.slow),
    ],
    ids=lambda attack: attack.__name__.replace("_", " "),
)
def test_row_10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him(
    gate: Running, attack: Callable[[int], list[Wire]]
) -> None:
    patience = PATIENCE * 4 + 6
    with others_are_served(gate):
        wires = attack(gate.port)
        until = time.monotonic() + patience
        cut = [wire for wire in wires if _is_cut(wire, until)]
        assert len(cut) == len(wires), f"{len(wires) - len(cut)} of {len(wires)} are still held"
    for wire in wires:
        wire.sock.close()
    assert push(gate, slice_of("row 10", attack.__name__)) == [0]
    assert not i6(gate, USUAL)


def test_row_10_objects_that_nobody_waits_for_wait_in_the_network(gate: Running) -> None:
    """A flood of C-STOREs without a look at the answers: each is stored before the next is read."""
    images = [slice_of("row 10 flood", n, pixels=dicoms.phantom((256, 256))) for n in range(20)]
    wire = Wire(gate.port)

    def flood() -> None:
        with suppress(Gone):
            while True:
                for image in images:
                    wire.request(image.sop_class, image.uid, image.data)

    thread = threading.Thread(target=flood)
    with others_are_served(gate, grown=32 * MB):
        assert wire.associate()
        thread.start()
        time.sleep(3)  # of flood, while echoes are timed
        wire.sock.shutdown(socket.SHUT_RDWR)
        thread.join()
    wire.sock.close()
    assert gate.rows(Instance, Instance.sop_instance_uid == images[0].uid)
    assert not i6(gate, USUAL)


def _is_cut(wire: Wire, until: float) -> bool:
    """Whether the node has ended it: by the socket's state, for what it said may never be read."""
    while time.monotonic() < until:
        state = wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state not in (1, 4, 5):  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2: tcp_states.h
            return True
        time.sleep(0.05)
    return False


# 11


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_row_11_mutated_pdus_and_data_sets_end_no_thread(gate: Running, count: int) -> None:
    """As many as a test may take; ``make fuzz`` sends a hundred thousand."""
    with others_are_served(gate):
        report: Report = fuzz(gate, count, seed=11)
    assert not report.problems, report
    assert report.sent >= count
    assert report.statuses.get("0x0000", 0) + report.statuses.get("0xC001", 0) > 0, "none got in"


# 12


def refused_or_not(node: Running, instance: Sent, syntax: str) -> int | None:
    """The status of one instance in a transfer syntax; None where the node hung up."""
    with Wire(node.port, contexts=((instance.sop_class, (syntax,)),)) as wire:
        assert wire.associate()
        try:
            status = wire.store(instance.sop_class, instance.uid, instance.data)
        except Gone:
            return None
        wire.release()
        return status


@pytest.mark.slow
def test_row_12_a_data_set_that_inflates_without_end_is_refused(gate: Running) -> None:
    """Eight of them at once take no more memory than one."""
    instance = slice_of("row 12 deflate")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(instance.data + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 3 << 30))
    zeros = bytes(32 * MB)
    bomb += b"".join(squeeze.compress(zeros) for _ in range(72)) + squeeze.flush()
    assert len(bomb) < 8 * MB, "the point is that it is small"
    bad = Sent(instance.sop_class, instance.uid, "", bomb)
    with others_are_served(gate, grown=640 * MB):
        answers = in_parallel(*[lambda: refused_or_not(gate, bad, DEFLATED)] * 8)
    assert answers == [0xC002] * 8
    assert gate.logged("instance refused", sop_instance_uid=instance.uid)


def _items(number: int, tag: int = 0x52009230) -> bytes:
    """A sequence of so many empty items, by default of functional groups a frame."""
    begin = struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF)
    return begin + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * number + _END_OF_ITEMS


_END_OF_ITEMS = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize(
    ("number", "status", "grown"),
    [(400_000, 0, 64 * MB), (4_000_000, 0xC002, 256 * MB)],
    ids=["as many as may be", "more"],
)
def test_row_12_items_that_nobody_asks_for_cost_nobody_time_or_memory(
    gate: Running, number: int, status: int, grown: int
) -> None:
    """A few thousand bytes, once deflated. Four at once take no more memory than one."""
    instance = slice_of("row 12 items", number)
    at = instance.data.index(b"\xe0\x7f\x10\x00")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(instance.data[:at] + _items(number) + instance.data[at:])
    instance.data = bomb + squeeze.flush()
    with others_are_served(gate, grown):
        answers = in_parallel(*[lambda: refused_or_not(gate, instance, DEFLATED)] * 4)
    assert answers == [status] * 4


def test_row_12_a_message_of_items_without_end_is_refused(gate: Running) -> None:
    command = command_set(
        sop_class=MPPS, field=CREATE, message=1, data_set=SOME_DATA, sop_instance=uid("row 12 step")
    )
    wire = Wire(gate.port, contexts=((MPPS, (EXPLICIT,)),))
    with others_are_served(gate, grown=128 * MB), wire:
        assert wire.associate()
        wire.send(p_data(1, command, command=True))
        wire.send(b"".join(fragments(1, _items(1_900_000, 0x00400340))))
        assert wire.status() == 0x0110
        wire.release()
    assert gate.logged("message refused", reason="more than 500000 elements and items")


@pytest.mark.parametrize("depth", [70, 300])
def test_row_12_what_is_nested_beyond_reason_is_refused(gate: Running, depth: int) -> None:
    """Beyond what the node takes, and beyond what Python's own recursion does.

    Written by hand: pydicom's writer fails at the greater depth, with a message of gigabytes.
    """
    begin = struct.pack("<HH2sHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    instance = slice_of("row 12 deep")
    instance.data += begin * depth + end * depth
    assert push(gate, instance) == [0xC001]


@pytest.mark.parametrize("path", ["../../../../escaped", "1.2/../../escaped", "1.2.3\n{}"])
def test_row_12_a_uid_that_is_no_uid_leads_nowhere(gate: Running, path: str) -> None:
    """In the data set and in the request."""
    ds = dicoms.ct_slice(study_uid=uid("row 12 path"), sop_uid=uid("row 12", path))
    instance = sent(ds)
    assert push(gate, Sent(instance.sop_class, path, "", instance.data)) == [0xA900]
    ds.SeriesInstanceUID = path
    assert push(gate, sent(ds)) == [0xA900]
    assert list(gate.folder.parent.rglob("*escaped*")) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"PatientName": f'{CANARY}\n{{"event": "forged"}}'},
        {"PatientName": f"{CANARY}\r\x1b[2J"},
        {"SpecificCharacterSet": "ISO_IR 9999", "InstitutionName": "\xff\xfe\xfd"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "SeriesDescription": "\x1b$B\x1b(B\x1b"},
    ],
    ids=["newline", "escape", "unknown charset", "broken charset"],
)
def test_row_12_odd_text_is_kept_as_it_came_and_forges_no_log_line(
    gate: Running, odd: dict[str, Any]
) -> None:
    ledger, name = Ledger(), repr(odd)
    given = {k: v for k, v in odd.items() if k != "PatientName"}
    ds = dicoms.ct_slice(study_uid=uid("row 12", name), sop_uid=uid("row 12 image", name), **given)
    instance = sent(ds)
    if "PatientName" in odd:
        text = (
            odd["PatientName"].encode().ljust(len(odd["PatientName"]) + len(odd["PatientName"]) % 2)
        )
        old = CANARY.encode() + b"\0" * (len(CANARY) % 2)
        old = old if old in instance.data else CANARY.encode()
        at = instance.data.index(old)
        head = instance.data[: at - 2] + struct.pack("<H", len(text)) + text
        instance.data = head + instance.data[at + len(old) :]
    assert push(gate, instance, ledger=ledger) == [0]
    assert not i1(gate, ledger.acknowledged)
    gate.closed(instance.study)
    assert "forged" not in gate.log_text()


# 13


@pytest.mark.parametrize(
    ("calling", "called", "rejection"),
    [
        (b"STRANGER", b"DICOMNODE", (1, 1, 3)),
        (b"ELSEWHERE", b"DICOMNODE", (1, 1, 3)),
        (b"STORESCU", b"OTHER", (1, 1, 7)),
        (b"STORESCU\nforged", b"DICOMNODE", None),
    ],
    ids=["unknown title", "unknown address", "other called title", "newline"],
)
def test_row_13_who_does_not_belong_is_rejected_and_leaves_no_row(
    gate: Running, calling: bytes, called: bytes, rejection: tuple[int, ...] | None
) -> None:
    before = [row.id for row in gate.rows(Association)]
    wire = Wire(gate.port, calling=calling, called=called)
    with wire, suppress(Gone):  # what is no AE title at all may be hung up on
        assert not wire.associate()
        assert wire.rejection == rejection or not rejection
    assert [row.id for row in gate.rows(Association)] == before
    if rejection:
        eventually(
            lambda: gate.logged(
                "association rejected", rejection=list(rejection), calling=calling.decode()
            ),
            10,
        )


def test_the_rows_above_left_one_line_an_event_and_named_no_patient(gate: Running) -> None:
    """I4 and I5 over all of them; runs last in this file."""
    for line in gate.log_text().splitlines():
        assert isinstance(json.loads(line), dict), line
    assert not i5(gate)
    assert not i4(gate)
    listener = listener_of(gate)
    eventually(lambda: listener.num_threads() < 12, 30, "the threads of dead peers end")
    assert {row.sop_instance_uid for row in gate.rows(Instance)} >= {uid("row 10", "silent")}
