"""A DICOMweb server that does as it is told, over a real socket: nothing of the node's own.

with Web([Answer(503, headers={"Retry-After": "7"})]) as web:
    ...send to web.url...
assert [r.path for r in web.requests] == ["/dicom-web/studies"]
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from typing import Any

from pydicom import dcmread

PART = re.compile(
    rb"--(?P<b>[^\r]+)\r\nContent-Type: application/dicom\r\n\r\n(?P<file>.*)\r\n--(?P=b)--\r\n",
    re.DOTALL,
)


class Do(Enum):
    """What the server does instead of answering."""

    HANG = auto()  # reads the request, then says nothing
    NOT_READ = auto()  # does not even read the request's body
    TRICKLE = auto()  # reads it at 0.6 MB a second
    DROP = auto()  # cuts the connection
    DRIBBLE = auto()  # a byte of the status line every tenth of a second
    DRIBBLE_BODY = auto()  # likewise, after the header
    ENDLESS = auto()  # a body without end
    NONSENSE = auto()  # not HTTP


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def file(self) -> bytes:
        """The one part of a STOW request."""
        found = PART.fullmatch(self.body)
        assert found, self.body[:200]
        return found["file"]


def stored(
    taken: Mapping[str, int | None] | None = None,
    failed: Mapping[str, int | None] | None = None,
    status: int = 200,
) -> Answer:
    """A Store Instances Response: UID -> Warning or Failure Reason, None for none."""
    told = {
        "00081199": _sequence(taken or {}, "00081196"),
        "00081198": _sequence(failed or {}, "00081197"),
    }
    return Answer(status, json.dumps(told).encode(), {"Content-Type": "application/dicom+json"})


def _sequence(reasons: Mapping[str, int | None], tag: str) -> dict[str, Any]:
    items = []
    for uid, reason in reasons.items():
        item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
        if reason is not None:
            item[tag] = {"vr": "US", "Value": [reason]}
        items.append(item)
    return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}


class Web:
    """A server on 127.0.0.1.

    Args:
        answers: for each request in turn; when they are used up, objects are taken and queries
            find nothing.
        context: for https; None: plain http.
    """

    def __init__(
        self, answers: Iterable[Answer | Do] = (), context: ssl.SSLContext | None = None
    ) -> None:
        self.answers, self.requests = list(answers), list[Request]()
        self.connections = 0
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                outer._answer(self)

            do_POST = do_OPTIONS = do_GET  # noqa: N815 - names of http.server

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that is gone is what these tests are about

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.scheme = "https" if context else "http"
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/dicom-web"

    def __enter__(self) -> Web:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer in (Do.NOT_READ, Do.TRICKLE):
            if answer is Do.NOT_READ:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            while not self._released.wait(0.1):
                if answer is Do.TRICKLE:
                    handler.rfile.read(1 << 16)
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        request = Request(handler.command, handler.path, dict(handler.headers.items()), body)
        self.requests.append(request)
        if isinstance(answer, Do):
            self._misbehave(handler, answer)
            handler.close_connection = True
            return
        answer = answer or _usual(request)
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer.body)

    def _misbehave(self, handler: BaseHTTPRequestHandler, what: Do) -> None:
        if what is Do.HANG:
            self._released.wait()
        elif what is Do.DROP:
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif what is Do.NONSENSE:
            handler.wfile.write(b"\4\0\0\0\0 Doe^John\r\n\r\n")
        elif what is Do.ENDLESS:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self._released.is_set():
                handler.wfile.write(b"[" * 65536)
        else:
            if what is Do.DRIBBLE_BODY:
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not self._released.wait(0.1):
                handler.wfile.write(b"H" if what is Do.DRIBBLE else b" ")


def _usual(request: Request) -> Answer:
    if request.method != "POST":
        return Answer(200, b"[]", {"Content-Type": "application/dicom+json"})
    return stored({str(dcmread(BytesIO(request.file)).SOPInstanceUID): None})
