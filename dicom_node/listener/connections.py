"""Owns accepted TCP connections until an association takes them; knows no DICOM policy.

Each connection has a thread that waits for the A-ASSOCIATE-RQ under a deadline (and, later, for
the TLS handshake): nothing a client does or omits can hold up the accept loop. When all places are
taken, the connection that has kept us waiting longest gives way, so silent clients cannot lock
others out.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable

import structlog

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


Converse = Callable[[socket.socket, bytes], None]


class Connections:
    """Accepts from a listening socket and gives each connection to ``converse``.

    Args:
        listening: bound and listening, perhaps shared with other processes.
        maximum: open connections, associated or not.
        limits: how long a client may take.
        converse: gets the socket and the A-ASSOCIATE-RQ in a thread of its own; returns when the
            association is over.
    """

    def __init__(
        self, listening: socket.socket, maximum: int, limits: Limits, converse: Converse
    ) -> None:
        listening.setblocking(False)
        self._listening, self._maximum, self._limits = listening, maximum, limits
        self._converse = converse
        self._lock = threading.Lock()
        self._open = 0
        self._waiting: dict[socket.socket, None] = {}

    def accept_until(self, stop: threading.Event) -> None:
        """Accept until ``stop``; then close our copy of the listening socket.

        Only a close: shutdown() would end it for the processes that share it.
        """
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        while not stop.is_set():
            if not poll.poll(200):
                continue
            try:
                sock, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                continue  # another process was faster, or the client left
            except OSError as error:  # no descriptors left: let associations end
                log.error("accept failed", error=error.strerror)
                time.sleep(0.1)
                continue
            self._start(sock)
        self._listening.close()
        with self._lock:
            for sock in self._waiting:
                _shut(sock)

    def _start(self, sock: socket.socket) -> None:
        if not self._admit(sock):
            log.warning("connection refused: all places are taken", maximum=self._maximum)
            sock.close()
            return
        try:
            threading.Thread(
                target=self._handle, args=(sock,), name="connection", daemon=True
            ).start()
        except RuntimeError:  # no more threads
            log.error("connection refused: no thread")
            self._forget(sock)

    def _admit(self, sock: socket.socket) -> bool:
        with self._lock:
            if self._open >= self._maximum:
                oldest = next(iter(self._waiting), None)
                if oldest is None:
                    return False
                del self._waiting[oldest]
                _shut(oldest)
            self._open += 1
            self._waiting[sock] = None
            return True

    def _handle(self, sock: socket.socket) -> None:
        try:
            prepare(sock, self._limits.idle)
            request = read_request(sock, self._limits.request)
            with self._lock:
                self._waiting.pop(sock, None)
            self._converse(sock, request)
        except ProtocolBreach as breach:
            log.warning("connection dropped", reason=str(breach))
        except OSError as error:  # a health check of a balancer ends here too
            log.info("connection dropped", reason=str(error) or type(error).__name__)
        except Exception as error:
            log.error("connection failed", error=type(error).__name__)
        finally:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._waiting.pop(sock, None)
            self._open -= 1
        _shut(sock)
        sock.close()


def _shut(sock: socket.socket) -> None:
    """Wake whoever reads it; closing would not, and might hand its number to another."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
