"""Owns what the listener asks of the node; the services implement it, the listener only calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from dicom_node.services.receive import Outcome, Reception


class Inbox(Protocol):
    """The node behind the listener. Called from many threads at once.

    Every method may raise ``Unavailable``.
    """

    def known(self, calling: str, address: str) -> bool:
        """Whether this AE title may send from this address."""
        ...

    def open_association(self, calling: str, called: str, address: str) -> int:
        """Record an association that is about to be accepted; returns its key."""
        ...

    def close_association(self, association: int, *, aborted: bool) -> None:
        """Record its end; called exactly once for each that was opened."""
        ...

    def receive(self, reception: Reception) -> Outcome:
        """Make an instance durable.

        Raises:
            RefusedInstance: it must not be acknowledged.
        """
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

    def held(self, references: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of (SOP Class UID, SOP Instance UID) that are durable here."""
        ...

    def endpoint(self, ae_title: str) -> tuple[str, int] | None:
        """Host and port where an AE title takes storage commitment answers."""
        ...
