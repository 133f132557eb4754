"""Owns the listener's associations: who is let in, what is bound, how it ends.

Refuses to decide about instances and studies: an `Inbox` does. The order of the checks is that of
the rejections a sender can act on: our limit (2,3,2), its called title (1,1,7), its own title or
address (1,1,3); when the database cannot say, temporary congestion (2,3,1).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import cast

import structlog
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from dicom_node.dimse.contexts import accepted, keep_first_choice
from dicom_node.dimse.transport import GuardedAssociation, Limits, configure_pynetdicom, introduce
from dicom_node.listener.commitment import Commitments
from dicom_node.listener.connections import Connections, bind
from dicom_node.listener.inbox import Inbox
from dicom_node.listener.mpps import ProcedureSteps
from dicom_node.listener.storage import store
from dicom_node.settings import ListenerSettings

__all__ = ["Inbox", "bind", "serve"]

log = structlog.get_logger(__name__)

# Result, source, reason: PS3.8 table 9-21
Rejection = tuple[int, int, int]
CALLED_AE_UNKNOWN: Rejection = (1, 1, 7)
CALLING_AE_UNKNOWN: Rejection = (1, 1, 3)
CONGESTION: Rejection = (2, 3, 1)
LIMIT_EXCEEDED: Rejection = (2, 3, 2)

DRAIN_SECONDS = 10.0


def serve(
    settings: ListenerSettings,
    inbox: Inbox,
    *,
    stop: threading.Event,
    ready: Callable[[int], None],
    sock: socket.socket | None = None,
    drain: float = DRAIN_SECONDS,
) -> None:
    """Take associations until ``stop``, let the running ones finish, and return.

    Args:
        settings: names, timeouts and limits.
        inbox: the node behind the listener.
        stop: set by another thread or a signal handler.
        ready: called once with the port, when connections are taken.
        sock: a listening socket of `bind`, perhaps inherited; None binds the settings' own.
        drain: seconds for running associations to finish after ``stop``; then they are aborted.

    Raises:
        OSError: the address cannot be bound.
    """
    configure_pynetdicom()
    sock = sock or bind(settings.host, settings.port)
    limits = Limits(
        pdu=settings.maximum_pdu,
        dataset=settings.maximum_object_mb << 20,
        request=settings.association_timeout,
        idle=settings.idle_timeout,
    )
    listener = _Listener(settings, inbox, limits)
    connections = Connections(sock, settings.maximum_connections, limits, listener.converse)
    ready(sock.getsockname()[1])
    try:
        connections.accept_until(stop)
    finally:
        listener.drain(drain)


class _Listener:
    def __init__(self, settings: ListenerSettings, inbox: Inbox, limits: Limits) -> None:
        self._settings, self._inbox, self._limits = settings, inbox, limits
        self._ae = AE(settings.ae_title)
        introduce(self._ae)
        # pynetdicom counts by thread names, under which ours do not run; `_live` decides.
        self._ae.maximum_associations = 1 << 20
        self._steps = ProcedureSteps(inbox)
        self._commitments = Commitments(settings.ae_title, inbox)
        self._changed = threading.Condition()
        self._live: set[GuardedAssociation] = set()

    def converse(self, sock: socket.socket, request: bytes) -> None:
        """Hold one association from its request to its end."""
        association = GuardedAssociation(self._ae, sock, request, self._limits)
        association.acceptor.supported_contexts = list(accepted())
        association.bind(evt.EVT_REQUESTED, self._decide)
        association.bind(evt.EVT_C_STORE, store, [self._inbox])
        association.bind(evt.EVT_N_CREATE, self._steps.create)
        association.bind(evt.EVT_N_SET, self._steps.update)
        association.bind(evt.EVT_N_ACTION, self._commitments.request)
        try:
            association.run_reactor()
        finally:
            self._end(association)

    def _end(self, association: GuardedAssociation) -> None:
        """The only place where an opened association is closed, however it ended."""
        aborted = not association.is_released
        try:
            if association.row is not None:
                self._inbox.close_association(association.row, aborted=aborted)
                log.info("association closed", aborted=aborted, **association.names)
        except Exception as error:
            log.error("association not closed", error=type(error).__name__, **association.names)
        finally:
            self._forget(association)

    def _forget(self, association: GuardedAssociation) -> None:
        with self._changed:
            self._live.discard(association)
            self._changed.notify_all()

    def _decide(self, event: Event) -> None:
        """Let it in or reject it. An exception in this handler would let it in."""
        association = cast(GuardedAssociation, event.assoc)
        primitive = cast(A_ASSOCIATE, association.requestor.primitive)
        calling, called = primitive.calling_ae_title.strip(), primitive.called_ae_title.strip()
        # An IPv4 peer of a socket that takes both families
        address = association.requestor.address.removeprefix("::ffff:")
        association.requestor.ae_title = calling
        try:
            rejection = self._rejection(association, calling, called, address)
        except Exception as error:
            log.error("association not decided", error=type(error).__name__)
            rejection = CONGESTION
        if rejection is not None:
            log.warning(
                "association rejected",
                rejection=rejection,
                calling=calling,
                called=called,
                address=address,
            )
            self._forget(association)
            association.acse.send_reject(*rejection)
            association.kill()
            return
        keep_first_choice(primitive.presentation_context_definition_list)
        log.info("association opened", address=address, **association.names)

    def _rejection(
        self, association: GuardedAssociation, calling: str, called: str, address: str
    ) -> Rejection | None:
        with self._changed:
            # Who was released may come again before its thread has ended.
            running = sum(not other.is_released for other in self._live)
            if running >= self._settings.maximum_associations:
                return LIMIT_EXCEEDED
            self._live.add(association)
        if called != self._settings.ae_title:
            return CALLED_AE_UNKNOWN
        if not self._inbox.known(calling, address):
            return CALLING_AE_UNKNOWN
        association.row = self._inbox.open_association(calling, called, address)
        return None

    def drain(self, seconds: float) -> None:
        """Wait for the running associations, then abort what is left of them."""
        if not self._empty_within(seconds):
            with self._changed:
                left = list(self._live)
            log.warning("associations aborted", number=len(left))
            for association in left:
                association.abort(block=False)
            # A C-STORE in the inbox's hands is finished there, and its answer never sent.
            self._empty_within(5.0)
        self._commitments.stop()

    def _empty_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)
