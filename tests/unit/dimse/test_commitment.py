from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from dicom_node.dimse.commitment import Report, Request, action, parse_report
from dicom_node.dimse.status import Doubt, commits, doubt_of
from tests import dicoms


def item(instance: str, reason: int | None = None) -> Dataset:
    told = dicoms.item(ReferencedSOPClassUID="1.2.1", ReferencedSOPInstanceUID=instance)
    if reason is not None:
        told.FailureReason = reason
    return told


def test_a_request_names_every_instance_with_its_class() -> None:
    told = action(Request("2.25.9", [("1.2.1", "1.2.3"), ("1.2.2", "1.2.4")]))
    assert told.TransactionUID == "2.25.9"
    named = [
        (i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in told.ReferencedSOPSequence
    ]
    assert named == [("1.2.1", "1.2.3"), ("1.2.2", "1.2.4")]


def test_a_report_tells_what_is_held_and_why_the_rest_is_not() -> None:
    told = dicoms.item(
        TransactionUID="2.25.9",
        ReferencedSOPSequence=[item("1.2.3"), item("1.2.4")],
        FailedSOPSequence=[item("1.2.5", 0x0112), item("1.2.4", 0x0110)],
    )
    failed = {"1.2.5": 0x0112, "1.2.4": 0x0110}
    assert parse_report(told) == Report("2.25.9", frozenset({"1.2.3"}), failed)


def test_a_failure_without_a_reason_is_a_failure() -> None:
    told = dicoms.item(TransactionUID="2.25.9", FailedSOPSequence=[item("1.2.5")])
    assert parse_report(told) == Report("2.25.9", frozenset(), {"1.2.5": 0x0110})


@pytest.mark.parametrize("transaction", [None, "../1", ""])
def test_a_report_without_a_transaction_is_none(transaction: str | None) -> None:
    told = dicoms.item(ReferencedSOPSequence=[item("1.2.3")])
    if transaction is not None:
        told.TransactionUID = transaction
    assert parse_report(told) is None


def test_each_reason_for_not_committing_has_what_follows() -> None:
    assert doubt_of(0x0122) is Doubt.QUERY
    assert doubt_of(0x0131) is Doubt.ASK
    assert {doubt_of(reason) for reason in (0x0110, 0x0112, 0x0119, 0x0213, 0x9999)} == {Doubt.SEND}


def test_who_does_not_know_the_service_never_commits() -> None:
    assert not any(map(commits, (0x0122, 0x0118, 0x0112, 0x0123, 0x0124, 0x0211)))
    assert all(map(commits, (0x0213, 0x0110)))
