"""Owns transaction T1: an instance becomes durable, then it is acknowledged.

Refuses to know sockets and statuses: the listener hands over bytes and gets an outcome or an
error of ``dicom_node.errors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Reception:
    """One C-STORE request, as it came.

    Attributes:
        dataset: the encoded data set, byte for byte, without file meta information.
        transfer_syntax: of ``dataset``, the accepted one of its presentation context.
        sop_class_uid: Affected SOP Class UID of the request.
        sop_instance_uid: Affected SOP Instance UID of the request.
        association: the row that ``open_association`` returned.
    """

    dataset: bytes
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    association: int


class Outcome(StrEnum):
    """Why a C-STORE is acknowledged."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    OTHER_ENCODING = "other encoding"
