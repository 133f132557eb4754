from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from dicom_node.listener.commitment import Request, _parse, _report
from tests import dicoms

A, B = ("1.2.1", "1.2.3.1"), ("1.2.1", "1.2.3.2")
BOTH = {A[1]: A[0], B[1]: B[0]}


def information(*references: tuple[str, str], transaction: str | None = "1.9") -> Dataset:
    ds = dicoms.item(
        ReferencedSOPSequence=[
            dicoms.item(ReferencedSOPClassUID=c, ReferencedSOPInstanceUID=i) for c, i in references
        ]
    )
    if transaction:
        ds.TransactionUID = transaction
    return ds


def test_a_request_names_its_transaction_and_instances() -> None:
    assert _parse("CT1", information(A, B)) == Request("CT1", "1.9", BOTH)


@pytest.mark.parametrize(
    "ds",
    [
        Dataset(),
        information(),
        information(A, transaction=None),
        information(("x", "1.2")),
        information(A, B, ("1.2.2", A[1])),
    ],
    ids=["empty", "no instances", "no transaction", "no uid", "of two classes"],
)
def test_an_incomplete_request_is_none(ds: Dataset) -> None:
    assert _parse("CT1", ds) is None


def uids(items: list[Dataset] | None) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in items or ()]


@pytest.mark.parametrize(
    ("held", "event_type", "kept", "lost"),
    [
        (BOTH, 1, [A[1], B[1]], {}),
        ({A[1]: A[0]}, 2, [A[1]], {B[1]: 0x0112}),
        ({}, 2, [], {A[1]: 0x0112, B[1]: 0x0112}),
        (BOTH | {A[1]: "1.2.2"}, 2, [B[1]], {A[1]: 0x0119}),  # held as another SOP class
    ],
)
def test_the_report_says_what_is_held_and_what_is_not(
    held: dict[str, str], event_type: int, kept: list[str], lost: dict[str, int]
) -> None:
    kind, report = _report(Request("CT1", "1.9", BOTH), held)
    assert kind == event_type
    assert report.TransactionUID == "1.9"
    assert uids(report.get("ReferencedSOPSequence")) == kept
    failed = report.get("FailedSOPSequence", ())
    assert {i.ReferencedSOPInstanceUID: i.FailureReason for i in failed} == lost
    # PS3.4 table J.3-2: neither sequence may be present and empty
    assert ("ReferencedSOPSequence" in report) == bool(kept)
    assert ("FailedSOPSequence" in report) == bool(lost)
