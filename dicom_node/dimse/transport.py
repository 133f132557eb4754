"""Owns the guarded pieces under pynetdicom: whatever a peer can make us hold, await or spin on
has a bound here. Refuses to know who the peer is and what a data set means.

- Every read of a PDU and every write has a deadline; a declared PDU length has a cap.
- An association exists only once its whole A-ASSOCIATE-RQ is here (`read_request`), so silent
  clients cost a blocked thread each and none of pynetdicom's.
- A data set over the limit is read to its end and dropped, to be answered with a status.
- While one message waits to be served, no more is read: TCP holds back who pipelines.
- pynetdicom's two loops wait for events instead of polling a thousand times a second.
"""

from __future__ import annotations

import logging
import queue
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, cast

import structlog
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

log = structlog.get_logger(__name__)

# 128 presentation contexts of 40 transfer syntaxes are 350 kB.
REQUEST_CAP: Final = 1 << 20
COMMAND_CAP: Final = 1 << 16
# N-ACTION and N-SET: references to 50,000 instances are about 8 MB.
SERVICE_DATASET_CAP: Final = 16 << 20
# Seconds after which a waiting loop looks at its timers, if nothing woke it before.
TICK: Final = 0.25
_ABORT_PDU: Final = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))  # PS3.8 9.3.8: by the provider


class ProtocolBreach(Exception):
    """The peer sent what no conforming peer sends; the association ends."""


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


class _Wake:
    """Makes a poll return, from any thread."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)

    def fileno(self) -> int:
        return self._here.fileno()

    def set(self) -> None:
        try:
            self._there.send(b"\0")
        except OSError:  # full: awake already; closed: nobody left to wake
            return

    def clear(self) -> None:
        try:
            self._here.recv(4096)
        except OSError:
            return

    def close(self) -> None:
        self._here.close()
        self._there.close()


class _AnnouncingQueue(queue.Queue[Any]):
    """A queue that calls back after each put."""

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._announce()


class AcceptedSocket(DeadlineSocket):
    """The socket of an accepted association: begins with the request that was already read."""

    assoc: GuardedAssociation

    def __init__(
        self, assoc: GuardedAssociation, sock: socket.socket, request: bytes, limits: Limits
    ) -> None:
        super().__init__(assoc, limits, client_socket=sock)
        self._request = bytearray(request)
        self._wake_only, self._all = select.poll(), select.poll()
        for poll in (self._wake_only, self._all):
            poll.register(assoc.wake, select.POLLIN)
        self._all.register(sock, select.POLLIN)

    @property
    def ready(self) -> bool:
        """Whether there is something to read; waits for that, or for something to send.

        With TLS, what the SSL socket holds decrypted must count here too.
        """
        if self.socket is None or not self._is_connected:
            return False
        if self._request:
            return True
        poll = self._wake_only if self.assoc.dimse.is_full else self._all
        events = poll.poll(TICK * 1000 if self.event_queue.empty() else 0)
        self.assoc.wake.clear()
        return any(fd != self.assoc.wake.fileno() for fd, _ in events)

    def recv(self, nr_bytes: int) -> bytearray:
        """The request first, then the network."""
        if self._request:
            taken, self._request = self._request[:nr_bytes], self._request[nr_bytes:]
            return taken
        return super().recv(nr_bytes)


class DiscardedDataSet(BytesIO):
    """Stands for a data set that passed the limit; its bytes were not kept."""

    size = 0

    def write(self, data: Any) -> int:
        """Count only."""
        self.size += len(data)
        return len(data)


class _GuardedDimse(DIMSEServiceProvider):
    """Message assembly with limits, and a queue of one."""

    assoc: GuardedAssociation

    @property
    def is_full(self) -> bool:
        """Whether a message waits while another is served: nothing more is read meanwhile."""
        return not self.msg_queue.empty()

    def get_msg(self, block: bool = False) -> Any:
        """The next message. The reactor asks without blocking, in a loop: let it wait here."""
        if block:
            return super().get_msg(block=True)
        try:
            item = self.msg_queue.get(timeout=TICK)
        except queue.Empty:
            return None, None
        self.assoc.wake.set()
        return item

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA. An exception here would end pynetdicom's thread without an abort."""
        try:
            self._bound(primitive)
            super().receive_primitive(primitive)
        except Exception as error:
            log.warning("message abandoned", error=type(error).__name__, **self.assoc.names)
            self.message = None
            self.dul.event_queue.put("Evt19")

    def _bound(self, primitive: P_DATA) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
        message = self.message
        for _, fragment in primitive.presentation_data_value_list:
            size = len(fragment) - 1  # PS3.8 E.2: the first byte is the control header
            if fragment[0] & 1:  # a command
                if message.encoded_command_set.tell() + size > COMMAND_CAP:
                    raise ProtocolBreach("command set too long")
                continue
            held, limit = cast(BytesIO, message.data_set), self.assoc.limits.dataset
            if isinstance(held, DiscardedDataSet):
                if held.size > 2 * limit:
                    raise ProtocolBreach("data set without end")
            elif not isinstance(message, C_STORE_RQ):
                if held.tell() + size > SERVICE_DATASET_CAP:
                    raise ProtocolBreach("data set of a service too long")
            elif held.tell() + size > limit:
                message.data_set = DiscardedDataSet()
                message.data_set.size = held.tell()


class _GuardedDul(DULServiceProvider):
    """The upper layer's thread, woken by what concerns it."""

    def __init__(self, assoc: GuardedAssociation) -> None:
        super().__init__(assoc)
        self.daemon = True  # a stuck peer must not keep the process alive
        self._run_loop_delay = 0  # `AcceptedSocket.ready` waits instead
        self.to_provider_queue = _AnnouncingQueue(assoc.wake.set)
        # The reactor waits for messages; a release or abort must end that wait.
        self.to_user_queue = _AnnouncingQueue(lambda: assoc.dimse.msg_queue.put((None, None)))

    def run_reactor(self) -> None:
        """Run until the association ends, whatever the peer does to the state machine."""
        try:
            super().run_reactor()
        except Exception as error:  # InvalidEventError and worse; the reactor sees us dead
            log.warning("upper layer failed", error=type(error).__name__)


class GuardedAssociation(Association):
    """One accepted association on a connected socket; `run_reactor` returns when it is over.

    Attributes:
        row: the caller's own key of this association, None until it is accepted.
        afterwards: what to do in the reactor's thread once the running service has answered.
    """

    dimse: _GuardedDimse

    def __init__(self, ae: AE, sock: socket.socket, request: bytes, limits: Limits) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.limits = limits
        self.wake = _Wake()
        self.row: int | None = None
        self.afterwards: list[Callable[[], None]] = []
        self.dul = _GuardedDul(self)
        self.dimse = _GuardedDimse(self)
        # The request is here already, so this only bounds how long a broken one lingers.
        self.acse_timeout = min(limits.request, 5)
        self.network_timeout = limits.idle
        self.acceptor.maximum_length = limits.pdu
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.acceptor.address_info = AddressInformation(*sock.getsockname()[:2])
        self.requestor.address_info = AddressInformation(*sock.getpeername()[:2])
        self.set_socket(AcceptedSocket(self, sock, request, limits))

    @property
    def names(self) -> dict[str, Any]:
        """What logs may say of it."""
        return {"association": self.row, "calling": self.requestor.ae_title}

    def run_reactor(self) -> None:
        """Negotiate and serve until released, aborted or lost; leaves nothing open."""
        try:
            super().run_reactor()
        finally:
            self.dul.kill_dul()
            self.wake.set()
            if self.dul.is_alive():
                self.dul.join(self.limits.idle)
            self.wake.close()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if isinstance(msg, N_EVENT_REPORT):
            return  # an answer to ours, or uncalled for: as an acceptor we offer no SCU role
        if isinstance(msg, C_STORE) and msg.MessageIDBeingRespondedTo is None:
            self._serve_store(msg, context_id)
        else:
            super()._serve_request(msg, context_id)
        while self.afterwards:
            self.afterwards.pop(0)()

    def _serve_store(self, request: C_STORE, context_id: int) -> None:
        """Hand every C-STORE to the handler.

        pynetdicom would answer nothing to one that lacks a parameter, and abort for a SOP class
        that it does not know; both deserve a status.
        """
        context = self._accepted_cx.get(context_id)
        if context is None or request.MessageID is None:
            self.abort()
            return
        self._is_paused = True
        StorageServiceClass(self).SCP(request, context)
        self._is_paused = False


class _PatientDimse(DIMSEServiceProvider):
    """Counts the time for an answer from the last byte sent, not from when sending began.

    Where the connection is gone it gives up at once.
    """

    def get_msg(self, block: bool = False) -> Any:
        if not block:
            return super().get_msg(block=False)
        sock, asked = cast(DeadlineSocket, self.dul.socket), time.monotonic()
        while True:
            try:
                return self.msg_queue.get(timeout=TICK)
            except queue.Empty:
                quiet_since = max(asked, sock.last_write)
                lost = not self.dul.is_alive()
                if lost or time.monotonic() - quiet_since > sock.limits.idle:
                    return None, None


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
