"""Owns the guarded pieces under pynetdicom that both directions share, and outgoing associations.

Whatever a peer can make us await or hold has a bound here. Refuses to know who the peer is.

- Every read of a PDU and every write has a deadline; a declared PDU length has a cap.
- An association exists only once its whole A-ASSOCIATE-RQ is here (`read_request`), so silent
  clients cost a blocked thread each and none of pynetdicom's.
"""

from __future__ import annotations

import logging
import queue
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, cast

from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.dimse.messages import ProtocolBreach

__all__ = [
    "REQUEST_CAP",
    "DeadlineSocket",
    "Limits",
    "ProtocolBreach",
    "RequestorAE",
    "configure_pynetdicom",
    "introduce",
    "prepare",
    "read_request",
    "receive_exactly",
]

# 128 presentation contexts of 40 transfer syntaxes are 350 kB.
REQUEST_CAP: Final = 1 << 20
# Seconds after which a wait for an answer looks whether the connection is still there.
TICK: Final = 0.25
_ABORT_PDU: Final = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))  # PS3.8 9.3.8: by the provider


@dataclass(frozen=True)
class Limits:
    """What one peer may take from us.

    Attributes:
        pdu: bytes of one P-DATA-TF PDU that we offer to take.
        dataset: bytes of one C-STORE data set.
        request: seconds for the whole A-ASSOCIATE-RQ.
        idle: seconds without a byte, for one PDU to arrive, and for each write.
    """

    pdu: int
    dataset: int
    request: float
    idle: float


def configure_pynetdicom() -> None:
    """Set pynetdicom's process-wide switches; harmless to repeat.

    Its logs quote data sets, so all of them go; files are sent as they lie on disk.
    """
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_SEND_CHUNKED_DATASET = True


def introduce(ae: AE) -> None:
    """Say in every association whose implementation this is (PS3.7 D.3.3.2)."""
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME


def prepare(sock: socket.socket, timeout: float) -> None:
    """Give a TCP socket what pynetdicom does not.

    Without TCP_NODELAY, Nagle's algorithm against delayed ACKs costs 40 ms an object with many
    peers. TCP_USER_TIMEOUT ends writes to a peer that is gone or closed its window.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))
    sock.settimeout(timeout)


def receive_exactly(sock: socket.socket, size: int, deadline: float) -> bytearray:
    """Read ``size`` bytes, fewer only where the peer closes.

    Raises:
        TimeoutError: ``deadline`` (monotonic seconds) passed.
        OSError: the connection broke.
    """
    data = bytearray(size)
    view, read = memoryview(data), 0
    while read < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the peer was too slow")
        sock.settimeout(left)
        count = sock.recv_into(view[read:])
        if not count:
            view.release()
            del data[read:]
            break
        read += count
    return data


def read_request(sock: socket.socket, timeout: float) -> bytes:
    """Read and check one whole A-ASSOCIATE-RQ PDU, before anything else is spent on the peer.

    Raises:
        ProtocolBreach: it is something else, too large, or cannot be decoded; an A-ABORT was sent.
        OSError: the peer left, or took longer than ``timeout`` seconds (TimeoutError).
    """
    deadline = time.monotonic() + timeout
    head = receive_exactly(sock, 6, deadline)
    if len(head) < 6:
        raise ConnectionResetError("the peer left")
    kind, _, length = struct.unpack(">BBL", head)
    if kind != 1 or length > REQUEST_CAP:
        _refuse(sock, f"first PDU of type {kind}, {length} bytes")
    body = receive_exactly(sock, length, deadline)
    if len(body) < length:
        raise ConnectionResetError("the peer left")
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(bytes(head + body))
        request.to_primitive()
    except Exception as error:  # pynetdicom's decoder raises whatever the bytes lead it to
        _refuse(sock, f"A-ASSOCIATE-RQ cannot be decoded ({type(error).__name__})")
    return bytes(head + body)


def _refuse(sock: socket.socket, reason: str) -> None:
    sock.sendall(_ABORT_PDU)
    raise ProtocolBreach(reason)


class DeadlineSocket(AssociationSocket):
    """pynetdicom's socket with a cap on PDUs and a deadline for each read and write."""

    def __init__(
        self,
        assoc: Association,
        limits: Limits,
        client_socket: socket.socket | None = None,
        address: AddressInformation | None = None,
    ) -> None:
        super().__init__(assoc, client_socket, address)
        self.limits = limits
        self.last_write = time.monotonic()
        # Some peers exceed the length that we offered; what they may not do is choose it.
        self._cap = max(limits.pdu, REQUEST_CAP)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect; pynetdicom leaves the socket without timeouts afterwards."""
        super().connect(primitive)
        if self.socket is not None:
            prepare(self.socket, self.limits.idle)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes, fewer only where the peer closed.

        Raises:
            ProtocolBreach: more than any PDU of ours may have.
            OSError: too slow, or broken.
        """
        if nr_bytes > self._cap:
            raise ProtocolBreach(f"PDU of {nr_bytes} bytes declared")
        if self.socket is None:
            raise ConnectionResetError("closed")
        return receive_exactly(self.socket, nr_bytes, time.monotonic() + self.limits.idle)

    def send(self, bytestream: bytes) -> None:
        """Write all, or report the connection as closed to the state machine (Evt17).

        A whole data set may be one PDU (a peer may offer no limit), so time grows with size.
        """
        deadline = time.monotonic() + self.limits.idle * (1 + len(bytestream) / (1 << 20))
        left = memoryview(bytestream)
        try:
            while left:
                if self.socket is None:
                    raise ConnectionResetError("closed")
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                left = left[self.socket.send(left) :]
                self.last_write = time.monotonic()
        except OSError:
            self.event_queue.put("Evt17")


class _PatientDimse(DIMSEServiceProvider):
    """Counts the time for an answer from the last byte sent, not from when sending began.

    Where the connection is gone it gives up at once. A report on storage commitment may come while
    an answer is awaited: it is kept for the reactor, which answers it in a message of its own. The
    reactor gets nothing else: woken late on a busy machine, it would take the answer for a request
    and drop it, and whoever waits for it would wait in vain.
    """

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self._reports: deque[Any] = deque()
        self._one_message = threading.Lock()

    def send_msg(self, primitive: Any, context_id: int) -> None:
        with self._one_message:  # fragments of two must not mix (PS3.8 annex E)
            super().send_msg(primitive, context_id)

    def get_msg(self, block: bool = False) -> Any:
        if not block:
            with self.msg_queue.mutex:
                came = self.msg_queue.queue
                if came and _is_report(came[0]):
                    self._reports.append(came.popleft())
            return self._reports.popleft() if self._reports else (None, None)
        sock, asked = cast(DeadlineSocket, self.dul.socket), time.monotonic()
        while True:
            try:
                item = self.msg_queue.get(timeout=TICK)
                if not _is_report(item):
                    return item
                self._reports.append(item)
            except queue.Empty:
                quiet_since = max(asked, sock.last_write)
                lost = not self.dul.is_alive()
                if lost or time.monotonic() - quiet_since > sock.limits.idle:
                    return None, None


def _is_report(item: tuple[int | None, Any]) -> bool:
    """Whether a message of the queue is an N-EVENT-REPORT that asks for an answer."""
    message = item[1]
    return isinstance(message, N_EVENT_REPORT) and bool(message.is_valid_request)


class RequestorAE(AE):
    """An AE whose outgoing associations cannot be held up by the peer.

    Args:
        ae_title: the calling AE title.
        timeout: seconds to connect, for each answer, and for each write.
    """

    def __init__(self, ae_title: str, timeout: float) -> None:
        configure_pynetdicom()
        super().__init__(ae_title)
        introduce(self)
        self._limits = Limits(pdu=self.maximum_pdu_size, dataset=0, request=timeout, idle=timeout)
        self.connection_timeout = timeout
        self.acse_timeout = timeout
        self.dimse_timeout = timeout
        self.network_timeout = None  # the answers' own deadlines decide

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: Any
    ) -> AssociationSocket:
        assoc.dimse = _PatientDimse(assoc)
        sock = DeadlineSocket(assoc, self._limits, address=address)
        sock.tls_args = tls_args
        return sock
