from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from pynetdicom import AE

from dicom_node.dimse.transport import (
    REQUEST_CAP,
    ProtocolBreach,
    prepare,
    read_request,
    receive_exactly,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield here, there


def test_bytes_that_come_in_pieces_are_joined(pair: Pair) -> None:
    here, there = pair

    def dribble() -> None:
        for value in b"abcdef":
            there.send(bytes([value]))
            time.sleep(0.01)

    thread = threading.Thread(target=dribble)
    thread.start()
    assert receive_exactly(here, 6, time.monotonic() + 2) == b"abcdef"
    thread.join()


def test_what_came_before_the_peer_closed_is_returned(pair: Pair) -> None:
    here, there = pair
    there.sendall(b"abc")
    there.close()
    assert receive_exactly(here, 6, time.monotonic() + 2) == b"abc"


def test_progress_does_not_move_the_deadline(pair: Pair) -> None:
    here, there = pair
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.05):
            there.send(b"a")

    thread = threading.Thread(target=dribble)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        receive_exactly(here, 1000, started + 0.3)
    assert time.monotonic() - started < 1
    stop.set()
    thread.join()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">BBL", 4, 0, 10),
        struct.pack(">BBL", 1, 0, REQUEST_CAP + 1),
        struct.pack(">BBL", 1, 0, 70) + b"\xff" * 70,
    ],
    ids=["another PDU", "too long", "undecodable"],
)
def test_what_is_no_request_is_answered_with_an_abort(pair: Pair, data: bytes) -> None:
    here, there = pair
    there.sendall(data)
    with pytest.raises(ProtocolBreach):
        read_request(here, 2)
    assert there.recv(16) == bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))


def test_a_whole_request_is_returned_as_it_came(pair: Pair) -> None:
    here, there = pair
    captured: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def capture() -> None:
            sock, _ = server.accept()
            with sock:
                captured.append(sock.recv(65536))

        thread = threading.Thread(target=capture)
        thread.start()
        ae = AE("SCU")
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.associate(*server.getsockname())
        thread.join()
    there.sendall(captured[0] + b"next")
    assert read_request(here, 2) == captured[0]
    assert here.recv(16) == b"next"


def test_a_prepared_socket_does_not_wait_for_acknowledgements(pair: Pair) -> None:
    here, _ = pair
    prepare(here, 3.0)
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert here.gettimeout() == 3.0
