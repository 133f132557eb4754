"""Owns the listener's wiring to the services: one small adapter, no decisions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dicom_node.services import receive
from dicom_node.services.context import Node


class NodeInbox:
    """``listener.inbox.Inbox`` on the services; called from many threads at once."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def known(self, calling: str, address: str) -> bool:
        """Whether this AE title may send from this address."""
        return receive.is_known(self._node, calling, address)

    def open_association(self, calling: str, called: str, address: str) -> int:
        """Record an association that is about to be accepted."""
        return receive.open_association(self._node, calling, called, address)

    def close_association(self, association: int, *, aborted: bool) -> None:
        """Record its end."""
        receive.close_association(self._node, association, aborted=aborted)

    def receive(self, reception: receive.Reception) -> receive.Outcome:
        """Make an instance durable."""
        return receive.receive_instance(self._node, reception)

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

    def held(self, references: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of (SOP Class UID, SOP Instance UID) that are durable here."""
        durable = receive.held(self._node, [instance for _, instance in references])
        return {reference for reference in references if reference[1] in durable}

    def endpoint(self, ae_title: str) -> tuple[str, int] | None:
        """Host and port where an AE title takes storage commitment answers."""
        return receive.endpoint(self._node, ae_title)
