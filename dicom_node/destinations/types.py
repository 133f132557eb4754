"""Owns what all destinations share: what is sent, what comes back, and the interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dicom_node.errors import DeliveryFailed, DestinationClosed, Retry


@dataclass(frozen=True)
class Item:
    """One Part 10 file to hand over.

    Attributes:
        path: the file, with file meta information.
        sop_class_uid: its Media Storage SOP Class UID.
        sop_instance_uid: its Media Storage SOP Instance UID.
        transfer_syntax: of its data set.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str


@dataclass(frozen=True)
class Sent:
    """The destination took the item.

    Attributes:
        status: its DIMSE or HTTP status, 0x0000 where there is none; 0xBxxx is a warning.
        transfer_syntax: in which it was sent; another than the item's where the destination takes
            only that, and then the bytes differ from the file's.
        comment: what it said beside, untrusted: for whoever sends by hand, not for logs or records.
    """

    status: int
    transfer_syntax: str
    comment: str = field(default="", repr=False)


class Refused(DeliveryFailed):
    """The destination answered with a failure.

    Args:
        status: its status.
        retry: whether the same bytes may be accepted later.
        comment: as in `Sent`; it may quote the patient, so ``reason`` does not.
    """

    def __init__(self, status: int, retry: Retry, comment: str = "") -> None:
        super().__init__(f"refused with status 0x{status:04X}", retry, status)
        self.comment = comment


class Untried(DestinationClosed):
    """The destination was away, or lost, before this item's turn: it counts as no attempt."""


@dataclass(frozen=True)
class EchoResult:
    """Whether a destination can be reached.

    Attributes:
        reachable: it answered, or could be written to.
        detail: why not; empty where it is reachable.
        seconds: from asking to the answer.
    """

    reachable: bool
    detail: str
    seconds: float


OnResult = Callable[[Item, Sent | DeliveryFailed], None]


class Destination(Protocol):
    """Where results go."""

    def send(self, items: Sequence[Item], on_result: OnResult) -> None:
        """Hand over the items in order.

        Args:
            items: what to send.
            on_result: called once for each item, as soon as its fate is known; what it raises
                ends the sending.
        """
        ...

    def echo(self) -> EchoResult:
        """See whether the destination can be reached; never raises for one that cannot."""
        ...

    def confirm(self, items: Sequence[Item]) -> set[str]:
        """The SOP Instance UIDs of those of the items that the destination says it holds now.

        Asked where it does not commit to them. A ``send`` whose failure is a ``DestinationClosed``
        counts towards closing the destination (``services.breaker``); so does this.

        Raises:
            DestinationClosed: it is away; it is asked again when it is back.
            DeliveryFailed: it does not say; ``Retry.NEVER``: it never will.
        """
        ...
