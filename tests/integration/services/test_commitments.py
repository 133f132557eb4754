"""What destinations say of what they took: by storage commitment, by queries, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_node.dimse.commitment import PUSH_MODEL_INSTANCE, Request, action
from dicom_node.dimse.commitment import Report as Told
from dicom_node.dimse.contexts import STORAGE_COMMITMENT
from dicom_node.domain.delivery import DeliveryState
from dicom_node.services import registry
from dicom_node.services.admission import Caller, Reason, admit
from dicom_node.services.alerts import list_alerts
from dicom_node.services.confirmations import Recorded, record
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.deliveries import show_delivery
from dicom_node.services.purge import purge
from dicom_node.settings import RetentionSettings
from dicom_node.store.tables import (
    Commitment,
    CommitmentItem,
    Delivery,
    DeliveryAttempt,
    Destination,
    Instance,
    Result,
)
from inference.bundle import Bundle
from tests.arrivals import all_of, count, one
from tests.deliveries import analysed, at, enough, patient, reporting_to, routed, states
from tests.nodes import Clock
from tests.pacs import AE_TITLE, Do, Pacs, Report
from tests.servers import eventually, orthanc

TIMEOUT = 300  # delivery.commitment_timeout
NEVER = [Report.NEVER] * 9


@pytest.fixture
def waiting(sqlite_node: Node, tiny_bundle: Bundle) -> Node:
    """A node with one SEG and one report for a destination ``out``, which the test enters."""
    node = patient(sqlite_node)
    at(node, 1)
    routed(node, tiny_bundle, "out")
    analysed(node, "P0")
    return node


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Any]:
    """Starts a scripted PACS; all are stopped at the end."""
    started: list[Pacs] = []

    def start(**options: Any) -> Pacs:
        made = Pacs(tmp_path / f"pacs{len(started)}", **options)
        started.append(made.__enter__())
        return made

    yield start
    for one_of_them in started:
        one_of_them.stop()


def go_on(node: Node, clock: Clock, seconds: float = 2) -> None:
    """Send what is due; then, a little later, ask what is due."""
    deliver(node, enough)
    clock.pass_(seconds)
    deliver(node, enough)


def uids(node: Node) -> list[str]:
    return [row.sop_instance_uid for row in all_of(node, Result)]


def answers(node: Node) -> list[str]:
    return [row.answer for row in all_of(node, DeliveryAttempt)]


def test_results_are_committed_where_the_report_comes_on_the_same_association(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=[])
    at(waiting, archive.port)
    go_on(waiting, clock)
    assert states(waiting) == ["committed", "committed"]
    (asked,) = archive.asked  # both results of the job under one transaction
    assert [uid for _, uid in asked.references] == uids(waiting)
    row = one(waiting, Commitment)
    assert (row.transaction_uid, row.answered_at) == (asked.transaction_uid, clock.time)
    assert count(waiting, CommitmentItem) == 2
    assert all(d.confirm_at is None for d in all_of(waiting, Delivery))
    (told,) = show_delivery(waiting, 1)["commitments"]
    assert told["transaction"] == asked.transaction_uid
    clock.pass_(10_000)
    deliver(waiting)
    assert len(archive.asked) == 1


def test_a_destination_that_is_no_modality_reports_to_the_listener_and_may_do_nothing_else(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    assert admit(waiting, Caller(AE_TITLE, "127.0.0.1")).refusal is Reason.UNKNOWN
    go_on(waiting, clock)
    assert states(waiting) == ["sent", "sent"]
    ours = waiting.settings.listener.ae_title
    with reporting_to(waiting) as port:
        assert archive.report(archive.asked[0], port, ours, calling="STRANGER") is None
        assert archive.report(archive.asked[0], port, ours) == 0x0000
        assert states(waiting) == ["committed", "committed"]
        from pynetdicom import AE

        sender = AE(AE_TITLE)
        sender.add_requested_context("1.2.840.10008.5.1.4.1.1.2")
        association = sender.associate("127.0.0.1", port, ae_title=ours)
        assert not association.is_established  # storage is not offered to it


def test_a_destination_that_is_a_modality_too_reports_where_commitment_is_offered_to_nobody(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    registry.add_modality(waiting, AE_TITLE)
    go_on(waiting, clock)
    assert not waiting.settings.listener.storage_commitment
    with reporting_to(waiting) as port:
        ours = waiting.settings.listener.ae_title
        assert archive.report(archive.asked[0], port, ours) == 0x0000
    assert states(waiting) == ["committed", "committed"]


@pytest.mark.parametrize("is_modality", [True, False])
def test_who_may_report_is_promised_nothing(
    waiting: Node, pacs: Any, clock: Clock, is_modality: bool
) -> None:
    from pynetdicom import AE

    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    if is_modality:
        registry.add_modality(waiting, AE_TITLE)
    go_on(waiting, clock)
    request = action(Request("2.25.1", [("1.2.3", one(waiting, Instance).sop_instance_uid)]))
    with reporting_to(waiting) as port:
        asking = AE(AE_TITLE)
        asking.add_requested_context(STORAGE_COMMITMENT)
        ours = waiting.settings.listener.ae_title
        association = asking.associate("127.0.0.1", port, ae_title=ours)
        answer, _ = association.send_n_action(request, 1, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE)
        association.release()
    assert answer.Status != 0x0000
    assert one(waiting, Instance).committed_at is None


def test_row_24_a_commitment_that_comes_twice_counts_once(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    go_on(waiting, clock)
    with reporting_to(waiting) as port:
        ours = waiting.settings.listener.ae_title
        assert archive.report(archive.asked[0], port, ours) == 0x0000
        before, told = clock.time, answers(waiting)
        clock.pass_(100)
        archive.lost = dict.fromkeys(uids(waiting), 0x0112)  # and now it says something else
        assert archive.report(archive.asked[0], port, ours) == 0x0000
    assert states(waiting) == ["committed", "committed"]
    assert [d.confirmed_at for d in all_of(waiting, Delivery)] == [before] * 2
    assert answers(waiting) == told
    assert told.count("committed") == 2


def test_row_24_a_report_on_an_unknown_transaction_changes_nothing(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    go_on(waiting, clock)
    told = Told("2.25.1", frozenset(uids(waiting)))
    assert record(waiting, told, AE_TITLE) is Recorded.UNKNOWN
    assert states(waiting) == ["sent", "sent"]
    with reporting_to(waiting) as port:
        stranger = replace(archive.asked[0], transaction_uid="2.25.1")
        assert archive.report(stranger, port, waiting.settings.listener.ae_title) == 0x0115
    assert states(waiting) == ["sent", "sent"]


def test_row_24_what_was_not_asked_about_is_not_committed(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    go_on(waiting, clock)
    seg, report = uids(waiting)
    told = Told(archive.asked[0].transaction_uid, frozenset({seg, "1.2.3"}))
    assert record(waiting, told, AE_TITLE) is Recorded.NEW
    assert states(waiting) == ["committed", "sent"]
    clock.pass_(TIMEOUT)  # the one that the report left out is asked about again, alone
    deliver(waiting)
    assert archive.asked[1].references == (archive.asked[0].references[1],)
    assert archive.asked[1].references[0][1] == report


def test_row_24_what_a_commitment_fails_for_is_sent_again_as_the_same_bytes(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=[])
    at(waiting, archive.port)
    seg = uids(waiting)[0]
    archive.lost = {seg: 0x0112}
    go_on(waiting, clock)
    assert states(waiting) == ["pending", "committed"]
    (alert,) = list_alerts(waiting)
    assert (alert["kind"], alert["subject"]) == ("commitment failed", "delivery 1")
    assert "0x0112" in alert["text"]
    archive.lost = {}
    clock.pass_(60)
    go_on(waiting, clock)
    assert states(waiting) == ["committed", "committed"]
    assert list_alerts(waiting) == []
    sent = [r.sha256 for r in archive.received if r.sop_instance_uid == seg]
    assert len(sent) == 2
    assert len(set(sent)) == 1
    assert [uid for _, uid in archive.asked[1].references] == [seg]


def test_row_24_what_a_destination_loses_again_and_again_dies_with_a_reason(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    node = patient(waiting, attempts=3)
    archive = pacs(commits=[])
    at(node, archive.port)
    seg = uids(node)[0]
    archive.lost = {seg: 0x0110}
    for _ in range(6):
        go_on(node, clock)
        clock.pass_(1000)
    assert states(node) == ["dead", "committed"]
    assert len([r for r in archive.received if r.sop_instance_uid == seg]) == 3
    assert all_of(node, Delivery)[0].last_answer == "not committed, reason 0x0110"
    assert len(list_alerts(node)) == 1


def test_row_24_what_one_destination_commits_to_settles_nothing_at_another(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Any, clock: Clock
) -> None:
    node = patient(sqlite_node, attempts=1)
    loser, keeper = pacs(commits=[]), pacs(commits=NEVER)
    at(node, loser.port, "loser")
    at(node, keeper.port, "keeper")
    routed(node, tiny_bundle, "loser", "keeper")
    analysed(node, "P0")
    loser.lost = dict.fromkeys(uids(node), 0x0112)
    go_on(node, clock)
    assert states(node, "loser") == ["dead", "dead"]
    before = list_alerts(node)
    told = Told(keeper.asked[0].transaction_uid, frozenset(uids(node)))
    assert record(node, told, AE_TITLE) is Recorded.NEW
    assert states(node, "keeper") == ["committed", "committed"]
    assert len(before) == 2
    assert list_alerts(node) == before


def test_row_24_what_is_failed_for_after_its_file_was_purged_is_told_and_not_sent(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER, finds=True)
    at(waiting, archive.port)
    for _ in range(3):
        go_on(waiting, clock, TIMEOUT)
    assert states(waiting) == ["confirmed", "confirmed"]
    kept = RetentionSettings(results=1)
    node = replace(waiting, settings=waiting.settings.model_copy(update={"retention": kept}))
    clock.pass_(2 * 86_400)
    assert purge(node).files["results"] == 2
    failed = dict.fromkeys(uids(node), 0x0112)
    report = Told(archive.asked[-1].transaction_uid, failed=failed)
    assert record(node, report, AE_TITLE) is Recorded.NEW
    assert deliver(node) == 0
    assert states(node) == ["dead", "dead"]
    assert all("its file is gone, purged on" in alert["text"] for alert in list_alerts(node))
    assert len(list_alerts(node)) == 2


def test_row_24_what_was_asked_before_the_association_was_lost_is_not_asked_again_at_once(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Any, clock: Clock
) -> None:
    node = patient(sqlite_node)
    archive = pacs(commits=[Report.NEVER, Do.ABORT, *NEVER])
    at(node, archive.port)
    routed(node, tiny_bundle, "out")
    analysed(node, "P0", "P1")
    go_on(node, clock)
    assert len(archive.asked) == 2
    go_on(node, clock, 60)
    assert len(archive.asked) == 2
    go_on(node, clock, TIMEOUT)
    assert len(archive.asked) == 4


@pytest.mark.parametrize("does", [Do.HANG, Do.ABORT])
def test_row_24_a_pacs_that_answers_no_question_is_asked_by_query_and_sent_on(
    waiting: Node, pacs: Any, clock: Clock, does: Do
) -> None:
    brief = waiting.settings.delivery.model_copy(update={"timeout": 0.5})
    node = replace(waiting, settings=waiting.settings.model_copy(update={"delivery": brief}))
    archive = pacs(commits=[does] * 9, finds=True)
    at(node, archive.port)
    for _ in range(4):
        go_on(node, clock, TIMEOUT)
    assert states(node) == ["confirmed", "confirmed"]
    assert len(archive.asked) == node.settings.delivery.commitment_attempts
    place = one(node, Destination)
    assert (place.failures, place.closed_until) == (0, None), "it stores, and is sent to"
    archive.release()


def test_row_24_a_lost_answer_is_asked_for_again_then_queried_and_counts_when_it_comes_late(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER, finds=True)
    at(waiting, archive.port)
    go_on(waiting, clock)
    clock.pass_(TIMEOUT - 10)
    deliver(waiting)
    assert len(archive.asked) == 1  # patience
    go_on(waiting, clock, TIMEOUT)
    assert len({asked.transaction_uid for asked in archive.asked}) == 2
    assert (states(waiting), archive.queries) == (["sent", "sent"], 0)
    go_on(waiting, clock, TIMEOUT)
    assert (states(waiting), archive.queries) == (["confirmed", "confirmed"], 2)
    with reporting_to(waiting) as port:  # the first transaction's, a day later
        clock.pass_(86_400)
        assert archive.report(archive.asked[0], port, waiting.settings.listener.ae_title) == 0
    assert states(waiting) == ["committed", "committed"]
    assert len(archive.received) == 2


def test_a_late_failure_under_a_former_transaction_does_not_send_again(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=NEVER)
    at(waiting, archive.port)
    go_on(waiting, clock)
    go_on(waiting, clock, TIMEOUT)
    first, second = (asked.transaction_uid for asked in archive.asked)
    failed = dict.fromkeys(uids(waiting), 0x0112)
    assert record(waiting, Told(first, failed=failed), AE_TITLE) is Recorded.NEW
    assert states(waiting) == ["sent", "sent"]
    assert record(waiting, Told(second, failed=failed), AE_TITLE) is Recorded.NEW
    assert states(waiting) == ["pending", "pending"]


@pytest.mark.parametrize("commits", [None, [0x0122], [0x0124]], ids=["none", "0122", "0124"])
def test_a_pacs_that_refuses_commitment_is_asked_by_query(
    waiting: Node, pacs: Any, clock: Clock, commits: list[int] | None
) -> None:
    archive = pacs(commits=commits, finds=True)
    at(waiting, archive.port)
    go_on(waiting, clock)
    assert states(waiting) == ["confirmed", "confirmed"]
    assert archive.queries == 2
    assert len(archive.received) == 2


def test_a_pacs_that_is_too_busy_to_commit_is_asked_again(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=[0x0213, Report.HERE])
    at(waiting, archive.port)
    go_on(waiting, clock)
    assert states(waiting) == ["sent", "sent"]
    go_on(waiting, clock, TIMEOUT)
    assert states(waiting) == ["committed", "committed"]


def test_a_pacs_that_says_nothing_leaves_results_delivered_and_unconfirmed(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs()
    at(waiting, archive.port)
    go_on(waiting, clock)
    assert states(waiting) == ["unconfirmed", "unconfirmed"]
    assert {d.last_answer for d in all_of(waiting, Delivery)} == {"it offers no queries"}
    clock.pass_(10_000)
    assert deliver(waiting) == 0
    assert len(archive.received) == 2


def test_what_a_query_does_not_find_is_sent_again_once_and_then_told(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(finds=True)
    at(waiting, archive.port, commitment="query")
    seg = uids(waiting)[0]
    archive.lost = {seg: 0x0112}
    for _ in range(12):
        go_on(waiting, clock)
        clock.pass_(TIMEOUT)
    assert states(waiting) == ["unconfirmed", "confirmed"]
    assert len([r for r in archive.received if r.sop_instance_uid == seg]) == 2
    (alert,) = list_alerts(waiting)
    assert alert["kind"] == "commitment failed"
    assert "deliveries retry 1" in alert["text"]


def test_where_nothing_is_to_be_asked_a_result_stays_sent(
    waiting: Node, pacs: Any, clock: Clock
) -> None:
    archive = pacs(commits=[], finds=True)
    at(waiting, archive.port, commitment="none")
    go_on(waiting, clock, 100_000)
    assert states(waiting) == ["sent", "sent"]
    assert (archive.asked, archive.queries) == ([], 0)


def test_a_folder_is_looked_into(waiting: Node, tmp_path: Path, clock: Clock) -> None:
    registry.add_destination(waiting, "out", "folder", {"path": str(tmp_path / "out")})
    go_on(waiting, clock)
    assert states(waiting) == ["confirmed", "confirmed"]


def test_a_pacs_that_went_away_before_it_was_asked_is_asked_when_it_is_back(
    waiting: Node, pacs: Any, clock: Clock, tmp_path: Path
) -> None:
    archive = pacs(commits=[])
    at(waiting, archive.port)
    deliver(waiting)
    port = archive.port
    archive.stop()
    for _ in range(4):
        clock.pass_(20)
        deliver(waiting, enough)
    assert states(waiting) == ["sent", "sent"]
    assert one(waiting, Destination).closed_until is not None
    with Pacs(tmp_path / "back", port=port, commits=[]):
        clock.pass_(200)
        deliver(waiting, enough)
        deliver(waiting, enough)
    assert states(waiting) == ["committed", "committed"]
    assert one(waiting, Destination).failures == 0


def test_where_tls_cannot_be_spoken_nothing_is_asked_and_no_other_is_held_up(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Any, clock: Clock
) -> None:
    node, archive, other = patient(sqlite_node), pacs(commits=[]), pacs(commits=[])
    at(node, archive.port, "secure")
    at(node, other.port, "other")
    routed(node, tiny_bundle, "secure", "other")
    analysed(node, "P0")
    deliver(node)
    config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": archive.port, "tls": True}
    registry.add_destination(node, "secure", "dimse", config)
    for _ in range(4):
        go_on(node, clock, 20)
    assert states(node, "other") == ["committed", "committed"]
    assert states(node, "secure") == ["sent", "sent"]
    (alert,) = list_alerts(node)
    assert (alert["kind"], alert["subject"]) == ("destination closed", "secure")
    assert "tls.certificate is not set" in alert["text"]


def test_orthanc_commits_every_result(
    node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    """On a new association to our listener, as it does with whom it knows."""
    node = patient(node)
    ours = node.settings.listener.ae_title
    with reporting_to(node) as port:
        known = {"node": {"AET": ours, "Host": "127.0.0.1", "Port": port}}
        with orthanc(tmp_path, DicomModalities=known) as archive:
            at(node, archive.port, ae_title=archive.ae_title)
            routed(node, tiny_bundle, "out")
            analysed(node, "P0", "P1", "P2")
            go_on(node, clock)
            eventually(lambda: set(states(node)) == {"committed"}, 30)
            assert count(node, Delivery, Delivery.state == DeliveryState.COMMITTED) == 6
            # The same Orthanc is found by a query, where it is not asked to commit.
            at(node, archive.port, "queried", archive.ae_title, commitment="query")
            routed_again(node)
            analysed(node, "P3")
            go_on(node, clock)
            assert states(node, "queried") == ["confirmed", "confirmed"]


def test_an_orthanc_that_takes_no_requests_for_commitment_confirms_every_result_by_query(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    node = patient(sqlite_node, timeout=5.0)
    refused = {"AET": node.settings.listener.ae_title, "Host": "127.0.0.1", "Port": 1}
    refused["AllowStorageCommitment"] = False
    with orthanc(tmp_path, DicomModalities={"node": refused}) as archive:
        at(node, archive.port, ae_title=archive.ae_title)
        routed(node, tiny_bundle, "out")
        analysed(node, "P0", "P1")
        for _ in range(5):  # it ends each association on which it is asked
            go_on(node, clock, TIMEOUT)
        assert "no answer to the request for commitment" in answers(node)
        assert states(node) == ["confirmed"] * 4


def routed_again(node: Node) -> None:
    from dicom_node.domain.routing import parse_rules

    rule = {"name": "all", "models": ["tiny"], "destinations": ["queried"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
