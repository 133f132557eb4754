"""Owns accepted TCP connections until an association takes them; knows no DICOM policy.

Each connection has a thread that makes the TLS handshake and waits for the A-ASSOCIATE-RQ, both
under one deadline: nothing a client does or omits can hold up the accept loop. When all places are
taken, or all that one address may have, the connection that has kept us waiting longest gives way,
so silent clients cannot lock others out.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from dicom_node.dimse.tls import fault_of
from dicom_node.dimse.transport import Limits, ProtocolBreach, prepare, read_request

log = structlog.get_logger(__name__)

BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """A listening socket that child processes may inherit and share.

    Not SO_REUSEPORT: there a frozen process hangs its share of the new connections.

    Args:
        host: address or name, IPv4 or IPv6.
        port: 0 lets the system choose.

    Raises:
        OSError: the address cannot be bound.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        sock.set_inheritable(True)
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Door:
    """A way in.

    Attributes:
        listening: bound and listening, perhaps shared with other processes.
        secure: the TLS that connections begin with; None: none.
    """

    listening: socket.socket
    secure: Callable[[], ssl.SSLContext] | None = None


Converse = Callable[[socket.socket, bytes], None]
OnFault = Callable[[str, str], None]


class _Client:
    """A connection; ``sock`` changes once, from TCP to TLS. Both it and ``shut`` under the lock."""

    def __init__(self, sock: socket.socket, address: str, door: Door) -> None:
        self.sock, self.address, self.door = sock, address, door
        self.shut = False


class Connections:
    """Accepts at all doors and gives each connection to ``converse``.

    Args:
        doors: one or more.
        maximum: open connections, associated or not; as many again may be about to end.
        limits: how long a client may take.
        converse: gets the socket and the A-ASSOCIATE-RQ in a thread of its own; returns when the
            association is over.
        per_address: open connections from one address; None: no such limit.
        on_fault: called in the connection's thread with address and reason where a client's TLS
            was refused.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        maximum: int,
        limits: Limits,
        converse: Converse,
        per_address: int | None = None,
        on_fault: OnFault = lambda _address, _reason: None,
    ) -> None:
        for door in doors:
            door.listening.setblocking(False)
        self._doors, self._maximum, self._limits = doors, maximum, limits
        self._per_address = per_address or maximum
        self._converse, self._on_fault = converse, on_fault
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._waiting: dict[_Client, None] = {}
        self._leaving: set[_Client] = set()  # gave way; no longer counted, nearly gone

    def accept_until(self, stop: threading.Event) -> None:
        """Accept until ``stop``; then close our copies of the listening sockets.

        Only a close: shutdown() would end them for the processes that share them.
        """
        poll = select.poll()
        doors = {door.listening.fileno(): door for door in self._doors}
        for number in doors:
            poll.register(number, select.POLLIN)
        while not stop.is_set():
            for number, _ in poll.poll(200):
                self._accept(doors[number])
        for door in self._doors:
            door.listening.close()
        with self._lock:
            for client in self._waiting:
                _shut(client)

    def _accept(self, door: Door) -> None:
        try:
            sock, peer = door.listening.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # another process was faster, or the client left
        except OSError as error:  # no descriptors left: let associations end
            log.error("accept failed", error=error.strerror)
            time.sleep(0.1)
            return
        self._start(_Client(sock, peer[0], door))

    def _start(self, client: _Client) -> None:
        if not self._admit(client):
            log.warning("connection refused: all places are taken", address=client.address)
            client.sock.close()
            return
        try:
            threading.Thread(
                target=self._handle, args=(client,), name="connection", daemon=True
            ).start()
        except RuntimeError:  # no more threads
            log.error("connection refused: no thread")
            self._forget(client)

    def _admit(self, client: _Client) -> bool:
        with self._lock:
            own = self._open[client.address] >= self._per_address
            if own or self._open.total() >= self._maximum:
                waiting = (w for w in self._waiting if not own or w.address == client.address)
                oldest = next(waiting, None)
                if oldest is None or len(self._leaving) >= self._maximum:
                    return False
                # Its place is free now: while it counted, its address would take others' places.
                del self._waiting[oldest]
                self._leaving.add(oldest)
                self._leave(oldest)
                _shut(oldest)
            self._open[client.address] += 1
            self._waiting[client] = None
            return True

    def _handle(self, client: _Client) -> None:
        try:
            prepare(client.sock, self._limits.idle)
            deadline = time.monotonic() + self._limits.request
            if client.door.secure:
                self._secure(client, client.door.secure())
            request = read_request(client.sock, deadline - time.monotonic())
            with self._lock:
                self._waiting.pop(client, None)
            self._converse(client.sock, request)
        except ProtocolBreach as breach:
            log.warning("connection dropped", reason=str(breach), address=client.address)
        except OSError as error:  # a health check of a balancer ends here too
            log.info("connection dropped", reason=fault_of(error), address=client.address)
        except Exception as error:
            log.error("connection failed", error=type(error).__name__)
        finally:
            self._forget(client)

    def _secure(self, client: _Client, context: ssl.SSLContext) -> None:
        secured = context.wrap_socket(client.sock, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            client.sock = secured
            if client.shut:  # meanwhile there was nothing to be shut
                raise ConnectionAbortedError(errno.ECONNABORTED, "gave way to another")
        secured.settimeout(self._limits.request)  # of the whole handshake, not of each read
        try:
            secured.do_handshake()
        except ssl.SSLEOFError:
            raise  # it left, and may never have meant to stay
        except ssl.SSLError as error:
            self._on_fault(client.address, fault_of(error))
            raise

    def _forget(self, client: _Client) -> None:
        with self._lock:
            self._waiting.pop(client, None)
            if client in self._leaving:
                self._leaving.remove(client)
            else:
                self._leave(client)
            _shut(client)
        client.sock.close()

    def _leave(self, client: _Client) -> None:
        self._open[client.address] -= 1
        self._open += Counter()  # drops who has none left


def _shut(client: _Client) -> None:
    """Wake whoever reads it; closing would not, and might hand its number to another.

    Below TLS: an SSLSocket's own shutdown() would make a plain socket of it under its reader.
    """
    client.shut = True
    with contextlib.suppress(OSError):
        socket.socket.shutdown(client.sock, socket.SHUT_RDWR)
