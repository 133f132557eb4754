from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from dicom_node.dimse.transport import Limits
from dicom_node.listener.connections import Connections, Door, bind

LIMITS = Limits(pdu=16384, dataset=1 << 20, request=1.0, idle=1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_bound_socket_listens_and_can_be_inherited(host: str) -> None:
    try:
        sock = bind(host, 0)
    except OSError as error:
        pytest.skip(f"{host} is not to be had here: {error.strerror}")
    with sock:
        assert os.get_inheritable(sock.fileno())
        with socket.create_connection(sock.getsockname()[:2], timeout=1):
            pass


def test_a_port_in_use_is_told() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", sock.getsockname()[1])


def test_a_connection_taken_by_another_process_is_no_error() -> None:
    """Several wait for the same connection; for all but one accept() finds nothing."""
    listening = bind("127.0.0.1", 0)
    rival, stop = socket.socket(fileno=os.dup(listening.fileno())), threading.Event()
    rival.setblocking(False)
    connections = Connections([Door(listening)], 4, LIMITS, lambda *_: None)
    thread = threading.Thread(target=connections.accept_until, args=(stop,))
    thread.start()
    for _ in range(200):
        with socket.create_connection(rival.getsockname(), timeout=1):
            try:
                rival.accept()[0].close()
            except BlockingIOError:
                time.sleep(0)
    assert thread.is_alive()
    stop.set()
    thread.join(2)
    assert not thread.is_alive()
    rival.close()
