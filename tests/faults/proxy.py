"""Stands between two TCP peers and does to their bytes what networks do.

with Proxy(("127.0.0.1", node.port), Cut(1000)) as proxy:
    ...connect to proxy.port...

A fault is asked for each new connection, so `Proxy.fault` may change between two of them.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from tests.servers import free_port

Address = tuple[str, int] | str
"""TCP, or the path of a unix socket."""


@dataclass(frozen=True)
class Pass:
    """Nothing is done to the bytes."""


@dataclass(frozen=True)
class Cut:
    """The connection is closed both ways after so many bytes from the client.

    Attributes:
        reset: by RST, as a router that forgot the connection does, else by FIN.
    """

    after: int
    reset: bool = False


@dataclass(frozen=True)
class Hang:
    """After so many bytes from the client nothing moves, either way, until the proxy ends."""

    after: int


@dataclass(frozen=True)
class Dribble:
    """The client's bytes come in pieces of ``size`` with ``pause`` seconds between them."""

    size: int
    pause: float


@dataclass(frozen=True)
class Delay:
    """Each piece waits so many seconds, both ways."""

    seconds: float


@dataclass(frozen=True)
class Deaf:
    """After so many answers, as they come off the wire, the client hears no more and is cut off.

    The server has got all that the client sent: this loses answers.
    """

    after: int = 1


@dataclass(frozen=True)
class Word:
    """Cuts the client off when its bytes hold a word: before or after the server got it."""

    word: bytes
    delivered: bool


Fault = Pass | Cut | Hang | Dribble | Delay | Deaf | Word


@dataclass
class Proxy:
    """Listens on a loopback port and connects to ``target`` for each client.

    Attributes:
        hits: how often the fault took effect.
    """

    target: Address
    fault: Fault = field(default_factory=Pass)
    hits: int = 0

    def __enter__(self) -> Proxy:
        self.port = free_port()
        self._pairs: list[_Pair] = []
        self._listening = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # a close alone would not wake accept()
        self._listening.close()
        self.cut_existing()

    def cut_existing(self) -> None:
        """End the connections that there are; the next ones meet the fault of their time."""
        for pair in self._pairs:
            pair.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = _connected(self.target)
            except OSError:
                client.close()
                continue
            pair = _Pair(self, client, server)
            self._pairs = [other for other in self._pairs if other.open] + [pair]
            pair.start()


class _Pair:
    """One client, its server, and a thread for each way."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._fault, self._hung, self.open = proxy.fault, threading.Event(), True

    def start(self) -> None:
        for way in (self._forth, self._back):
            threading.Thread(target=self._run, args=(way,), daemon=True).start()

    def _run(self, way: object) -> None:
        with suppress(OSError):
            way()  # type: ignore[operator] # one of the two methods below
        self.close()

    def _forth(self) -> None:
        fault, seen = self._fault, 0
        while data := self._client.recv(65536):
            if isinstance(fault, Cut | Hang) and seen + len(data) >= fault.after:
                self._server.sendall(data[: fault.after - seen])
                self._proxy.hits += 1
                if isinstance(fault, Hang):
                    self._hung.set()
                    self._proxy._ended.wait()
                elif fault.reset:
                    for sock in (self._client, self._server):
                        sock.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                return
            if isinstance(fault, Word) and fault.word in data:
                self._proxy.hits += 1
                if fault.delivered:
                    self._hung.set()  # the answer stays here
                    self._server.sendall(data)
                    time.sleep(0.3)  # until the server has done it
                return
            if isinstance(fault, Dribble):
                for at in range(0, len(data), fault.size):
                    self._server.sendall(data[at : at + fault.size])
                    self._proxy.hits += 1
                    if self._proxy._ended.wait(fault.pause):
                        return
            else:
                self._pause()
                self._server.sendall(data)
            seen += len(data)

    def _back(self) -> None:
        fault, seen = self._fault, 0
        while data := self._server.recv(65536):
            if self._hung.is_set():
                self._proxy._ended.wait()
                return
            seen += 1
            if isinstance(fault, Deaf) and seen > fault.after:
                self._proxy.hits += 1
                return
            self._pause()
            self._client.sendall(data)

    def _pause(self) -> None:
        if isinstance(self._fault, Delay):
            self._proxy.hits += 1
            time.sleep(self._fault.seconds)

    def close(self) -> None:
        self.open = False
        for sock in (self._client, self._server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _connected(target: Address) -> socket.socket:
    if isinstance(target, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(target)
        return sock
    sock = socket.create_connection(target)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
