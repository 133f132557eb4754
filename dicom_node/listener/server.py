"""Owns the listener's associations: who is let in, what is bound, how it ends.

Refuses to decide about instances and studies, and who is known: an `Inbox` does. The order of the
checks is that of the rejections a sender can act on: our limit (2,3,2), its called title (1,1,7),
its own title, address or certificate (1,1,3), its user identity (1,2,1), its own limit (2,3,2);
when the database cannot say, temporary congestion (2,3,1).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import cast

import structlog
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, UserIdentityNegotiation

from dicom_node.dimse.acceptor import GuardedAssociation
from dicom_node.dimse.contexts import STORAGE_COMMITMENT, accepted, answering, keep_first_choice
from dicom_node.dimse.tls import Renewed, peer_fingerprint
from dicom_node.dimse.transport import Limits, configure_pynetdicom, introduce
from dicom_node.errors import Unavailable
from dicom_node.listener.commitment import Commitments
from dicom_node.listener.connections import Connections, Door, bind
from dicom_node.listener.inbox import Inbox
from dicom_node.listener.mpps import ProcedureSteps
from dicom_node.listener.storage import Storage
from dicom_node.services.admission import Caller, Identity, Reason
from dicom_node.settings import ListenerSettings, TlsSettings

__all__ = ["Door", "Inbox", "bind", "open_doors", "serve"]

log = structlog.get_logger(__name__)

# Result, source, reason: PS3.8 table 9-21
Rejection = tuple[int, int, int]
CALLED_AE_UNKNOWN: Rejection = (1, 1, 7)
CALLING_AE_UNKNOWN: Rejection = (1, 1, 3)
NOT_AUTHENTICATED: Rejection = (1, 2, 1)  # PS3.7 D.3.3.7: permanent, by the provider (ACSE)
CONGESTION: Rejection = (2, 3, 1)
LIMIT_EXCEEDED: Rejection = (2, 3, 2)

DRAIN_SECONDS = 10.0
CLOSE_AGAIN = 1.0
"""Seconds before the end of an association is recorded anew, where the database was away."""


def open_doors(
    settings: ListenerSettings,
    tls: TlsSettings,
    *,
    plain: int | None = None,
    secure: int | None = None,
) -> list[Door]:
    """The doors that the settings ask for, the one without TLS first.

    Args:
        plain: descriptor of an inherited listening socket; None binds one.
        secure: likewise for TLS.

    Raises:
        ConfigurationError: a file for TLS cannot be used.
        OSError: an address cannot be bound.
    """
    context = Renewed(tls) if "tls" in tls.ports else None  # before a port is open
    doors = []
    for name, descriptor, port in (("plain", plain, settings.port), ("tls", secure, tls.port)):
        if name in tls.ports:
            inherited = socket.socket(fileno=descriptor) if descriptor is not None else None
            sock = inherited or bind(settings.host, port)
            doors.append(Door(sock, context if name == "tls" else None))
    return doors


def serve(
    settings: ListenerSettings,
    inbox: Inbox,
    *,
    stop: threading.Event,
    ready: Callable[[int], None],
    doors: Sequence[Door] = (),
    drain: float = DRAIN_SECONDS,
) -> None:
    """Take associations until ``stop``, let the running ones finish, and return.

    Args:
        settings: names, timeouts and limits.
        inbox: the node behind the listener.
        stop: set by another thread or a signal handler.
        ready: called once with the first door's port, when connections are taken.
        doors: of `open_doors`; none: one without TLS is opened.
        drain: seconds for running associations to finish after ``stop``; then they are aborted.

    Raises:
        OSError: the address cannot be bound.
    """
    configure_pynetdicom()
    doors = doors or open_doors(settings, TlsSettings())
    limits = Limits(
        pdu=settings.maximum_pdu,
        dataset=settings.maximum_object_mb << 20,
        request=settings.association_timeout,
        idle=settings.idle_timeout,
    )
    listener = _Listener(settings, inbox, limits)
    connections = Connections(
        doors,
        settings.maximum_connections,
        limits,
        listener.converse,
        settings.maximum_connections_per_address,
        lambda address, reason: listener.turn_away(_plain(address), reason),
    )
    ready(doors[0].listening.getsockname()[1])
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
        self._storage = Storage(inbox, limits.dataset)
        self._steps = ProcedureSteps(inbox)
        self._commitments = Commitments(inbox)
        self._changed, self._draining = threading.Condition(), threading.Event()
        # With the calling AE title once that counts against its limit
        self._live: dict[GuardedAssociation, str] = {}

    def converse(self, sock: socket.socket, request: bytes) -> None:
        """Hold one association from its request to its end."""
        association = GuardedAssociation(self._ae, sock, request, self._limits, self._storage.begin)
        association.acceptor.supported_contexts = [
            context
            for context in accepted()
            if self._settings.storage_commitment or context.abstract_syntax != STORAGE_COMMITMENT
        ]
        association.bind(evt.EVT_REQUESTED, self._decide, [peer_fingerprint(sock)])
        association.bind(evt.EVT_N_CREATE, self._steps.create)
        association.bind(evt.EVT_N_SET, self._steps.update)
        if self._settings.storage_commitment:
            association.bind(evt.EVT_N_ACTION, self._commitments.request)
        association.bind(evt.EVT_N_EVENT_REPORT, self._commitments.report)
        try:
            association.run_reactor()
        finally:
            self._end(association)

    def _end(self, association: GuardedAssociation) -> None:
        """The only place where an opened association is closed, however it ended."""
        aborted = not association.is_released
        try:
            while association.row is not None:
                try:
                    self._inbox.close_association(association.row, aborted=aborted)
                    log.info("association closed", aborted=aborted, **association.names)
                    break
                except Unavailable as error:
                    # Left open, its studies would wait for it until their hard cap.
                    log.error("association not closed yet", reason=str(error), **association.names)
                    if self._draining.wait(CLOSE_AGAIN):
                        break  # the end of this process closes it
        except Exception as error:
            log.error("association not closed", error=type(error).__name__, **association.names)
        finally:
            self._forget(association)

    def _forget(self, association: GuardedAssociation) -> None:
        with self._changed:
            self._live.pop(association, None)
            self._changed.notify_all()

    def turn_away(
        self,
        address: str,
        reason: str,
        rejection: Rejection | None = None,
        calling: str = "",
        **told: str | None,
    ) -> None:
        """Tell of somebody who is not let in; whatever comes of it, that stays so.

        Args:
            reason: in words.
            rejection: as sent; None where TLS failed before.
            calling: AE title that it claims.
            told: what else the log is to have, where there is something.
        """
        event = "association rejected" if rejection else "TLS handshake failed"
        details = {"calling": calling, "rejection": rejection, **told}
        named = {key: value for key, value in details.items() if value}
        log.warning(event, address=address, reason=reason, **named)
        try:
            code = f" {rejection}" if rejection else ""
            self._inbox.refused(address, f"{event}: {reason}{code}", calling)
        except Exception as error:
            log.error("turning away not recorded", error=type(error).__name__)

    def _decide(self, event: Event, certificate: str | None) -> None:
        """Let it in or reject it. An exception in this handler would let it in."""
        association = cast(GuardedAssociation, event.assoc)
        primitive = cast(A_ASSOCIATE, association.requestor.primitive)
        calling, called = primitive.calling_ae_title.strip(), primitive.called_ae_title.strip()
        address = _plain(association.requestor.address)
        association.requestor.ae_title = calling
        caller = Caller(calling, address, certificate, _identity(association))
        try:
            rejected = self._rejection(association, caller, called)
        except Exception as error:
            log.error("association not decided", error=type(error).__name__)
            rejected = CONGESTION, "it cannot be decided now"
        if rejected is not None:
            rejection, reason = rejected
            self.turn_away(
                address, reason, rejection, calling, called=called, certificate=certificate
            )
            self._forget(association)
            association.acse.send_reject(*rejection)
            association.kill()
            return
        keep_first_choice(primitive.presentation_context_definition_list)
        log.info("association opened", address=address, **association.names)

    def _rejection(
        self, association: GuardedAssociation, caller: Caller, called: str
    ) -> tuple[Rejection, str] | None:
        with self._changed:
            # Who was released may come again before its thread has ended.
            running = sum(not other.is_released for other in self._live)
            if running >= self._settings.maximum_associations:
                return LIMIT_EXCEEDED, "all places are taken"
            self._live[association] = ""
        if called != self._settings.ae_title:
            return CALLED_AE_UNKNOWN, "called AE title is not ours"
        admission = self._inbox.admit(caller)
        if admission.refusal is Reason.UNKNOWN and self._inbox.may_report(
            caller.title, caller.address
        ):
            association.acceptor.supported_contexts = list(answering())
            association.unbind(evt.EVT_N_ACTION, self._commitments.request)
        elif admission.refusal:
            known = admission.refusal is Reason.IDENTITY
            return NOT_AUTHENTICATED if known else CALLING_AE_UNKNOWN, str(admission.refusal)
        elif not self._settings.storage_commitment and self._inbox.may_report(
            caller.title, caller.address
        ):  # modality and destination in one
            association.acceptor.supported_contexts += answering()[1:]
        with self._changed:
            own = sum(
                title == caller.title and not other.is_released
                for other, title in self._live.items()
            )
            if admission.maximum_associations is not None and own >= admission.maximum_associations:
                return LIMIT_EXCEEDED, "it has as many associations as it may"
            self._live[association] = caller.title
        if admission.identified:
            _confirm_identity(association)
        association.row = self._inbox.open_association(caller.title, called, caller.address)
        return None

    def drain(self, seconds: float) -> None:
        """Wait for the running associations, then abort what is left of them."""
        self._draining.set()
        if not self._empty_within(seconds):
            with self._changed:
                left = list(self._live)
            log.warning("associations aborted", number=len(left))
            for association in left:
                association.cut()
            # A C-STORE in the inbox's hands is finished there, and its answer never sent.
            self._empty_within(5.0)
        self._commitments.stop()

    def _empty_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)


def _plain(address: str) -> str:
    """An IPv4 peer of a socket that takes both families, as IPv4."""
    return address.removeprefix("::ffff:")


def _identity(association: GuardedAssociation) -> Identity | None:
    """The user and passcode that the request names; other kinds of identity are none to us."""
    item = association.requestor.user_identity
    if item is None or item.user_identity_type != 2:  # PS3.7 table D.3-14
        return None
    user, passcode = item.primary_field or b"", item.secondary_field or b""
    return Identity(user.decode("utf-8", "replace"), passcode.decode("utf-8", "replace"))


def _confirm_identity(association: GuardedAssociation) -> None:
    """Send the positive response where it is asked for; pynetdicom sends none for passcodes."""
    item = association.requestor.user_identity
    if item is not None and item.positive_response_requested:
        answer = UserIdentityNegotiation()
        answer.server_response = b""  # PS3.7 D.3.3.7.2
        association.acceptor.add_negotiation_item(answer)
