"""What judges and takes audit messages: the schema of PS3.15 A.5.1, and a syslog receiver.

check(xml)                                # raises what the schema has against it
with Receiver(tmp_path) as receiver:      # TLS on a port of 127.0.0.1, mutual
    Shipper(trail, receiver.settings()).ship()
    receiver.messages
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lxml import etree

from dicom_node.audit.recorder import Recorder
from dicom_node.audit.trail import Record
from dicom_node.settings import AuditSettings
from tests.servers import need

HEADER = 512
"""Bytes in which the header of one of our RFC 5424 messages ends."""


@cache
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(file=str(Path(__file__).with_name("audit_message.rng")))


def check(xml: bytes) -> etree._Element:
    """The message as parsed, which the schema accepts."""
    root = etree.fromstring(xml)
    schema().assertValid(root)
    requestors = root.xpath("ActiveParticipant[@UserIsRequestor='true']")
    assert len(requestors) <= 1, "PS3.15 A.5.2: one requestor at most"
    return root


def xml_of(message: bytes) -> bytes:
    """The MSG part of an RFC 5424 message, which begins with the byte order mark."""
    head, mark, xml = message.partition(b"\xef\xbb\xbf")
    assert mark and len(head) < HEADER
    return xml


def checked(records: Sequence[Record]) -> list[etree._Element]:
    """What records say, each valid."""
    return [check(xml_of(record.message)) for record in records]


def audited(recorder: Recorder) -> list[etree._Element]:
    """All that a trail holds, each valid and the chain whole."""
    assert recorder.trail.verify().faults == ()
    return checked(list(recorder.trail.read()))


def event(root: etree._Element) -> str:
    """What a message tells, in short, as ``DICOM Instances Transferred C 0``."""
    told = root[0]
    names = [code.get("originalText") for code in told if code.get("originalText")]
    action, outcome = told.get("EventActionCode"), told.get("EventOutcomeIndicator")
    return f"{', '.join(names)} {action} {outcome}"


def certificates(folder: Path) -> Path:
    """A certificate authority, and what it signed for 127.0.0.1: ``ca``, ``server``, ``client``."""
    folder.mkdir(parents=True, exist_ok=True)
    openssl = need("openssl")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    new = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split()
    run(*new, *"-x509 -keyout ca.key -out ca.pem -subj /CN=ca -days 2".split())
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        run(*new, *f"-keyout {name}.key -out {name}.csr -subj /CN={name}".split())
        sign = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem"
        run(*sign.split(), *"-days 2 -extfile san".split())
    return folder


class Receiver:
    """A syslog receiver by RFC 5425 on 127.0.0.1; keeps what it read, in order.

    Args:
        folder: of `certificates`.
        port: 0 lets the system choose.
        dies_after: messages after which it drops its connections without a word, as a kill does.
        mute: never return close_notify.
    """

    def __init__(
        self, folder: Path, port: int = 0, dies_after: int | None = None, mute: bool = False
    ) -> None:
        self._folder, self._dies_after, self._mute = folder, dies_after, mute
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
        self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listening.getsockname()[1])
        self.messages: list[bytes] = []
        self.clients: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def settings(self, **more: Any) -> AuditSettings:
        """Of a node that ships here."""
        files = {name: str(self._folder / f"client.{name}") for name in ("key",)}
        return AuditSettings(
            **{
                "receiver": "127.0.0.1",
                "port": self.port,
                "ca": str(self._folder / "ca.pem"),
                "certificate": str(self._folder / "client.pem"),
                "timeout": 5,
                **files,
                **more,
            }
        )

    def _end(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listening.close()

    def _serve(self) -> None:
        while self._listening.fileno() >= 0:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            plain.settimeout(5)
            with suppress(OSError), self._tls.wrap_socket(plain, server_side=True) as sock:
                subject = dict(pair[0] for pair in sock.getpeercert()["subject"])
                self.clients.append(subject["commonName"])
                self._take(sock)

    def _take(self, sock: ssl.SSLSocket) -> None:
        read = _reader(sock)
        while True:
            digits = b""
            while (byte := read(1)) != b" ":
                if not byte:
                    if not self._mute:
                        sock.unwrap()
                    return
                digits += byte
            self.messages.append(read(int(digits)))
            if self._dies_after is not None and len(self.messages) >= self._dies_after:
                self._end()
                return


def _reader(sock: ssl.SSLSocket) -> Callable[[int], bytes]:
    left = bytearray()

    def read(count: int) -> bytes:
        while len(left) < count:
            got = sock.recv(65536)
            if not got:
                return b""
            left.extend(got)
        taken = bytes(left[:count])
        del left[:count]
        return taken

    return read
