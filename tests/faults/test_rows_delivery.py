"""Rows 21 to 23 and 25 of the matrix: destinations that are away, refuse, hang; senders that die.

And of row 12, images that no decoder survives, where who delivers makes pages of them.

Row 24, commitments, is in ``tests/integration/services/test_commitments.py``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from sqlalchemy import update
from sqlalchemy.orm import Session

from dicom_node.services import breaker, forms, pictures, registry, schedule
from dicom_node.services.alerts import list_alerts
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver, retry_delivery
from dicom_node.services.schedule import Scheduler
from dicom_node.store.tables import (
    Delivery,
    DeliveryAttempt,
    Destination,
    JobDestination,
    Result,
    Study,
)
from inference.bundle import Bundle
from tests.arrivals import all_of, one
from tests.deliveries import analysed, at, enough, patient, routed, states
from tests.dicoms import phantom
from tests.dying import STEPS
from tests.nodes import Clock
from tests.pacs import AE_TITLE, Do, Pacs
from tests.servers import answers_on, eventually, free_port, storescp

HOUR = 3600
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass
class Knocks:
    """Counts who connects to a port behind which nobody talks."""

    port: int
    clock: Clock
    at: list[float] = field(default_factory=list)


@contextmanager
def dead_end(port: int, clock: Clock) -> Iterator[Knocks]:
    """Takes connections and closes them at once."""
    knocks, began = Knocks(port, clock), clock.time
    with socket.create_server(("127.0.0.1", port)) as listening:

        def run() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                knocks.at.append((clock.time - began).total_seconds())
                connection.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield knocks
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def digest(path: Path) -> str:
    """Of a file's data set."""
    data = path.read_bytes()
    return sha256(data[132 + 12 + int.from_bytes(data[140:144], "little") :]).hexdigest()


def held(node: Node, pacs: Pacs) -> bool:
    """Whether the PACS holds every result, as the very bytes on disk."""
    expected = {r.sop_instance_uid: digest(node.results.path(r.path)) for r in all_of(node, Result)}
    return pacs.hold() == expected


def test_row_21_a_destination_that_is_down_for_an_hour_delays_no_other_and_is_probed_rarely(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    node = patient(sqlite_node, backoff=5, backoff_max=300)
    with Pacs(tmp_path / "up") as up, dead_end(free_port(), clock) as knocks:
        at(node, knocks.port, "down", commitment="none")
        at(node, up.port, "up", commitment="none")
        routed(node, tiny_bundle, "down", "up")
        for minute in range(60):
            if minute % 25 == 0:
                analysed(node, f"P{minute}")
            deliver(node, enough)
            assert set(states(node, "up")) == {"sent"}, "what is up waits for nobody"
            clock.pass_(60)
        assert set(states(node, "down")) == {"pending"}
        assert len(knocks.at) <= 3 + 16  # until it closes; then probes, 300 s apart at most
        gaps = [later - earlier for earlier, later in pairwise(knocks.at[3:])]
        assert min(gaps) >= 5
        assert max(gaps) <= 300 + 60  # and it is not forgotten
        assert "destination closed" in {alert["kind"] for alert in list_alerts(node)}
        assert max(d.attempts for d in all_of(node, Delivery)) <= 3, "no attempts were used up"
    with Pacs(tmp_path / "back", port=knocks.port) as back:
        clock.pass_(300)
        deliver(node, enough)
        assert set(states(node, "down")) == {"sent"}
        assert held(node, back)
        assert back.hold() == up.hold()
    assert list_alerts(node) == []
    assert {(d.failures, d.closed_until) for d in all_of(node, Destination)} == {(0, None)}


def test_row_21_a_closed_destination_is_probed_by_one_process(
    sqlite_node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have seen that it is due before any claims it."""
    node = patient(sqlite_node)
    with dead_end(free_port(), clock) as knocks:
        at(node, knocks.port)
        with node.database.transaction() as session:
            session.execute(update(Destination).values(failures=3, closed_until=node.now()))
        place = one(node, Destination).id
        begin, seen, claiming = node.database.transaction, threading.Barrier(4), set[int]()

        def once_all_have_seen() -> AbstractContextManager[Session]:
            if (me := threading.get_ident()) not in claiming:
                claiming.add(me)
                seen.wait(30)
            return begin()

        monkeypatch.setattr(node.database, "transaction", once_all_have_seen)
        work = partial(breaker.probe, node, place, enough)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(knocks.at) == 1
    row = one(node, Destination)
    assert row.failures == 4
    assert row.closed_until == clock.time + timedelta(seconds=20)


def test_row_21_a_pacs_that_answers_echoes_and_nothing_else_is_left_alone_ever_longer(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    node = patient(sqlite_node, backoff=10, backoff_max=10_000)
    with Pacs(tmp_path / "pacs", answers=[Do.ABORT] * 50) as pacs:
        at(node, pacs.port)
        routed(node, tiny_bundle, "out")
        analysed(node, "P0")
        rests, seen = [], None
        for _ in range(400):
            deliver(node, enough)
            until = one(node, Destination).closed_until
            if until and until != seen:
                rests.append(until - clock.time)
                seen = until
            clock.pass_(10)
        assert len(pacs.received) < 15
        assert rests == sorted(rests)
        assert rests[-1] >= 8 * rests[0]


@pytest.mark.parametrize("how", ["hangs", "closes its window"])
def test_row_21_a_pacs_that_hangs_is_given_up_and_the_others_flow(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path, how: str
) -> None:
    node = patient(sqlite_node, timeout=3.0)
    with Pacs(tmp_path / "bad", narrow=True) as bad, Pacs(tmp_path / "up") as up:
        if how == "hangs":
            bad.answers[:] = [Do.HANG] * 9
        else:
            bad.stop_reading()
        at(node, bad.port, "bad", commitment="none")
        at(node, up.port, "up", commitment="none")
        routed(node, tiny_bundle, "bad", "up")
        analysed(node, "P0", pixels=phantom((1024, 1024)))  # more than the connection holds
        sender = threading.Thread(target=deliver, args=[node, enough])
        sender.start()
        eventually(lambda: len(up.hold()) == 2, 60)
        sender.join(60)
        assert not sender.is_alive(), "the PACS holds the sender up"
        assert states(node, "bad") == ["pending", "pending"]
        bad.resume()
        bad.release()
        bad.answers.clear()
        clock.pass_(60)
        deliver(node, enough)
        assert states(node, "bad") == ["sent", "sent"]
        assert held(node, bad)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (["--refuse"], "association rejected (1,1,1)"),
        (["--sleep-during", "9"], "no answer in time, or association lost"),
        (["--abort-during"], "no answer in time, or association lost"),
        (["--abort-after"], "no answer in time, or association lost"),
    ],
    ids=["refuse", "sleep-during", "abort-during", "abort-after"],
)
def test_row_21_what_storescp_refuses_sleeps_through_or_breaks_off_is_sent_when_it_takes_it(
    sqlite_node: Node,
    tiny_bundle: Bundle,
    clock: Clock,
    tmp_path: Path,
    does: list[str],
    said: str,
) -> None:
    with storescp(tmp_path, "--single-process", "--bit-preserving", *does) as scp:
        at(sqlite_node, scp.port, ae_title=scp.ae_title, commitment="none")
        routed(sqlite_node, tiny_bundle, "out")
        analysed(sqlite_node, "P0")
        deliver(patient(sqlite_node, timeout=2.0), enough)
        assert states(sqlite_node) == ["pending", "pending"]
        assert all_of(sqlite_node, Delivery)[0].last_answer == said
        scp.server.kill()
        scp.server.command = [word for word in scp.server.command if word not in does]
        scp.server.start()
        scp.server.wait_for(lambda: answers_on(scp.port))
        clock.pass_(100)
        deliver(patient(sqlite_node), enough)
        assert states(sqlite_node) == ["sent", "sent"]
        results = [sqlite_node.results.path(row.path) for row in all_of(sqlite_node, Result)]
        assert sorted(map(digest, scp.files())) == sorted(map(digest, results))


def test_row_22_a_pacs_that_is_full_then_not_and_one_that_drops_its_response_get_the_same_bytes(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs", answers=[0xA700, Do.DROP, 0x0000, Do.DROP]) as pacs:
        at(node, pacs.port, commitment="none")
        routed(node, tiny_bundle, "out")
        analysed(node, "P0")
        for _ in range(6):
            deliver(node, enough)
            clock.pass_(100)
        assert states(node) == ["sent", "sent"]
        assert len(pacs.received) == 5
        assert len({(r.sop_instance_uid, r.sha256) for r in pacs.received}) == 2
        assert held(node, pacs)


@pytest.mark.parametrize("status", [0xA900, 0x0122])
def test_row_23_what_is_refused_for_good_is_dead_with_an_alert_until_it_is_retried(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path, status: int
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs", answers=[status] * 20) as pacs:
        at(node, pacs.port, commitment="none")
        routed(node, tiny_bundle, "out")
        analysed(node, "P0")
        for _ in range(6):  # with 0x0122 other forms go instead, and are refused too
            deliver(node, enough)
            clock.pass_(1000)
        assert set(states(node)) <= {"dead", "replaced"}
        assert max(d.attempts for d in all_of(node, Delivery)) == 1
        assert pacs.hold() == {}
        seen = len(pacs.received)
        assert seen == len({r.sop_instance_uid for r in pacs.received}), "each was sent once"
        clock.pass_(100_000)
        assert deliver(node, enough) == 0
        assert len(pacs.received) == seen
        assert {alert["kind"] for alert in list_alerts(node)} == {"delivery dead"}
        pacs.answers.clear()
        for row in all_of(node, Delivery, Delivery.state == "dead"):
            if one(node, Delivery, Delivery.id == row.id).state == "dead":
                retry_delivery(node, row.id)
        deliver(node, enough)
        assert set(states(node)) <= {"sent", "replaced"}
        assert pacs.hold()
        assert list_alerts(node) == []


@pytest.mark.parametrize("step", [step for step in STEPS if step != "nowhere"])
def test_row_25_a_sender_that_is_killed_at_a_step_leaves_nothing_lost_and_nothing_altered(
    sqlite_node: Node,
    tiny_bundle: Bundle,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs", commits=[]) as pacs:
        at(node, pacs.port)
        routed(node, tiny_bundle, "out")
        analysed(node, "P0")
        late = ("question written", "asked", "reported")
        if step in late:  # all is sent, and is now asked about
            deliver(node)
            clock.pass_(60)
        dead = subprocess.run(
            [
                *(sys.executable, "-m", "tests.dying", str(node.settings.storage.folder)),
                *(node.settings.database_url, step, "3600" if step in late else "0"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert dead.returncode == -9, dead.stderr
        # Every lease is judged to be over: nothing else differs from the scheduler's rounds.
        monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: 0.0))
        Scheduler(node, SimpleNamespace(nudge=lambda *_: True)).round()  # type: ignore[arg-type] # no broker
        for _ in range(5):
            clock.pass_(2 * HOUR)
            deliver(node, enough)
        assert states(node) == ["committed", "committed"]
        assert held(node, pacs)
        assert len({(r.sop_instance_uid, r.sha256) for r in pacs.received}) == 2


def test_row_23_a_result_whose_study_names_another_patient_now_is_dead_with_an_alert(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs") as pacs:
        at(node, pacs.port, commitment="none")
        routed(node, tiny_bundle, "out")
        analysed(node, "CANARY")
        with node.database.transaction() as session:
            session.execute(update(Study).values(patient_id="SOMEBODY"))
        deliver(node)
        assert states(node) == ["dead", "dead"]
        assert pacs.associations == 0
        (alert,) = list_alerts(node)
        study = one(node, Study)
        assert (alert["kind"], alert["subject"]) == ("another patient", study.study_instance_uid)
        assert f"studies reopen {study.study_instance_uid}" in alert["text"]
        said = alert["text"] + "".join(a.answer for a in all_of(node, DeliveryAttempt))
        assert "CANARY" not in said
        assert "SOMEBODY" not in said
        with node.database.transaction() as session:  # it was a mistake
            session.execute(update(Study).values(patient_id="CANARY"))
        retry_delivery(node, 1)
        deliver(node)
        assert states(node) == ["sent", "sent"]
        assert list_alerts(node) == []


@pytest.mark.parametrize(
    ("column", "value"), [("study_instance_uid", "1.2.3.4"), ("patient_issuer", "ELSEWHERE")]
)
def test_a_result_of_another_study_or_issuer_is_not_sent(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, column: str, value: str
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs") as pacs:
        at(node, pacs.port)
        routed(node, tiny_bundle, "out")
        analysed(node, "P0")
        named = dcmread(node.results.path(all_of(node, Result)[0].path))
        issued = str(named.get("IssuerOfPatientID", ""))
        with node.database.transaction() as session:
            session.execute(update(Study).values({column: value}))
        deliver(node)
        absent = column == "patient_issuer" and not issued  # one that is absent agrees with any
        assert states(node) == (["sent", "sent"] if absent else ["dead", "dead"])


def test_many_results_go_on_as_many_associations_as_the_destination_allows(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    node = patient(sqlite_node)
    with Pacs(tmp_path / "pacs", answers=[Do.HANG, Do.HANG]) as pacs:
        at(node, pacs.port, commitment="none", associations=2)
        routed(node, tiny_bundle, "out")
        analysed(node, *(f"P{n}" for n in range(12)))
        sender = threading.Thread(target=deliver, args=[node])
        sender.start()
        eventually(lambda: pacs.associations == 2, 60)  # each hangs, so both are open
        pacs.release()
        sender.join(120)
        assert set(states(node)) == {"sent"}
        assert held(node, pacs)
        by_job: dict[int, list[int]] = {}
        order = [r.sop_instance_uid for r in pacs.received]
        for row in all_of(node, Result):
            by_job.setdefault(row.job_id, []).append(order.index(row.sop_instance_uid))
        assert all(places == sorted(places) for places in by_job.values()), "a SEG goes first"


HOSTILE = """
import ctypes, os, signal, sys
from dicom_node.services import pictures
from inference import pixels

def hostile(dataset, declared):
    if {how!r} == "crashes":  # as a codec in C that is led astray
        os.kill(os.getpid(), signal.SIGSEGV)
    ctypes.PyDLL(None).sleep(30)  # holds the interpreter's lock, as a hanging codec does

pixels.decode = hostile
pictures.main(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("how", "deadline", "why"),
    [("crashes", 60, "its process died of SIGSEGV"), ("hangs", 1, "they took over 1 s")],
    ids=["crashes", "hangs"],
)
def test_row_12_images_that_no_decoder_survives_cost_one_attempt_of_one_delivery(
    sqlite_node: Node,
    tiny_bundle: Bundle,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    deadline: float,
    why: str,
) -> None:
    """Who is refused a report makes pages instead; another destination joined when all was done."""
    node = patient(sqlite_node)
    worker = node.settings.worker.model_copy(update={"job_deadline": deadline})
    hasty = replace(node, settings=node.settings.model_copy(update={"worker": worker}))
    with Pacs(tmp_path / "old", classes=[CAPTURE]) as old, Pacs(tmp_path / "up") as up:
        at(node, old.port, "old", commitment="none")
        at(node, up.port, "up", commitment="none")
        place = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": up.port}
        wish, terms = {"capture": "always"}, {"commitment": "none"}
        registry.add_destination(node, "later", "dimse", place, wish, terms)
        routed(node, tiny_bundle, "old", "up")
        analysed(node, "P0")
        with node.database.transaction() as session:
            session.add(JobDestination(job_id=1, destination="later", rules=["all"]))
        with monkeypatch.context() as patched:
            patched.setattr(pictures, "CHILD", [sys.executable, "-c", HOSTILE.format(how=how)])
            deliver(hasty, enough)
            assert states(node, "up") == ["sent", "sent"]
            (first, *_) = all_of(node, Delivery)
            assert (first.state, first.attempts) == ("pending", 1)
            assert first.last_answer.endswith(f"no other form yet: its images were not read: {why}")
            (alert,) = list_alerts(node)
            assert (alert["kind"], alert["subject"]) == (forms.NOT_BUILT, "job 1")
            assert alert["text"] == f"its images were not read: {why}"
            assert states(node, "later") == []
        deliver(node, enough)
        assert states(node, "later") == [], "it rests"
        for _ in range(2):  # both may build the same form at once: who comes second tries again
            clock.pass_(1000)
            deliver(node, enough)
        assert "sent" in states(node, "old")
        assert states(node, "later") == ["sent"] * 3
        assert list_alerts(node) == []
