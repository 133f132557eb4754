"""Owns the listener's wiring to the services: one small adapter, no decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.dimse.commitment import Report
from dicom_node.services import admission, audit, confirmations, peers, receive
from dicom_node.services.context import Node


class NodeInbox:
    """``listener.inbox.Inbox`` on the services; called from many threads at once."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def admit(self, caller: admission.Caller) -> admission.Admission:
        """Whether this caller may open an association."""
        return admission.admit(self._node, caller)

    def refused(self, address: str, reason: str, calling: str = "") -> None:
        """Audit a peer that is turned away."""
        audit.refused(self._node, address, reason, calling)

    def may_report(self, calling: str, address: str) -> bool:
        """Whether this is a destination that may report on storage commitment, and no more."""
        return confirmations.may_report(self._node, calling, address)

    def open_association(self, calling: str, called: str, address: str) -> int:
        """Record an association that is about to be accepted."""
        audit.accepted(self._node, calling, address)
        return receive.open_association(self._node, calling, called, address)

    def close_association(self, association: int, *, aborted: bool) -> None:
        """Record its end."""
        receive.close_association(self._node, association, aborted=aborted)

    def begin(self, arrival: receive.Arrival) -> receive.Intake:
        """Take an instance whose data set is about to come."""
        return receive.Intake(self._node, arrival)

    def expect(
        self,
        *,
        association: int | None,  # noqa: ARG002 - the protocol tells it; the study is enough here
        source: str,
        study_uid: str | None,
        sop_instance_uids: Sequence[str],
    ) -> None:
        """Take note of what a modality says belongs together."""
        receive.expect(self._node, source, study_uid, sop_instance_uids)

    def commit(self, references: Mapping[str, str]) -> Mapping[str, str]:
        """What is durable here of them, and kept from now on."""
        return receive.commit(self._node, references)

    def endpoint(self, ae_title: str) -> DimseDestination | None:
        """Where an AE title takes storage commitment answers, over TLS if it must."""
        return peers.modality(self._node, ae_title)

    def report(self, report: Report, calling: str) -> int:
        """Record what a destination says of results that it was sent; the status to answer."""
        return confirmations.answer_to(confirmations.record(self._node, report, calling))
