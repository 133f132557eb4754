"""The listener on a real socket, against DCMTK, pynetdicom and peers that mean no good."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu import A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, P_DATA_TF

from dicom_node.dimse.contexts import MPPS, STORAGE_COMMITMENT, VERIFICATION
from dicom_node.dimse.transport import RequestorAE
from dicom_node.errors import (
    ConflictingInstance,
    IdentifierProblem,
    OutOfSpace,
    Unavailable,
    UnreadableDataSet,
)
from dicom_node.listener.server import Door, bind, serve
from dicom_node.settings import ListenerSettings
from tests import dicoms
from tests.faults.wire import Wire, associate_rq, fragments, p_data, store_rq
from tests.listening import NODE, MemoryInbox, listening

CT = dicoms.CT
SILENT = b""
PARTIAL_HEADER = b"\x01\x00\x00"
PARTIAL_BODY = struct.pack(">BBL", 1, 0, 500) + b"\0" * 20
FOUR_GIB = struct.pack(">BBL", 1, 0, 0xFFFFFFFF)


def needs(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"DCMTK's {tool} is not installed")
    return path


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@contextmanager
def associated(
    port: int,
    *contexts: tuple[str, list[str]],
    called: str = NODE,
    calling: str = "ANY-SCU",
    note: Callable[[Any], None] = lambda _: None,
) -> Iterator[Association]:
    ae = RequestorAE(calling, 10)  # pynetdicom's own loses an answer now and then on a busy machine
    for sop_class, syntaxes in contexts or ((VERIFICATION, []), (CT, [])):
        ae.add_requested_context(sop_class, syntaxes or [ExplicitVRLittleEndian])
    handlers: Any = [(evt.EVT_PDU_RECV, note)]
    association = ae.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers)
    try:
        yield association
    finally:
        association.release()


def echo_seconds(port: int) -> float:
    started = time.monotonic()
    with associated(port) as association:
        assert association.is_established
        assert association.send_c_echo().Status == 0x0000
    return time.monotonic() - started


def rejection(port: int, **names: str) -> tuple[int, int, int]:
    """What the answer says; as PDU, for pynetdicom calls one that comes very soon an abort."""
    answers: list[Any] = []
    with associated(port, note=lambda event: answers.append(event.pdu), **names) as association:
        assert not association.is_established
    answer = next(pdu for pdu in answers if isinstance(pdu, A_ASSOCIATE_RJ))
    return answer.result, answer.source, answer.reason_diagnostic


def ct_file(folder: Path, number: int = 1, **options: Any) -> Path:
    return dicoms.save(dicoms.ct_slice(number=number, **options), folder / f"{number}.dcm")


def raw_store(association: Association, data: bytes, **changes: Any) -> int | None:
    """A C-STORE as told; pynetdicom's own sender would refuse to send nonsense."""
    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CT, "1.2.3"
    request.DataSet = BytesIO(data)
    for name, value in changes.items():
        setattr(request, name, value)
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == CT)
    assert context.context_id is not None
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return None if answer is None else answer.Status


# What comes in


def test_dcmtk_can_verify_and_store(tmp_path: Path) -> None:
    echoscu, storescu, inbox = needs("echoscu"), needs("storescu"), MemoryInbox()
    series = dicoms.ct_series(3)
    files = [dicoms.save(ds, tmp_path / f"{i}.dcm") for i, ds in enumerate(series)]
    with listening(inbox) as port:
        subprocess.run([echoscu, "-aec", NODE, "127.0.0.1", str(port)], check=True, timeout=10)
        subprocess.run(
            [storescu, "-aec", NODE, "127.0.0.1", str(port), *files], check=True, timeout=10
        )
        assert until(lambda: len(inbox.closed) == 2)
    assert [r.sop_instance_uid for r in inbox.received] == [ds.SOPInstanceUID for ds in series]
    assert inbox.opened[1] == ("STORESCU", NODE, "127.0.0.1")
    assert inbox.closed == [(1, False), (2, False)]
    assert {r.association for r in inbox.received} == {2}


def test_the_bytes_of_the_sender_arrive_unchanged(tmp_path: Path) -> None:
    inbox, path = MemoryInbox(), ct_file(tmp_path)
    _, start = split_dataset(path)
    with listening(inbox) as port, associated(port) as association:
        assert association.send_c_store(path).Status == 0x0000
    (reception,) = inbox.received
    assert reception.dataset == path.read_bytes()[start:]
    assert reception.transfer_syntax == ExplicitVRLittleEndian
    assert reception.sop_class_uid == CT


@pytest.mark.parametrize(
    "offered",
    [
        [JPEG2000Lossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian],
        [ImplicitVRLittleEndian, ExplicitVRLittleEndian],
    ],
)
def test_the_senders_first_transfer_syntax_is_taken(offered: list[str]) -> None:
    with listening(MemoryInbox()) as port, associated(port, (CT, offered)) as association:
        assert association.accepted_contexts[0].transfer_syntax == [offered[0]]


def test_a_syntax_that_cannot_be_decoded_is_passed_over() -> None:
    big_endian, mpeg = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.100"
    with (
        listening(MemoryInbox()) as port,
        associated(port, (CT, [big_endian, ImplicitVRLittleEndian]), (CT, [mpeg])) as association,
    ):
        (accepted,) = association.accepted_contexts
        assert accepted.transfer_syntax == [ImplicitVRLittleEndian]
        assert [c.result for c in association.rejected_contexts] == [4]


# Who comes in


def test_each_rejection_says_what_the_sender_can_do() -> None:
    inbox = MemoryInbox()
    with listening(inbox, maximum_associations=1) as port:
        assert rejection(port, called="OTHER") == (1, 1, 7)
        assert rejection(port, calling="STRANGER") == (1, 1, 3)
        inbox.addresses = ()
        assert rejection(port) == (1, 1, 3)
        inbox.addresses = ("127.0.0.1",)
        with associated(port) as first:
            assert first.is_established
            assert rejection(port) == (2, 3, 2)
        inbox.failure = Unavailable("database is locked")
        assert rejection(port) == (2, 3, 1)
        inbox.failure = RuntimeError("a bug lets nobody in")
        assert rejection(port) == (2, 3, 1)
        inbox.failure = None
        assert echo_seconds(port) < 1
    assert len(inbox.opened) == 2, "who was rejected leaves no row"
    assert until(lambda: len(inbox.turned_away) == 6)
    codes = [reason[-9:] for _, reason, _ in inbox.turned_away]
    unknown, busy = "(1, 1, 3)", "(2, 3, 1)"
    assert codes == ["(1, 1, 7)", unknown, unknown, "(2, 3, 2)", busy, busy], "each is told"


# How it is answered


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (OutOfSpace("/secret/path is full"), 0xA700, "cannot take it now, send again later"),
        (OSError(5, "EIO"), 0xA700, "cannot take it now, send again later"),
        (IdentifierProblem("Study Instance UID missing"), 0xA900, "Study Instance UID missing"),
        (UnreadableDataSet("truncated"), 0xC001, "truncated"),
        (ConflictingInstance("held with other content"), 0xC003, "held with other content"),
        (KeyError("Doe^John"), 0xC00F, "internal error, see the log of this node"),
    ],
)
def test_a_failure_is_answered_and_the_association_lives_on(
    tmp_path: Path, error: Exception, status: int, comment: str
) -> None:
    errors = [error]

    def fail_once(_: Any) -> None:
        if errors:
            raise errors.pop()

    inbox, path = MemoryInbox(on_receive=fail_once), ct_file(tmp_path)
    with listening(inbox) as port, associated(port) as association:
        answer = association.send_c_store(path)
        assert (answer.Status, answer.ErrorComment) == (status, comment)
        assert association.send_c_store(path).Status == 0x0000
    assert len(inbox.received) == 1


def test_requests_outside_the_negotiation_get_a_status() -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port, associated(port) as association:
        unknown, other = "1.2.826.0.1.999", dicoms.MR
        assert raw_store(association, b"xx", AffectedSOPClassUID=unknown) == 0x0122
        assert raw_store(association, b"xx", AffectedSOPClassUID=other) == 0x0122
        assert raw_store(association, b"xx", AffectedSOPInstanceUID=None) == 0xA900
        assert raw_store(association, b"xx", AffectedSOPInstanceUID="1.2/../etc") == 0xA900
        assert raw_store(association, b"", DataSet=None) == 0xC001
        assert raw_store(association, b"xx") == 0x0000
    assert len(inbox.received) == 1


def test_a_data_set_over_the_limit_is_refused_without_being_held(tmp_path: Path) -> None:
    inbox = MemoryInbox()
    with listening(inbox, maximum_object_mb=1) as port, associated(port) as association:
        assert raw_store(association, b"x" * (3 << 19)) == 0xC002
        assert raw_store(association, b"x" * (1 << 20)) == 0x0000
        assert raw_store(association, b"x" * (4 << 20)) is None, "without end: aborted"
    assert [len(r.dataset) for r in inbox.received] == [1 << 20]
    assert inbox.closed == [(1, True)]


# How it ends


def test_every_opened_association_is_closed_once_however_it_ends(tmp_path: Path) -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port:
        with associated(port):
            pass
        assert until(lambda: inbox.closed == [(1, False)])
        with associated(port) as association:
            association.abort()
        assert until(lambda: inbox.closed[1:] == [(2, True)])
        with associated(port) as association:
            _sever(association)
        assert until(lambda: inbox.closed[2:] == [(3, True)])
    assert len(inbox.closed) == 3


def test_an_association_cut_inside_a_c_store_stores_nothing(tmp_path: Path) -> None:
    inbox, path = MemoryInbox(), ct_file(tmp_path)
    with listening(inbox) as port, associated(port) as association:
        command_only = C_STORE()
        command_only.MessageID, command_only.Priority = 1, 2
        command_only.AffectedSOPClassUID, command_only.AffectedSOPInstanceUID = CT, "1.2.3"
        command_only.DataSet = BytesIO(path.read_bytes())
        context_id = association.accepted_contexts[1].context_id or 0
        message = C_STORE_RQ()
        message.primitive_to_message(command_only)
        first, second, *_ = message.encode_msg(context_id, 16384)
        half = second.presentation_data_value_list[0][1]
        second.presentation_data_value_list = [[context_id, b"\0" + half[1:100]]]  # type: ignore[list-item] # the setter takes lists only
        for pdu in (first, second):
            association.dul.send_pdu(pdu)
        time.sleep(0.1)
        _sever(association)
        assert until(lambda: inbox.closed == [(1, True)])
    assert inbox.received == []


def test_associations_leave_no_thread_and_no_descriptor_behind() -> None:
    inbox, process = MemoryInbox(), psutil.Process()
    with listening(inbox) as port:
        echo_seconds(port)
        assert until(lambda: len(inbox.closed) == 1)
        time.sleep(0.1)
        before = process.num_fds(), threading.active_count()
        for _ in range(20):
            echo_seconds(port)
            rejection(port, called="OTHER")
        assert until(lambda: len(inbox.closed) == 21)
        assert until(lambda: (process.num_fds(), threading.active_count()) <= before, 10)


def test_an_idle_association_is_aborted() -> None:
    inbox = MemoryInbox()
    with listening(inbox, idle_timeout=0.5) as port, associated(port) as association:
        assert until(lambda: association.is_aborted, 3)
        assert until(lambda: inbox.closed == [(1, True)])


def test_a_slow_line_is_waited_for() -> None:
    """As long as what comes is more than nothing: here the whole takes four times the idle time."""
    inbox, data = MemoryInbox(), b"x" * 20_000
    with (
        listening(inbox, idle_timeout=0.5) as port,
        Wire(port, called=NODE.encode()) as wire,
    ):
        assert wire.associate()
        wire.send(p_data(3, store_rq(CT, "1.2.3"), command=True))
        for piece in fragments(3, data, 1000):
            time.sleep(0.1)
            wire.send(piece)
        assert wire.status() == 0x0000
        wire.release()
    assert inbox.received[0].dataset == data


def test_stopping_lets_a_running_association_finish(tmp_path: Path) -> None:
    inbox, path, stop = MemoryInbox(), ct_file(tmp_path), threading.Event()
    with listening(inbox, stop=stop, drain=5) as port, associated(port) as association:
        stop.set()
        assert until(lambda: _refused(port), 2), "nobody new"
        assert association.send_c_store(path).Status == 0x0000
    assert inbox.closed == [(1, False)]


def test_stopping_aborts_what_does_not_finish() -> None:
    inbox, stop = MemoryInbox(), threading.Event()
    started = time.monotonic()
    with listening(inbox, stop=stop, drain=0.3) as port, associated(port) as association:
        stop.set()
        assert until(lambda: association.is_aborted)
    assert inbox.closed == [(1, True)]
    assert time.monotonic() - started < 3


def _refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def _sever(association: Association) -> None:
    """Cut the connection as a cable does, without A-ABORT."""
    sock: Any = association.dul.socket
    sock.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.socket.close()


# Who means no good


@pytest.mark.parametrize(
    "opening", [SILENT, PARTIAL_HEADER, PARTIAL_BODY], ids=["silent", "header", "body"]
)
def test_fifty_clients_that_stall_hold_up_nobody(opening: bytes) -> None:
    with ExitStack() as stack:
        limits = {"association_timeout": 1.5, "maximum_connections_per_address": 64}
        port = stack.enter_context(listening(MemoryInbox(), **limits))
        stalling = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(50)
        ]
        for sock in stalling:
            sock.sendall(opening)
        assert max(echo_seconds(port) for _ in range(5)) < 1
        for sock in stalling:
            sock.settimeout(3)
            assert sock.recv(16) == b"", "cut by the deadline"


def test_stalling_clients_give_way_when_all_places_are_taken() -> None:
    with ExitStack() as stack:
        port = stack.enter_context(listening(MemoryInbox(), maximum_connections=8))
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert max(echo_seconds(port) for _ in range(3)) < 1


def test_by_default_one_address_cannot_take_the_places_of_all_associations() -> None:
    inbox = MemoryInbox(addresses=("127.0.0.1", "127.0.0.2"))
    with ExitStack() as stack:
        port = stack.enter_context(listening(inbox))
        for _ in range(70):
            one = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
            stack.enter_context(one)
            with suppress(OSError):
                one.sendall(associate_rq(called=NODE.encode()))
                one.recv(6)
        assert echo_seconds(port) < 1


def test_one_byte_now_and_then_does_not_pass_the_deadline() -> None:
    with (
        listening(MemoryInbox(), association_timeout=1) as port,
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                sock.sendall(b"\1")
                time.sleep(0.2)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "opening", [FOUR_GIB, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]
)
def test_what_is_no_association_request_is_cut_at_once(opening: bytes) -> None:
    with (
        listening(MemoryInbox()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=2) as sock,
    ):
        sock.sendall(opening)
        assert sock.recv(16)[:1] == b"\7", "A-ABORT"
        assert echo_seconds(port) < 1


def test_another_version_of_the_protocol_is_rejected_and_holds_no_place() -> None:
    request = bytearray(associate_rq())
    request[6:8] = b"\0\2"
    with (
        listening(MemoryInbox()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=3) as sock,
    ):
        sock.sendall(request)
        assert sock.recv(16)[6:] == bytes((0, 1, 2, 2)), "A-ASSOCIATE-RJ"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(16) == b""


def test_a_request_that_cannot_be_negotiated_is_aborted_and_holds_no_place() -> None:
    told = VERIFICATION.encode()
    head = struct.pack(">BBH", 0x30, 0, len(told))
    request = associate_rq([(VERIFICATION, [ImplicitVRLittleEndian])], called=NODE.encode())
    assert request.count(head + told) == 1
    # A transfer syntax in the abstract syntax's place: pynetdicom decodes it, and then raises.
    request = request.replace(head + told, b"\x40" + head[1:] + told)
    with (
        listening(MemoryInbox()) as port,
        socket.create_connection(("127.0.0.1", port), timeout=3) as sock,
    ):
        sock.sendall(request)
        assert sock.recv(16)[:1] == b"\7", "A-ABORT"
        assert echo_seconds(port) < 1


def test_a_pdu_of_four_gibibytes_in_an_association_takes_no_memory() -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port, associated(port) as association:
        before = psutil.Process().memory_info().rss
        sock: Any = association.dul.socket
        sock.socket.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFFF) + b"\0" * 1000)
        assert until(lambda: inbox.closed == [(1, True)])
        assert psutil.Process().memory_info().rss - before < 16 << 20
        assert echo_seconds(port) < 1


@pytest.mark.parametrize(
    "values",
    [
        [b""],  # a fragment without its control header
        [b"\3" + b"\xff" * 20],  # a command that is none
        [b"\2data without a command"],
        [b"\1" + b"\0" * 60000] * 10,  # a command without end
    ],
)
def test_nonsense_in_an_association_aborts_it_and_nothing_else(values: list[bytes]) -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port, associated(port) as association:
        sock: Any = association.dul.socket
        for value in values:
            item = struct.pack(">LB", len(value) + 1, 1) + value
            with suppress(OSError):  # it may be cut before all of it is sent
                sock.socket.sendall(struct.pack(">BBL", 4, 0, len(item)) + item)
        assert until(lambda: association.is_aborted)
        assert until(lambda: inbox.closed == [(1, True)])
        assert echo_seconds(port) < 1


def test_random_bytes_end_no_thread(capfd: pytest.CaptureFixture[str]) -> None:
    seed = 20240601
    drawn = random.Random(seed)
    inbox = MemoryInbox()
    with listening(inbox, association_timeout=0.5, idle_timeout=0.5) as port:
        with associated(port) as model:
            pass
        request = _association_request(model)
        for _ in range(200):
            kind, size = drawn.randrange(0, 9), drawn.randrange(0, 300)
            declared = drawn.choice([size, size, size, drawn.randrange(0, 1 << 32)])
            pdu = struct.pack(">BBL", kind, 0, declared) + drawn.randbytes(size)
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                if drawn.random() < 0.5:
                    sock.sendall(request)
                    assert sock.recv(65536)[:1] == b"\2", "A-ASSOCIATE-AC"
                sock.sendall(pdu)
        assert echo_seconds(port) < 1
        assert until(lambda: len(inbox.closed) == len(inbox.opened)), f"seed {seed}"
    assert "Traceback" not in capfd.readouterr().err


def test_an_association_may_mix_echo_and_store(tmp_path: Path) -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port, associated(port) as association:
        for number in range(1, 6):
            assert association.send_c_echo().Status == 0x0000
            assert association.send_c_store(ct_file(tmp_path, number)).Status == 0x0000
    assert len(inbox.received) == 5
    assert inbox.closed == [(1, False)]


@pytest.mark.parametrize("size", [1, 7, 300])
def test_a_message_in_the_smallest_fragments_is_the_same(size: int) -> None:
    """Several to a PDU, PDUs cut anywhere by the network."""
    inbox, data = MemoryInbox(), bytes(range(256)) * 3
    with listening(inbox) as port, socket.socket() as sock:
        with associated(port) as model:
            pass
        sock.connect(("127.0.0.1", port))
        sock.sendall(_association_request(model))
        sock.recv(4096)
        values = []
        for pdu in _store_pdus(1, data):
            control, content = pdu[11], pdu[12:]
            pieces = [content[at : at + size] for at in range(0, len(content), size)]
            for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
                last = control & 1 if left else control
                values.append(struct.pack(">LBB", len(piece) + 2, 3, last) + piece)
        stream = b""
        for at in range(0, len(values), 5):
            body = b"".join(values[at : at + 5])
            stream += struct.pack(">BBL", 4, 0, len(body)) + body
        for at in range(0, len(stream), 1009):
            sock.sendall(stream[at : at + 1009])
        assert until(lambda: len(inbox.received) == 1)
        assert sock.recv(4096)[:1] == b"\4", "the answer"
    assert inbox.received[0].dataset == data


def test_empty_fragments_without_end_are_cut() -> None:
    inbox = MemoryInbox()
    with listening(inbox) as port, associated(port) as association:
        wire: Any = association.dul.socket
        sock = wire.socket  # pynetdicom forgets it when it sees the abort
        with suppress(OSError):
            for _ in range(2000):
                sock.sendall(struct.pack(">BBLLBB", 4, 0, 6, 2, 1, 0))
        assert until(lambda: inbox.closed == [(1, True)])


def test_pipelined_requests_wait_in_the_network_not_in_memory() -> None:
    go, inbox = threading.Event(), MemoryInbox()
    inbox.on_receive = _waiting_for(go)
    megabytes, data = 60, b"x" * (1 << 20)
    with listening(inbox) as port, socket.socket() as sock:
        with associated(port) as model:
            pass
        request = _association_request(model)
        sock.connect(("127.0.0.1", port))
        sock.sendall(request)
        sock.recv(4096)
        before = psutil.Process().memory_info().rss
        sent = []

        def flood() -> None:
            for number in range(megabytes):
                for pdu in _store_pdus(number, data):
                    sock.sendall(pdu)
                sent.append(number)

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(1)
        assert len(sent) < 20, "TCP holds the sender back"
        assert psutil.Process().memory_info().rss - before < 30 << 20
        assert echo_seconds(port) < 1
        inbox.on_receive = lambda _: None
        go.set()
        thread.join(20)
        assert until(lambda: len(inbox.received) == megabytes, 10)


def _waiting_for(event: threading.Event) -> Callable[[Any], None]:
    def wait(_: Any) -> None:
        event.wait(20)

    return wait


def _association_request(model: Association) -> bytes:
    return bytes(A_ASSOCIATE_RQ(model.requestor.primitive).encode())


def _store_pdus(number: int, data: bytes) -> Iterator[bytes]:
    request = C_STORE()
    request.MessageID, request.Priority = number + 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CT, f"1.2.{number}"
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    for primitive in message.encode_msg(3, 131072):
        yield bytes(P_DATA_TF(primitive).encode())


# Several processes


def test_a_frozen_and_a_killed_process_do_not_hold_up_the_others() -> None:
    listening_socket = bind("127.0.0.1", 0)
    port = listening_socket.getsockname()[1]
    command = [sys.executable, "-m", "tests.listening", str(listening_socket.fileno())]
    processes = [
        subprocess.Popen(
            command,
            pass_fds=[listening_socket.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    listening_socket.close()
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        assert echo_seconds(port) < 1
        processes[0].send_signal(signal.SIGSTOP)
        assert max(echo_seconds(port) for _ in range(15)) < 1
        processes[1].kill()
        assert max(echo_seconds(port) for _ in range(15)) < 1
    finally:
        for process in processes:
            process.kill()
            process.wait(5)
            if process.stdout:
                process.stdout.close()


def test_stopping_one_process_leaves_the_shared_socket_open() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    # Another descriptor of the same open file, as an inheriting process has.
    second = socket.socket(fileno=os.dup(first.fileno()))
    stops = [threading.Event(), threading.Event()]
    threads = [
        threading.Thread(
            target=serve,
            args=(ListenerSettings(ae_title=NODE), MemoryInbox()),
            kwargs={"stop": stop, "ready": lambda _: None, "doors": [Door(sock)], "drain": 1.0},
        )
        for sock, stop in zip((first, second), stops, strict=True)
    ]
    for thread in threads:
        thread.start()
    stops[0].set()
    threads[0].join(5)
    assert echo_seconds(port) < 1
    stops[1].set()
    threads[1].join(5)
    assert _refused(port)


# What a modality says of its studies


def test_a_completed_procedure_step_tells_which_instances_belong_to_the_study() -> None:
    inbox, study = MemoryInbox(), dicoms.uid("study")
    images = [dicoms.uid("image", i) for i in range(3)]
    begun = dicoms.item(
        PerformedProcedureStepStatus="IN PROGRESS",
        ScheduledStepAttributesSequence=[dicoms.item(StudyInstanceUID=study)],
    )
    ended = dicoms.item(
        PerformedProcedureStepStatus="COMPLETED",
        PerformedSeriesSequence=[
            dicoms.item(
                ReferencedImageSequence=[
                    dicoms.item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid)
                    for uid in images
                ]
            )
        ],
    )
    with listening(inbox) as port, associated(port, (MPPS, [])) as association:
        assert association.send_n_create(begun, MPPS, "1.2.3")[0].Status == 0x0000
        assert association.send_n_create(begun, MPPS, "1.2.3")[0].Status == 0x0111
        assert association.send_n_create(ended, MPPS, "1.2.4")[0].Status == 0x0106
        assert association.send_n_set(ended, MPPS, "1.2.3")[0].Status == 0x0000
        assert association.send_n_set(ended, MPPS, "9.9.9")[0].Status == 0x0000
        inbox.failure = Unavailable("database is locked")
        assert association.send_n_set(ended, MPPS, "1.2.3")[0].Status == 0x0110
    assert inbox.expected == [
        {"source": "mpps", "study": study, "instances": images},
        {"source": "mpps", "study": None, "instances": images},
    ]


def commitment_request(*uids: str, **others: str) -> Dataset:
    """Of CT images; ``others`` are of the class they name."""
    named = [(CT, uid) for uid in uids] + [(others[key], key) for key in others]
    return dicoms.item(
        TransactionUID="1.2.3.4",
        ReferencedSOPSequence=[
            dicoms.item(ReferencedSOPClassUID=of, ReferencedSOPInstanceUID=uid) for of, uid in named
        ],
    )


def test_only_what_is_held_is_committed_on_the_modalitys_own_port(tmp_path: Path) -> None:
    inbox, path, reports = MemoryInbox(), ct_file(tmp_path), []

    def note(event: evt.Event) -> tuple[int, None]:
        reports.append((event.event_type, event.event_information))
        return 0x0000, None

    modality = AE("ANY-SCU")
    modality.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
    server: Any = modality.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, note)]
    )
    inbox.endpoints["ANY-SCU"] = server.server_address[:2]
    try:
        with (
            listening(inbox, storage_commitment=True) as port,
            associated(port, (CT, []), (STORAGE_COMMITMENT, [])) as association,
        ):
            assert association.send_c_store(path).Status == 0x0000
            stored = inbox.received[0].sop_instance_uid
            requests = [
                commitment_request(stored),
                commitment_request(stored, "1.9.9"),
                commitment_request(**{stored: dicoms.MR}),
            ]
            for request in requests:
                answer, _ = association.send_n_action(
                    request, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
                )
                assert answer.Status == 0x0000
            assert until(lambda: len(reports) == 3)
    finally:
        server.shutdown()
    (all_type, everything), (some_type, something), (none_type, nothing) = reports
    assert (all_type, some_type, none_type) == (1, 2, 2)
    assert everything.TransactionUID == "1.2.3.4"
    assert [i.ReferencedSOPInstanceUID for i in everything.ReferencedSOPSequence] == [stored]
    assert "FailedSOPSequence" not in everything
    (failed,) = something.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.9.9", 0x0112)
    (other,) = nothing.FailedSOPSequence
    assert (other.ReferencedSOPInstanceUID, other.FailureReason) == (stored, 0x0119)
    assert "ReferencedSOPSequence" not in nothing
    assert [e["instances"] for e in inbox.expected] == [[stored], [stored, "1.9.9"], [stored]]


def test_a_commitment_is_answered_again_where_the_modality_was_away() -> None:
    inbox, reports = MemoryInbox(), []

    def note(event: evt.Event) -> tuple[int, None]:
        reports.append(event.event_type)
        return 0x0000, None

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        inbox.endpoints["ANY-SCU"] = free.getsockname()
    with (
        listening(inbox, storage_commitment=True) as port,
        associated(port, (STORAGE_COMMITMENT, [])) as association,
    ):
        association.send_n_action(
            commitment_request("1.9.9"), 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
        )
        time.sleep(0.5)  # the first attempt fails
        modality = AE("ANY-SCU")
        modality.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
        server: Any = modality.start_server(
            inbox.endpoints["ANY-SCU"], block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, note)]
        )
        try:
            assert until(lambda: reports == [2])
        finally:
            server.shutdown()


def test_a_modality_without_a_port_is_answered_on_its_association(tmp_path: Path) -> None:
    inbox, path, reports = MemoryInbox(), ct_file(tmp_path), []

    def note(event: evt.Event) -> tuple[int, None]:
        reports.append(event.event_type)
        return 0x0000, None

    with listening(inbox, storage_commitment=True) as port:
        ae = AE("ANY-SCU")
        ae.add_requested_context(CT, ExplicitVRLittleEndian)
        ae.add_requested_context(STORAGE_COMMITMENT)
        association = ae.associate(
            "127.0.0.1", port, ae_title=NODE, evt_handlers=[(evt.EVT_N_EVENT_REPORT, note)]
        )
        assert association.send_c_store(path).Status == 0x0000
        request = commitment_request(inbox.received[0].sop_instance_uid)
        answer, _ = association.send_n_action(
            request, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1"
        )
        assert answer.Status == 0x0000
        assert until(lambda: reports == [1])
        assert association.send_c_store(path).Status == 0x0000, "and it goes on"
        association.release()
    assert inbox.closed == [(1, False)]


def test_a_commitment_request_that_makes_no_sense_is_refused() -> None:
    inbox, push = MemoryInbox(), "1.2.840.10008.1.20.1.1"
    with (
        listening(inbox, storage_commitment=True) as port,
        associated(port, (STORAGE_COMMITMENT, [])) as association,
    ):

        def act(request: Dataset, action: int, instance: str) -> int:
            return int(
                association.send_n_action(request, action, STORAGE_COMMITMENT, instance)[0].Status
            )

        assert act(commitment_request("1.2"), 2, push) == 0x0123
        assert act(commitment_request("1.2"), 1, "1.2.3") == 0x0112
        assert act(commitment_request(), 1, push) == 0x0115
        assert act(commitment_request("1.2", **{"1.2": dicoms.MR}), 1, push) == 0x0115
    assert inbox.expected == []


def test_storage_commitment_is_not_offered_unless_it_is_asked_for() -> None:
    with (
        listening(MemoryInbox()) as port,
        associated(port, (CT, []), (STORAGE_COMMITMENT, [])) as association,
    ):
        assert [c.abstract_syntax for c in association.rejected_contexts] == [STORAGE_COMMITMENT]
