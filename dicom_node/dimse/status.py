"""Owns what a DIMSE status says: which one an error becomes, and what one that we get means.

=======  ==========================================================================
status   the listener's meaning
=======  ==========================================================================
0x0000   stored durably, or held already
0x0122   SOP class unknown, or not that of the presentation context
0xA700   disk, database or memory cannot take it now: send it again later
0xA900   required UIDs missing or malformed, or not those of the request
0xC000   refused for a reason that only the error comment names
0xC001   unreadable: truncated, not DICOM, nested too deep
0xC002   over a limit of this node
0xC003   the UID is held with other content; the newcomer is in quarantine
0xC00F   a fault of this node (logged there); sending it again may or may not help
=======  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from dicom_node.errors import (
    ConflictingInstance,
    IdentifierProblem,
    OverLimit,
    RefusedInstance,
    Unavailable,
    UnreadableDataSet,
)

SUCCESS: Final = 0x0000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122  # PS3.7 C.5.6
OUT_OF_RESOURCES: Final = 0xA700  # PS3.4 table B.2-1, as are the next two
DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
UNREADABLE: Final = 0xC001
OVER_LIMIT: Final = 0xC002
CONFLICT: Final = 0xC003
UNEXPECTED: Final = 0xC00F

# Of the normalized services (PS3.7 annex C)
INVALID_ATTRIBUTE_VALUE: Final = 0x0106
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_INSTANCE: Final = 0x0111
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_CLASS: Final = 0x0118
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORIZED: Final = 0x0124
DUPLICATE_TRANSACTION: Final = 0x0131  # a failure reason only, PS3.3 C.14.1.1
UNRECOGNIZED_OPERATION: Final = 0x0211
RESOURCE_LIMITATION: Final = 0x0213

_STATUS_OF: Final = MappingProxyType(
    {
        Unavailable: OUT_OF_RESOURCES,
        OSError: OUT_OF_RESOURCES,
        MemoryError: OUT_OF_RESOURCES,
        IdentifierProblem: DOES_NOT_MATCH,
        UnreadableDataSet: UNREADABLE,
        OverLimit: OVER_LIMIT,
        ConflictingInstance: CONFLICT,
        RefusedInstance: CANNOT_UNDERSTAND,
        Exception: UNEXPECTED,
    }
)

_COMMENTS: Final = MappingProxyType(
    {
        OUT_OF_RESOURCES: "cannot take it now, send again later",
        UNEXPECTED: "internal error, see the log of this node",
    }
)


def status_for(error: Exception) -> int:
    """The C-STORE status of an error: that of its nearest ancestor in the table, never success."""
    return next(_STATUS_OF[kind] for kind in type(error).__mro__ if kind in _STATUS_OF)


@dataclass(frozen=True)
class Answer:
    """Status (0000,0900) and ErrorComment (0000,0902) of a response."""

    status: int
    comment: str = ""


def response_to(error: Exception) -> Answer:
    """The answer to a failed C-STORE.

    Only a `RefusedInstance` speaks for itself; other messages may name paths and hosts.
    """
    code = status_for(error)
    comment = error.reason if isinstance(error, RefusedInstance) else _COMMENTS[code]
    return response(code, comment)


def response(code: int, comment: str) -> Answer:
    """An answer; the comment is cut to 64 printable ASCII characters without backslash (VR LO)."""
    printable = (c if c.isascii() and c.isprintable() and c != "\\" else "?" for c in comment[:64])
    return Answer(code, "".join(printable))


class Meaning(StrEnum):
    """What a destination's status means for the object that was sent."""

    STORED = "stored"
    WARNING = "stored with a warning"
    LATER = "later"
    NEVER = "never"


_WARNINGS: Final = frozenset({0x0001, 0x0107, 0x0116})  # PS3.7 C.4


def meaning_of(status: int) -> Meaning:
    """What a C-STORE status of a destination asks of us (PS3.4 B.2.3, PS3.7 annex C).

    A status that no standard knows is tried again: giving up loses a result, trying again costs
    one association.
    """
    if status == SUCCESS:
        return Meaning.STORED
    if status & 0xF000 == 0xB000 or status in _WARNINGS:
        return Meaning.WARNING
    refused = status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000
    return Meaning.NEVER if refused or status == SOP_CLASS_NOT_SUPPORTED else Meaning.LATER


class Doubt(StrEnum):
    """What follows where a destination does not commit to an instance."""

    SEND = "send it again"
    ASK = "ask again"
    QUERY = "query instead"


def doubt_of(failure_reason: int) -> Doubt:
    """What a Failure Reason (0008,1197) of storage commitment asks of us (PS3.3 C.14.1.1).

    Whatever else it says, the destination may not have the object: the same bytes do no harm.
    """
    if failure_reason == DUPLICATE_TRANSACTION:
        return Doubt.ASK
    # It took the object and does not commit to the class: sending it again changes nothing.
    return Doubt.QUERY if failure_reason == SOP_CLASS_NOT_SUPPORTED else Doubt.SEND


_NEVER_COMMITS: Final = frozenset(
    {
        NO_SUCH_INSTANCE,
        NO_SUCH_CLASS,
        SOP_CLASS_NOT_SUPPORTED,
        NO_SUCH_ACTION,
        NOT_AUTHORIZED,
        UNRECOGNIZED_OPERATION,
    }
)


def commits(status: int) -> bool:
    """Whether a destination that answered an N-ACTION so commits at all (PS3.7 annex C)."""
    return status not in _NEVER_COMMITS
