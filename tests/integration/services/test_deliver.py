"""T5 against a real PACS: what each answer leads to, and what is never sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import update

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import InvalidTransition, NotFound
from dicom_node.services import registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver, retry_delivery
from dicom_node.services.infer import run_jobs
from dicom_node.store.tables import Delivery, DeliveryAttempt, Destination, Result
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from tests.arrivals import all_of, arrive, count, one
from tests.dicoms import dx_image
from tests.nodes import Clock, add_bundle
from tests.pacs import AE_TITLE, Do, Pacs
from tests.servers import eventually, free_port

SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


def enough() -> float:
    """Jitter: the whole wait."""
    return 1.0


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as running:
        yield running


def at(node: Node, port: int, name: str = "out") -> None:
    config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": port}
    registry.add_destination(node, name, "dimse", config)


def results(node: Node, bundle: Bundle, *destinations: str, studies: int = 1) -> None:
    """A SEG and a report of each study, waiting to be sent."""
    add_bundle(node, bundle)
    rule = {"name": "all", "models": ["tiny"], "destinations": list(destinations)}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    arrive(node, *(dx_image(patient_id=f"P{n}") for n in range(studies)))
    assert close_studies(node) == studies
    assert run_jobs(node, WarmEngines(node), ("any",)) == studies


@pytest.fixture
def waiting(sqlite_node: Node, tiny_bundle: Bundle, pacs: Pacs) -> Node:
    """A node with one SEG and one report for the PACS."""
    at(sqlite_node, pacs.port)
    results(sqlite_node, tiny_bundle, "out")
    return sqlite_node


def states(node: Node) -> list[str]:
    return [row.state for row in all_of(node, Delivery)]


def test_a_report_follows_its_seg_and_both_are_sent(
    node: Node, tiny_bundle: Bundle, pacs: Pacs, clock: Clock
) -> None:
    at(node, pacs.port)
    results(node, tiny_bundle, "out")
    assert deliver(node) == 2
    assert [r.sop_class_uid for r in pacs.received] == [SEG, SR]
    assert [r.calling for r in pacs.received] == [node.settings.listener.ae_title] * 2
    for row in all_of(node, Delivery):
        assert (row.state, row.attempts, row.owner) == ("sent", 1, None)
        assert (row.sent_at, row.last_answer) == (clock.time, "success")
    assert [(a.status, a.answer) for a in all_of(node, DeliveryAttempt)] == [(0, "success")] * 2
    assert deliver(node) == 0


def test_the_pacs_holds_the_bytes_that_are_on_disk(waiting: Node, pacs: Pacs) -> None:
    deliver(waiting)
    for row in all_of(waiting, Result):
        data = waiting.results.path(row.path).read_bytes()
        start = 132 + 12 + int.from_bytes(data[140:144], "little")
        assert pacs.hold()[row.sop_instance_uid] == sha256(data[start:]).hexdigest()


def test_a_second_sending_sends_the_same_bytes(waiting: Node, pacs: Pacs) -> None:
    deliver(waiting)
    before = pacs.hold()
    for number in (1, 2):
        retry_delivery(waiting, number)
    assert deliver(waiting) == 2
    assert len(pacs.received) == 4
    assert pacs.hold() == before


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0107])
def test_a_warning_is_an_arrival(waiting: Node, pacs: Pacs, status: int) -> None:
    pacs.answers[:] = [status, status]
    deliver(waiting)
    assert states(waiting) == ["sent", "sent"]
    assert all_of(waiting, Delivery)[0].last_answer == f"warning 0x{status:04X}"


def test_a_pacs_that_is_full_is_tried_again_later_and_ever_later(
    waiting: Node, pacs: Pacs, clock: Clock
) -> None:
    pacs.answers[:] = [0xA700, 0xA700, 0x0000]
    assert deliver(waiting, enough) == 1
    seg, sr = all_of(waiting, Delivery)
    assert (seg.state, seg.attempts, seg.last_answer) == (
        "pending",
        1,
        "refused with status 0xA700",
    )
    assert (seg.next_at - clock.time).total_seconds() == 10
    assert (sr.state, sr.attempts) == ("pending", 0)  # it waits for what it cites
    assert deliver(waiting, enough) == 0
    clock.pass_(10)
    assert deliver(waiting, enough) == 1
    assert (all_of(waiting, Delivery)[0].next_at - clock.time).total_seconds() == 20
    clock.pass_(20)
    assert deliver(waiting, enough) == 2
    assert states(waiting) == ["sent", "sent"]
    sent = [r for r in pacs.received if r.sop_class_uid == SEG]
    assert len({r.sha256 for r in sent}) == 1
    assert [a.status for a in all_of(waiting, DeliveryAttempt)] == [0xA700, 0xA700, 0, 0]


@pytest.mark.parametrize("status", [0xA900, 0xC000])
def test_what_is_refused_for_good_takes_what_cites_it_along(
    waiting: Node, pacs: Pacs, clock: Clock, status: int
) -> None:
    pacs.answers[:] = [status]
    pacs.comment = "Canary^Yellow has no such study"
    assert deliver(waiting) == 1
    seg, sr = all_of(waiting, Delivery)
    assert (seg.state, sr.state) == ("dead", "dead")
    assert seg.last_answer == f"refused with status 0x{status:04X}"
    assert sr.last_answer == "what it cites was not accepted"
    (alert,) = list_alerts(waiting)
    assert (alert["kind"], alert["subject"]) == (
        "delivery dead",
        "delivery 1",
    )
    assert "deliveries retry 1" in alert["text"]
    assert "Canary" not in alert["text"]
    clock.pass_(10_000)
    assert deliver(waiting) == 0
    retry_delivery(waiting, seg.id)  # the report comes back with what it cites
    assert deliver(waiting) == 2
    assert states(waiting) == ["sent", "sent"]
    assert [r.sop_class_uid for r in pacs.received] == [SEG, SEG, SR]
    assert list_alerts(waiting) == []


def test_a_report_that_is_refused_leaves_its_seg_delivered(waiting: Node, pacs: Pacs) -> None:
    pacs.answers[:] = [0x0000, 0xA900]
    deliver(waiting)
    assert states(waiting) == ["sent", "dead"]


def test_after_its_last_attempt_a_delivery_is_given_up(
    waiting: Node, pacs: Pacs, clock: Clock
) -> None:
    pacs.answers[:] = [0xA700] * 5
    for _ in range(5):
        assert deliver(waiting) == 1
        clock.pass_(100)
    assert deliver(waiting) == 0
    assert states(waiting) == ["dead", "dead"]
    assert len(list_alerts(waiting)) == 1


def test_a_file_that_was_altered_is_not_sent(waiting: Node, pacs: Pacs) -> None:
    row = all_of(waiting, Result)[0]
    path = waiting.results.path(row.path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    deliver(waiting)
    assert pacs.received == []
    assert states(waiting) == ["dead", "dead"]
    told = all_of(waiting, Delivery)[0].last_answer
    assert told == "the stored file is missing or altered; it is not sent"


def test_a_file_that_is_gone_is_not_sent_and_stops_no_other(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Pacs
) -> None:
    at(sqlite_node, pacs.port)
    results(sqlite_node, tiny_bundle, "out", studies=2)
    sqlite_node.results.path(all_of(sqlite_node, Result)[0].path).unlink()
    deliver(sqlite_node)
    assert states(sqlite_node) == ["dead", "dead", "sent", "sent"]


def test_many_results_go_on_one_association(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Pacs
) -> None:
    at(sqlite_node, pacs.port)
    results(sqlite_node, tiny_bundle, "out", studies=4)
    deliver(sqlite_node)
    assert states(sqlite_node) == ["sent"] * 8
    assert pacs.associations == 2  # what cites has one of its own, after what is cited


def test_an_answer_that_never_comes_is_given_up_and_tried_again(
    waiting: Node, pacs: Pacs, clock: Clock
) -> None:
    pacs.answers[:] = [Do.HANG]
    started = time.monotonic()
    deliver(waiting, enough)
    assert 1.5 < time.monotonic() - started < 6  # its timeout is 2 s
    seg = all_of(waiting, Delivery)[0]
    assert (seg.state, seg.attempts) == ("pending", 1)
    pacs.release()
    clock.pass_(10)
    deliver(waiting, enough)
    assert states(waiting) == ["sent", "sent"]


@pytest.mark.parametrize("what", [Do.ABORT, Do.DROP])
def test_an_association_that_is_lost_is_tried_again(
    waiting: Node, pacs: Pacs, clock: Clock, what: Do
) -> None:
    pacs.answers[:] = [what]
    deliver(waiting, enough)
    assert states(waiting) == ["pending", "pending"]
    clock.pass_(10)
    deliver(waiting, enough)
    assert states(waiting) == ["sent", "sent"]
    assert len({r.sha256 for r in pacs.received if r.sop_class_uid == SEG}) == 1


def test_a_destination_that_is_down_delays_no_other(
    node: Node, tiny_bundle: Bundle, pacs: Pacs, clock: Clock, tmp_path: Path
) -> None:
    port = free_port()
    at(node, port, "down")
    at(node, pacs.port, "up")
    results(node, tiny_bundle, "down", "up")
    deliver(node, enough)
    assert [r.sop_class_uid for r in pacs.received] == [SEG, SR]
    assert sorted(states(node)) == ["pending", "pending", "sent", "sent"]
    with Pacs(tmp_path / "again", port=port) as back:
        clock.pass_(10)
        deliver(node, enough)
        assert back.hold() == pacs.hold()


def test_a_fault_at_one_destination_holds_up_no_other(
    sqlite_node: Node, tiny_bundle: Bundle, pacs: Pacs, clock: Clock
) -> None:
    at(sqlite_node, pacs.port, "up")
    at(sqlite_node, free_port(), "broken")
    results(sqlite_node, tiny_bundle, "broken", "up")
    with sqlite_node.database.transaction() as session:
        session.execute(
            update(Destination)
            .where(Destination.name == "broken")
            .values(config={"ae_title": AE_TITLE})
        )
    assert deliver(sqlite_node, enough) == 3  # of the broken one's, the report waits for its SEG
    assert sorted(states(sqlite_node)) == ["pending", "pending", "sent", "sent"]
    (told,) = all_of(sqlite_node, Delivery, Delivery.state == "pending", Delivery.attempts == 1)
    assert told.last_answer.startswith("fault of this node: KeyError in ")
    with sqlite_node.database.transaction() as session:  # neither asking nor probing ends the rest
        session.execute(
            update(Delivery)
            .where(Delivery.state == "pending")
            .values(state="sent", confirm_at=clock.time)
        )
        session.execute(
            update(Destination).where(Destination.name == "broken").values(closed_until=clock.time)
        )
    retry_delivery(sqlite_node, all_of(sqlite_node, Delivery, Delivery.state == "sent")[-1].id)
    deliver(sqlite_node, enough)
    assert "pending" not in states(sqlite_node)


def test_a_destination_that_hangs_delays_no_other(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, pacs: Pacs
) -> None:
    with Pacs(tmp_path / "hanging", answers=[Do.HANG]) as hanging:
        at(sqlite_node, hanging.port, "a hanging one")
        at(sqlite_node, pacs.port, "up")
        results(sqlite_node, tiny_bundle, "a hanging one", "up")
        sender = threading.Thread(target=deliver, args=[sqlite_node])
        sender.start()
        eventually(lambda: len(pacs.hold()) == 2)
        assert "sending" in states(sqlite_node)  # the other still waits for its answer
        sender.join()
    assert sorted(states(sqlite_node)) == ["pending", "pending", "sent", "sent"]


def test_results_that_are_made_while_a_destination_hangs_go_out(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, pacs: Pacs
) -> None:
    with Pacs(tmp_path / "hanging", answers=[Do.HANG]) as hanging:
        at(sqlite_node, hanging.port, "a hanging one")
        at(sqlite_node, pacs.port, "up")
        results(sqlite_node, tiny_bundle, "a hanging one", "up")
        sender = threading.Thread(target=deliver, args=[sqlite_node])
        sender.start()
        eventually(lambda: len(pacs.hold()) == 2)
        rule = {"name": "all", "models": ["tiny"], "destinations": ["up"]}
        registry.apply_rules(sqlite_node, parse_rules({"rule": [rule]}))
        arrive(sqlite_node, dx_image(patient_id="NEXT"))
        close_studies(sqlite_node)
        run_jobs(sqlite_node, WarmEngines(sqlite_node), ("any",))
        eventually(lambda: len(pacs.hold()) == 4)
        sender.join()


def test_a_claim_that_has_gone_stale_records_its_answer_and_changes_nothing(
    waiting: Node, pacs: Pacs
) -> None:
    """It was taken back, sent by another and has arrived: a late failure must not undo that."""
    pacs.answers[:] = [Do.HANG]
    slow = threading.Thread(target=deliver, args=[waiting])
    slow.start()
    eventually(lambda: "sending" in states(waiting))
    with waiting.database.transaction() as session:
        row = session.get_one(Delivery, 1)
        row.token, row.state = row.token + 1, "sent"
    slow.join()
    assert all_of(waiting, Delivery)[0].state == "sent"
    assert count(waiting, DeliveryAttempt, DeliveryAttempt.delivery_id == 1) == 1


def test_two_workers_send_nothing_twice(node: Node, tiny_bundle: Bundle, pacs: Pacs) -> None:
    at(node, pacs.port)
    results(node, tiny_bundle, "out", studies=6)
    start = threading.Barrier(3)

    def work(number: int) -> None:
        start.wait()
        deliver(replace(node, id=f"worker-{number}"))

    threads = [threading.Thread(target=work, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver(node)
    uids = [r.sop_instance_uid for r in pacs.received]
    assert len(uids) == len(set(uids)) == 12
    assert states(node) == ["sent"] * 12


def test_only_what_is_dead_or_sent_can_be_sent_again(waiting: Node) -> None:
    with pytest.raises(InvalidTransition, match="delivery 1 is pending: cannot retry"):
        retry_delivery(waiting, 1)
    with pytest.raises(NotFound):
        retry_delivery(waiting, 99)


def test_a_folder_gets_the_files_as_they_are(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    registry.add_destination(sqlite_node, "out", "folder", {"path": str(tmp_path / "out")})
    results(sqlite_node, tiny_bundle, "out")
    deliver(sqlite_node)
    for row in all_of(sqlite_node, Result):
        sent = tmp_path / "out" / f"{row.sop_instance_uid}.dcm"
        assert sent.read_bytes() == sqlite_node.results.path(row.path).read_bytes()


def test_a_destination_that_was_added_again_gets_what_waits(
    waiting: Node, pacs: Pacs, clock: Clock, tmp_path: Path
) -> None:
    """Its address was wrong; the deliveries stand with its name."""
    at(waiting, free_port())
    deliver(waiting, enough)
    assert one(waiting, Delivery, Delivery.id == 1).state == "pending"
    at(waiting, pacs.port)
    clock.pass_(10)
    deliver(waiting, enough)
    assert states(waiting) == ["sent", "sent"]
