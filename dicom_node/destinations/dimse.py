"""Owns the C-STORE and C-ECHO SCU; sends files as they are, decides no retries.

What a status means is ``dimse.status``'s; when to try again is the caller's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node.destinations.query import MODELS, is_held
from dicom_node.destinations.types import EchoResult, Item, OnResult, Refused, Sent, Untried
from dicom_node.dimse.contexts import (
    MAXIMUM_CONTEXTS,
    UNCOMPRESSED,
    VERIFICATION,
    convertible,
    proposed,
    syntaxes_of,
)
from dicom_node.dimse.status import SOP_CLASS_NOT_SUPPORTED, SUCCESS, Meaning, meaning_of
from dicom_node.dimse.tls import client_context
from dicom_node.dimse.transport import RequestorAE
from dicom_node.errors import ConfigurationError, DeliveryFailed, DestinationClosed, Retry
from dicom_node.settings import TlsSettings

# PS3.8 table 9-18: abstract syntax or transfer syntaxes not supported. The other refusals (1 by
# the user, 2 no reason) may pass.
NOT_SUPPORTED = (3, 4)


@dataclass(frozen=True)
class DimseDestination:
    """A PACS that takes C-STORE.

    Args:
        ae_title: its AE title.
        host: its address.
        port: its TCP port.
        calling: our AE title.
        timeout: seconds to connect, for the TLS handshake, for each answer after the last byte
            sent, for each write.
        tls: the files with which to speak TLS; None: without.
        tls_name: whom its certificate must be made out to; empty: ``host``.
    """

    ae_title: str
    host: str
    port: int
    calling: str
    timeout: float = 30.0
    tls: TlsSettings | None = None
    tls_name: str = ""

    def send(self, items: Sequence[Item], on_result: OnResult) -> None:
        """Send all items on one association (more where 128 contexts do not suffice).

        A result is reported when its response arrives. After the association is lost the rest is
        reported as failed, to be tried later.
        """
        for batch in _batches(items):
            self._send(batch, on_result)

    def _send(self, items: Sequence[Item], on_result: OnResult) -> None:
        contexts = proposed((i.sop_class_uid, i.transfer_syntax) for i in items)
        try:
            association = self.associate(contexts)
        except DeliveryFailed as failure:
            for item in items:
                on_result(item, Untried(failure.reason, failure.retry))
            return
        with released(association):
            for number, item in enumerate(items):
                try:
                    outcome = _store(association, item, number % 65535 + 1)
                except DeliveryFailed as failure:
                    on_result(item, failure)
                else:
                    on_result(item, outcome)

    def echo(self) -> EchoResult:
        """C-ECHO on an association of its own."""
        started = time.monotonic()
        try:
            association = self.associate(proposed([(VERIFICATION, UNCOMPRESSED[1])]))
        except DeliveryFailed as failure:
            return EchoResult(False, failure.reason, time.monotonic() - started)
        with released(association):
            if association.is_established:
                answer = association.send_c_echo()
                fault = "" if answer.get("Status") == SUCCESS else _answered(answer)
            else:
                fault = why_not(association).reason
        return EchoResult(not fault, fault, time.monotonic() - started)

    def accepts(self, kinds: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which pairs of SOP class and transfer syntax it would take; nothing is sent.

        Args:
            kinds: no more than one association's contexts.

        Raises:
            DeliveryFailed: it cannot be asked.
        """
        association = self.associate(
            [build_context(sop_class, syntax) for sop_class, syntax in dict.fromkeys(kinds)]
        )
        with released(association):
            if association.is_established:
                return {
                    (str(c.abstract_syntax), str(c.transfer_syntax[0]))
                    for c in association.accepted_contexts
                }
            if association.rejected_contexts:  # none is taken, and so there is no association
                return set()
            raise why_not(association)

    def confirm(self, items: Sequence[Item]) -> set[str]:
        """Those that a query by C-FIND finds, all asked on one association.

        Raises:
            DestinationClosed: it cannot be reached, or was lost.
            DeliveryFailed: it does not say; for good, where it offers no queries.
        """
        association = self.associate([build_context(m, list(UNCOMPRESSED)) for m in MODELS])
        with released(association):
            if not association.is_established:
                if association.rejected_contexts:
                    raise DeliveryFailed("it offers no queries", Retry.NEVER)
                raise why_not(association)
            return {i.sop_instance_uid for i in items if is_held(association, i, self.timeout)}

    def associate(self, contexts: list[PresentationContext], **options: Any) -> Association:
        """Ask for an association, which may come back rejected, aborted or unconnected.

        Args:
            contexts: proposed.
            options: further ones of pynetdicom's ``AE.associate``.

        Raises:
            DestinationClosed: there is no such address, or a file for TLS cannot be used.
        """
        ae = RequestorAE(self.calling, self.timeout)
        try:
            # Files are read anew each time: a certificate may have been renewed.
            secure = (client_context(self.tls), self.tls_name or self.host) if self.tls else None
            return ae.associate(
                self.host,
                self.port,
                contexts,
                ae_title=self.ae_title,
                tls_args=secure,
                **options,
            )
        except ConfigurationError as error:
            raise DestinationClosed(str(error), Retry.LATER) from error
        except OSError as error:  # a name that cannot be resolved
            raise DestinationClosed(f"address: {error.strerror}", Retry.LATER) from error


@contextlib.contextmanager
def released(association: Association) -> Iterator[None]:
    """Release it at the end; abort it where the block fails."""
    try:
        yield
    except BaseException:
        association.abort()
        raise
    association.release()


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items in order, cut where their contexts would exceed one association's."""
    batch: list[Item] = []
    kinds: set[tuple[str, str]] = set()
    for item in items:
        kind = (item.sop_class_uid, item.transfer_syntax)
        if batch and len(proposed(kinds | {kind})) > MAXIMUM_CONTEXTS:
            yield batch
            batch, kinds = [], set()
        batch.append(item)
        kinds.add(kind)
    if batch:
        yield batch


def _store(association: Association, item: Item, message_id: int) -> Sent:
    """Send one item.

    Raises:
        DeliveryFailed: it is not at the destination, as far as we know.
    """
    # The flag falls late: its thread has to run first.
    if not association.is_established or not association.dul.is_alive():
        raise why_not(association, item, Untried)
    syntax = _choose(association, item)
    try:
        # A path is streamed byte for byte; a data set is encoded in the accepted syntax.
        payload = item.path if syntax == item.transfer_syntax else dcmread(item.path)
        answer = association.send_c_store(payload, message_id)
    except OSError as error:
        raise DeliveryFailed(f"file cannot be read: {error.strerror}", Retry.LATER) from error
    except RuntimeError as error:  # the association ended since the check
        raise why_not(association, item) from error
    if "Status" not in answer:
        raise DestinationClosed(_answered(answer), Retry.LATER)
    status, comment = int(answer.Status), str(answer.get("ErrorComment", ""))
    meaning = meaning_of(status)
    if meaning in (Meaning.LATER, Meaning.NEVER):
        raise Refused(status, Retry(meaning.value), comment)
    return Sent(status, syntax, comment)


def _choose(association: Association, item: Item) -> str:
    """The item's own transfer syntax where accepted, else an uncompressed one if that will do."""
    accepted = syntaxes_of(association.accepted_contexts, item.sop_class_uid)
    if item.transfer_syntax in accepted:
        return item.transfer_syntax
    if convertible(item.transfer_syntax) and accepted:
        return next(s for s in UNCOMPRESSED if s in accepted)
    raise _context_refused(association, item)


def _context_refused(association: Association, item: Item) -> DeliveryFailed:
    results = [
        c.result for c in association.rejected_contexts if c.abstract_syntax == item.sop_class_uid
    ]
    never = any(result in NOT_SUPPORTED for result in results)
    return DeliveryFailed(
        f"SOP class {item.sop_class_uid} not accepted in {item.transfer_syntax}",
        Retry.NEVER if never else Retry.LATER,
        SOP_CLASS_NOT_SUPPORTED,
    )


def why_not(
    association: Association,
    item: Item | None = None,
    kind: type[DestinationClosed] = DestinationClosed,
) -> DeliveryFailed:
    """Why there is no association (any more)."""
    if item and association.rejected_contexts and not association.accepted_contexts:
        return _context_refused(association, item)
    if association.is_rejected:
        answer = association.acceptor.primitive
        assert isinstance(answer, A_ASSOCIATE)  # noqa: S101 - narrows: a rejection is one
        code = f"({answer.result},{answer.result_source},{answer.diagnostic})"
        return kind(f"association rejected {code}", Retry.LATER)
    secure = getattr(association.dul.socket, "tls_args", None)
    if secure and secure[0].fault:
        return kind(f"TLS: {secure[0].fault}", Retry.LATER)
    if association.acceptor.primitive is None:
        return kind("no connection, or no answer to it", Retry.LATER)
    return kind("association aborted or lost", Retry.LATER)


def _answered(answer: Dataset) -> str:
    if "Status" in answer:
        return f"answered with status 0x{answer.Status:04X}"
    return "no answer in time, or association lost"
