"""Owns what the listener asks of the node; the services implement it, the listener only calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.dimse.commitment import Report
from dicom_node.services.admission import Admission, Caller
from dicom_node.services.receive import Arrival, Outcome


class Intake(Protocol):
    """One instance on its way in. Used from one thread; ended by `finish` or `drop`, once."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the data set; the view is good during the call only."""
        ...

    def finish(self) -> Outcome:
        """Make the instance durable.

        Raises:
            RefusedInstance: it must not be acknowledged.
        """
        ...

    def drop(self) -> None:
        """Keep nothing of it."""
        ...


class Inbox(Protocol):
    """The node behind the listener. Called from many threads at once.

    Every method may raise ``Unavailable``.
    """

    def admit(self, caller: Caller) -> Admission:
        """Whether this caller may open an association."""
        ...

    def refused(self, address: str, reason: str, calling: str = "") -> None:
        """Take note of a peer that is turned away; raises nothing, and may be called often.

        Args:
            address: where it comes from.
            reason: in words, and the rejection as sent; names no patient.
            calling: AE title that it claims; empty where it did not come so far.
        """
        ...

    def may_report(self, calling: str, address: str) -> bool:
        """Whether this is a destination that may report on storage commitment, and no more."""
        ...

    def open_association(self, calling: str, called: str, address: str) -> int:
        """Record an association that is about to be accepted; returns its key."""
        ...

    def close_association(self, association: int, *, aborted: bool) -> None:
        """Record its end; called exactly once for each that was opened."""
        ...

    def begin(self, arrival: Arrival) -> Intake:
        """Take an instance whose data set is about to come."""
        ...

    def expect(
        self,
        *,
        association: int | None,
        source: str,
        study_uid: str | None,
        sop_instance_uids: Sequence[str],
    ) -> None:
        """Take note of what a modality says belongs together: evidence of completeness.

        Args:
            association: where it was said.
            source: "mpps" or "commitment".
            study_uid: None where the modality did not say.
            sop_instance_uids: the instances, valid UIDs.
        """
        ...

    def commit(self, references: Mapping[str, str]) -> Mapping[str, str]:
        """Keep what is durable here, from now on.

        Args:
            references: SOP Class UID by SOP Instance UID.

        Returns:
            The same of what is here; what is of another class than was told is not kept.
        """
        ...

    def endpoint(self, ae_title: str) -> DimseDestination | None:
        """Where an AE title takes storage commitment answers, over TLS if it must."""
        ...

    def report(self, report: Report, calling: str) -> int:
        """Record what a destination says of results that it was sent; the status to answer."""
        ...
