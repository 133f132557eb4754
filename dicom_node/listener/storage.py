"""Owns the translation of a C-STORE request; decides nothing about the instance.

Whatever goes wrong with one instance becomes its status; what still comes of its data set is then
read and forgotten, and the association lives on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import structlog
from pynetdicom.presentation import PresentationContext

from dicom_node import faults
from dicom_node.dimse import status
from dicom_node.dimse.acceptor import GuardedAssociation
from dicom_node.dimse.contexts import is_uid, storage_classes
from dicom_node.dimse.messages import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    Command,
    ProtocolBreach,
)
from dicom_node.errors import IdentifierProblem, OverLimit, RefusedInstance, UnreadableDataSet
from dicom_node.listener.inbox import Inbox, Intake
from dicom_node.services.receive import Arrival

log = structlog.get_logger(__name__)


class _NotOffered(Exception):
    """The SOP class is not that of the presentation context, or none that is stored."""


class Storage:
    """Takes C-STORE requests to the inbox.

    Args:
        inbox: makes instances durable.
        limit: bytes of one data set; twice as many end the association.
    """

    def __init__(self, inbox: Inbox, limit: int) -> None:
        self._inbox, self._limit = inbox, limit

    def begin(
        self, association: GuardedAssociation, context: PresentationContext, command: Command
    ) -> StoreRequest:
        """Take a request whose data set is about to come."""
        return StoreRequest(self._inbox, self._limit, association, context, command)


class StoreRequest:
    """One C-STORE, from its command to its status: 0x0000 only once the instance is durable."""

    def __init__(
        self,
        inbox: Inbox,
        limit: int,
        association: GuardedAssociation,
        context: PresentationContext,
        command: Command,
    ) -> None:
        self._association, self._limit, self._size = association, limit, 0
        told = command.uid(AFFECTED_SOP_INSTANCE_UID)
        # For the log; what is no UID is not repeated there.
        self._instance = told if is_uid(told) else None
        self._failure: Exception | None = None
        self._intake: Intake | None = None
        try:
            self._intake = inbox.begin(_arrival(association, context, command))
        except Exception as error:
            self._fail(error)

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the data set.

        Raises:
            ProtocolBreach: there is no end of them.
        """
        self._size += len(piece)
        if self._size > 2 * self._limit:
            raise ProtocolBreach("data set without end")
        if self._intake is None:
            return
        try:
            if self._size > self._limit:
                raise OverLimit("data set larger than this node takes", self._instance)
            self._intake.write(piece)
        except Exception as error:
            self._fail(error)

    def finish(self) -> status.Answer:
        """Make it durable; the answer."""
        try:
            if self._intake is not None:
                if not self._size:
                    raise UnreadableDataSet("no data set", self._instance)
                self._intake.finish()
                faults.step("answer", "receive")
        except Exception as error:
            self._fail(error)
        return status.Answer(status.SUCCESS) if self._failure is None else self._refuse()

    def drop(self) -> None:
        """Keep nothing: it broke off."""
        intake, self._intake = self._intake, None
        if intake is not None:
            with suppress(Exception):  # the sweep finds what stays
                intake.drop()

    def _fail(self, error: Exception) -> None:
        self._failure = error.with_traceback(None)  # whose frames may hold the data set
        self.drop()

    def _refuse(self) -> status.Answer:
        """The answer to the failure, which is logged."""
        error, instance = cast(Exception, self._failure), self._instance
        names = self._association.names
        if isinstance(error, _NotOffered):
            answer = status.response(
                status.SOP_CLASS_NOT_SUPPORTED, "SOP class not supported in this context"
            )
        else:
            answer = status.response_to(error)
        code = f"0x{answer.status:04X}"
        if isinstance(error, RefusedInstance):
            instance = error.sop_instance_uid or instance
            log.warning(
                "instance refused",
                status=code,
                reason=error.reason,
                sop_instance_uid=instance,
                **names,
            )
        elif isinstance(error, _NotOffered):
            log.warning("instance refused", status=code, sop_instance_uid=instance, **names)
        else:
            log.error(
                "instance not stored",
                status=code,
                error=type(error).__name__,
                sop_instance_uid=instance,
                **names,
            )
        return answer


def _arrival(
    association: GuardedAssociation, context: PresentationContext, command: Command
) -> Arrival:
    """The request as the services take it."""
    sop_class = command.uid(AFFECTED_SOP_CLASS_UID)
    instance = command.uid(AFFECTED_SOP_INSTANCE_UID)
    if not is_uid(sop_class) or not is_uid(instance):
        raise IdentifierProblem("Affected SOP Class or Instance UID missing or malformed")
    if sop_class != context.abstract_syntax or sop_class not in storage_classes():
        raise _NotOffered
    return Arrival(
        transfer_syntax=str(context.transfer_syntax[0]),
        sop_class_uid=sop_class,
        sop_instance_uid=cast(str, instance),
        association=cast(int, association.row),  # set before it was accepted
    )
