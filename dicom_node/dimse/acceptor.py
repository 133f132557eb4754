"""Owns accepted associations: one thread reads, serves and answers; pynetdicom decides the rest.

Refuses to know who the peer is and what a data set means. pynetdicom's negotiation, state machine
and services run in the same thread, whenever something concerns them. A C-STORE does not: its data
set goes piece by piece to whoever stores it, and its answer straight to the socket. Any other
message is put together here, under a cap, and handed to pynetdicom; then the loop goes on.

Nothing is read while something is served, so TCP holds back who pipelines. He also waits `PAUSE`
before each message that he sent without waiting for the answer: Python's threads give way for
moments so short that others, who have to wake up first, miss them for seconds.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from dicom_node.dimse.messages import (
    C_STORE_RQ,
    COMMAND_FIELD,
    MESSAGE_ID,
    Assembly,
    Command,
    ProtocolBreach,
    Sink,
    command_pdus,
    store_response,
)
from dicom_node.dimse.status import Answer
from dicom_node.dimse.transport import DeadlineSocket, Limits

log = structlog.get_logger(__name__)

# N-ACTION and N-SET: references to 50,000 instances are about 8 MB.
SERVICE_DATASET_CAP: Final = 16 << 20
# Bytes a second that a message comes with at least: a slow line has many times as many.
SLOWEST: Final = 4 << 10
# Seconds; no operations window is agreed on (PS3.7 D.3.3.3), so others await their answers anyway.
PAUSE: Final = 0.001
# Seconds that the peer has to close the connection once all is said.
LINGER: Final = 0.25
_HEAD: Final = 6  # bytes: type, reserved, length (PS3.8 9.3.1)
_P_DATA: Final = 4
_CLOSED: Final = "Evt17"  # PS3.8 table 9-10
_NONSENSE: Final = "Evt19"
_OVER: Final = frozenset({"Sta1", "Sta13"})  # PS3.8 9.2.1: idle, and waiting for the close


class Receiving(Protocol):
    """One C-STORE in the hands of whoever stores it. Nothing but `ProtocolBreach` leaves it."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the data set; the view is good during the call only."""
        ...

    def finish(self) -> Answer:
        """The data set is complete; what the peer is to be told."""
        ...

    def drop(self) -> None:
        """It will never be complete."""
        ...


OnStore = Callable[["GuardedAssociation", PresentationContext, Command], Receiving]


class AcceptedSocket(DeadlineSocket):
    """The socket of an accepted association, TCP or TLS; reads ahead, up to one PDU's length."""

    def __init__(self, assoc: Association, sock: socket.socket, limits: Limits) -> None:
        super().__init__(assoc, limits, client_socket=sock)
        self._buffer = memoryview(bytearray(limits.pdu + _HEAD))
        self._start = self._end = 0
        self._waited, self._taken = 0.0, 0

    def next_pdu(self, under_way: bool = False) -> memoryview:
        """The next PDU, whole; the view is good until the next call.

        Args:
            under_way: it belongs to the same message as the one before. What we wait for all PDUs
                of a message is bounded, by the idle time and `SLOWEST`: each by itself may be in
                time, and the message without end.

        Raises:
            ProtocolBreach: more is declared than any PDU of ours may have.
            TimeoutError: nothing came within the idle time, or not all of it within another.
            OSError: the peer left, or the connection broke.
        """
        if not under_way:
            self._waited, self._taken = 0.0, 0
            if self._start < self._end:
                time.sleep(PAUSE)  # a peer that does not await answers
        begun = time.monotonic()
        slow = self._taken / SLOWEST - self._waited
        self._fill(1, begun + self.limits.idle + min(slow, 0.0))
        deadline = time.monotonic() + self.limits.idle
        self._fill(_HEAD, deadline)
        (length,) = struct.unpack_from(">L", self._buffer, self._start + 2)
        if length > self._cap:
            raise ProtocolBreach(f"PDU of {length} bytes declared")
        self._fill(_HEAD + length, deadline)
        pdu = self._buffer[self._start : self._start + _HEAD + length]
        self._start += _HEAD + length
        self._taken += _HEAD + length
        self._waited += time.monotonic() - begun
        return pdu

    def discard(self, deadline: float) -> None:
        """Read and forget until the peer closes, or until ``deadline`` (monotonic seconds).

        Closing with bytes unread would reset the connection, and our last words with it.
        """
        with suppress(OSError):
            while self.socket is not None and (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv_into(self._buffer):
                    return

    def _fill(self, size: int, deadline: float) -> None:
        """Have so many bytes from ``_start`` on."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + size > len(self._buffer):
            held = bytes(self._buffer[self._start : self._end])
            if size > len(self._buffer):  # a peer that exceeds what we offered
                self._buffer = memoryview(bytearray(size))
            self._start, self._end = 0, len(held)
            self._buffer[: self._end] = held
        while self._end - self._start < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the peer was too slow")
            if self.socket is None:
                raise ConnectionResetError("closed")
            self.socket.settimeout(left)
            count = self.socket.recv_into(self._buffer[self._end :])
            if not count:
                raise ConnectionResetError("the peer left")
            self._end += count


class _Machine(DULServiceProvider):
    """pynetdicom's upper layer, moved by the thread that serves instead of one of its own."""

    def is_alive(self) -> bool:
        """There is no thread to wait for."""
        return False

    def take(self, pdu: bytes) -> None:
        """Give it a PDU from the peer.

        Raises:
            ProtocolBreach: it cannot be decoded.
        """
        try:
            decoded, event = self._decode_pdu(bytearray(pdu))
        except Exception as error:  # pynetdicom's decoder raises whatever the bytes lead it to
            raise ProtocolBreach(f"PDU of type {pdu[0]} cannot be decoded") from error
        self._recv_pdu.put(decoded)
        self.signal(event)

    def send_pdu(self, primitive: Any) -> None:
        """Send it now."""
        super().send_pdu(primitive)
        self.advance()

    def signal(self, event: str) -> None:
        """Tell it what happened (PS3.8 table 9-10)."""
        self.event_queue.put(event)
        self.advance()

    def advance(self) -> None:
        """Do whatever is to be done."""
        while True:
            if self.event_queue.empty():
                if self.state_machine.current_state in _OVER:
                    self.to_provider_queue.queue.clear()  # nobody is left to get it
                if not self._process_recv_primitive():
                    return
            with suppress(InvalidEventError):  # it concerns a state that is past
                self.state_machine.do_action(self.event_queue.get_nowait())


class GuardedAssociation(Association):
    """One accepted association on a connected socket; `run_reactor` returns when it is over.

    Attributes:
        row: the caller's own key of this association, None until it is accepted.
        afterwards: what to do once the running service has answered.
    """

    dul: _Machine

    def __init__(
        self, ae: AE, sock: socket.socket, request: bytes, limits: Limits, store: OnStore
    ) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.limits = limits
        self.row: int | None = None
        self.afterwards: list[Callable[[], None]] = []
        self._request, self._store, self._cut = request, store, False
        self._assembly = Assembly(self._begin)
        self.dul = _Machine(self)
        self._started_dul = True  # or pynetdicom would start its thread
        self.acceptor.maximum_length = limits.pdu
        self.acceptor.ae_title = ae.ae_title
        self.acceptor.implementation_class_uid = ae.implementation_class_uid
        self.acceptor.implementation_version_name = ae.implementation_version_name
        self.acceptor.address_info = AddressInformation(*sock.getsockname()[:2])
        self.requestor.address_info = AddressInformation(*sock.getpeername()[:2])
        self._wire = AcceptedSocket(self, sock, limits)
        self.set_socket(self._wire)

    @property
    def names(self) -> dict[str, Any]:
        """What logs may say of it."""
        return {"association": self.row, "calling": self.requestor.ae_title}

    def run_reactor(self) -> None:
        """Negotiate and serve until released, aborted or lost."""
        try:
            self.dul.take(self._request)
            if self.dul.to_user_queue.empty():  # the machine has rejected it already
                log.warning("association rejected: another version of the protocol", **self.names)
                return
            super().run_reactor()
        except (ProtocolBreach, OSError):
            raise
        except Exception as error:  # pynetdicom negotiates whatever the request leads it to
            why = f"request cannot be negotiated ({type(error).__name__})"
            log.warning("association broken off", reason=why, **self.names)
            self.dul.signal(_NONSENSE)
        finally:
            self._assembly.drop()
            self._wire.discard(time.monotonic() + LINGER)

    def cut(self) -> None:
        """End it, from another thread: it aborts when it reads next, and answers nothing more."""
        self._cut = True
        sock = self._wire.socket
        if sock is not None:
            with suppress(OSError):
                # TLS' own shutdown() would forget its keys, and the abort go out in the clear.
                socket.socket.shutdown(sock, socket.SHUT_RD)

    def _run_reactor(self) -> None:
        while self.is_established and not self._kill:
            try:
                pdu = self._wire.next_pdu(self._assembly.under_way)
                if pdu[0] == _P_DATA:
                    self._assembly.take(pdu[_HEAD:])
                else:
                    self.dul.take(bytes(pdu))
            except ProtocolBreach as breach:
                log.warning("association broken off", reason=str(breach), **self.names)
                self.dul.signal(_NONSENSE)
            except TimeoutError:
                log.warning("association idle or slow for too long", **self.names)
                self.abort()
            except OSError:
                if not self._cut:
                    self.dul.signal(_CLOSED)
            except Exception as error:
                log.error("association failed", error=type(error).__name__, **self.names)
                self.dul.signal(_NONSENSE)
            if self._cut:
                self.abort()
            self._note_end()

    def _note_end(self) -> None:
        """What pynetdicom's own loop does about a release or an abort."""
        if self.is_established and self.acse.is_release_requested():
            self.acse.send_release(is_response=True)
            self.is_released, self.is_established = True, False
            evt.trigger(self, evt.EVT_RELEASED, {})
        elif self.acse.is_aborted():
            self.is_aborted, self.is_established = True, False
            evt.trigger(self, evt.EVT_ABORTED, {})

    def _begin(self, context_id: int, command: Command) -> Sink:
        if command.number(COMMAND_FIELD) != C_STORE_RQ:
            return _Service(self, context_id, command)
        context = self._accepted_cx.get(context_id)
        if context is None or command.number(MESSAGE_ID) is None:
            raise ProtocolBreach("C-STORE without message ID or accepted presentation context")
        return _Store(self, context_id, command, self._store(self, context, command))

    def answer(self, context_id: int, command: bytes) -> None:
        """Send a command set that has no data set."""
        if self._cut:
            return
        for pdu in command_pdus(context_id, command, self.requestor.maximum_length or 0):
            self._wire.send(pdu)
        self.dul.advance()  # a write that failed is an event

    def serve(self, context_id: int, command: Command, data_set: bytes) -> None:
        """Let pynetdicom serve a message.

        Raises:
            ProtocolBreach: it is none that pynetdicom knows.
        """
        primitive = P_DATA()
        values: list[Any] = [[context_id, b"\3" + command.encoded]]
        if command.has_data_set:
            values.append([context_id, b"\2" + data_set])
        primitive.presentation_data_value_list = values
        # Not by `dimse.receive_primitive`, which gives an N-EVENT-REPORT a thread of its own.
        message = DIMSEMessage()
        try:
            message.decode_msg(primitive, self)
            request = message.message_to_primitive()
        except Exception as error:  # whatever the bytes lead it to
            raise ProtocolBreach(f"message cannot be decoded ({type(error).__name__})") from error
        # Nothing that we serve takes long enough to be cancelled.
        if not self._cut and not isinstance(request, C_CANCEL):
            self._serve_request(request, context_id)
        self.dul.advance()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if isinstance(msg, N_EVENT_REPORT) and msg.MessageIDBeingRespondedTo is not None:
            return  # an answer to ours
        super()._serve_request(msg, context_id)
        while self.afterwards:
            self.afterwards.pop(0)()


class _Store:
    """Takes a C-STORE's data set and sends the answer."""

    def __init__(
        self,
        association: GuardedAssociation,
        context_id: int,
        command: Command,
        receiving: Receiving,
    ) -> None:
        self._association, self._context_id = association, context_id
        self._command, self._receiving = command, receiving
        self.write = receiving.write
        self.drop = receiving.drop

    def end(self) -> None:
        """Store it, then answer."""
        answer = self._receiving.finish()
        response = store_response(self._command, answer.status, answer.comment)
        self._association.answer(self._context_id, response)


class _Service:
    """Keeps any other message's data set, and hands both to pynetdicom."""

    def __init__(self, association: GuardedAssociation, context_id: int, command: Command) -> None:
        self._association, self._context_id, self._command = association, context_id, command
        self._data_set = bytearray()

    def write(self, piece: memoryview) -> None:
        """Keep it."""
        if len(self._data_set) + len(piece) > SERVICE_DATASET_CAP:
            raise ProtocolBreach("data set of a service too long")
        self._data_set += piece

    def end(self) -> None:
        """Serve it."""
        self._association.serve(self._context_id, self._command, bytes(self._data_set))

    def drop(self) -> None:
        """Nothing is held outside."""
