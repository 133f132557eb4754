"""The rounds in which the node looks after itself, by a clock that the test moves."""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, update

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import ConflictingInstance, Unavailable
from dicom_node.services import registry, schedule
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.dispatch import Nudger
from dicom_node.services.infer import run_jobs
from dicom_node.services.processes import Watch, alive, beating, bury, place
from dicom_node.services.receive import Outcome, receive_instance
from dicom_node.services.schedule import Scheduler, reconcile
from dicom_node.settings import BrokerSettings
from dicom_node.store.tables import (
    Association,
    Delivery,
    Destination,
    Instance,
    Job,
    Lease,
    Process,
    Result,
    Study,
)
from inference.bundle import Bundle
from inference.types import Prediction
from tests.arrivals import all_of, arrive, count, files_of, one, opened, request
from tests.dicoms import ct_series, dx_image
from tests.nodes import Clock, add_bundle
from tests.servers import Redis, eventually, redis_server

LEASE = 20  # seconds, in the settings of `node`


class Ticks:
    """A monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Notes:
    """Stands in for the broker where it does not matter; ``up`` says whether it answers."""

    said: list[tuple[str, str]] = field(default_factory=list)
    up: bool = True

    def nudge(self, task: str, queue: str) -> bool:
        if self.up:
            self.said.append((task, queue))
        return self.up


class Saying:
    def predict(self, digest: str, stacks: Any, *_: Any) -> list[Prediction]:
        del digest  # part of the interface
        return [Prediction(not_analysed="a test") for _ in stacks]


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=ticks))
    monkeypatch.setattr(schedule, "Watch", lambda patience: Watch(patience, ticks))
    return ticks


def entered(node: Node, name: str, pid: int | None = None) -> Node:
    """Another process of the node, with its row."""
    other = replace(node, id=name)
    host, own = place()
    with node.database.transaction() as session:
        session.add(
            Process(
                id=name,
                role="test",
                host=host,
                pid=own if pid is None else pid,
                started_at=node.now(),
                beat_at=node.now(),
            )
        )
    return other


def beat(node: Node, *names: str) -> None:
    with node.database.transaction() as session:
        session.execute(update(Process).where(Process.id.in_(names)).values(beat=Process.beat + 1))


def scheduler(node: Node, notes: Any = None) -> Scheduler:
    told: Any = notes or Notes()
    return Scheduler(node, told)


@pytest.fixture
def working(node: Node, tiny_bundle: Bundle, tmp_path: Path) -> Node:
    """A node with a model and a place for its results."""
    add_bundle(node, tiny_bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    return node


# -- watching ----------------------------------------------------------------------------------


def test_a_counter_that_stands_still_for_its_patience_is_told() -> None:
    ticks = Ticks()
    watch = Watch(10, ticks)
    assert watch.still({"a": 1, "b": 1}) == set()
    ticks.now += 6
    assert watch.still({"a": 1, "b": 2}) == set()
    ticks.now += 5
    assert watch.still({"a": 1, "b": 2}) == {"a"}
    assert watch.still({"a": 2, "b": 2}) == set()
    ticks.now += 5
    assert watch.still({"a": 2, "b": 2}) == {"b"}


def test_what_was_absent_is_watched_anew() -> None:
    ticks = Ticks()
    watch = Watch(10, ticks)
    watch.still({"a": 1})
    watch.still({})
    ticks.now += 11
    assert watch.still({"a": 1}) == set()


# -- who schedules -----------------------------------------------------------------------------


def test_of_two_schedulers_one_acts_until_it_falls_silent(
    node: Node, ticks: Ticks, clock: Clock
) -> None:
    one_, two = entered(node, "one"), entered(node, "two")
    first, second = scheduler(one_), scheduler(two)
    assert first.round()
    assert not second.round()
    for _ in range(30):  # both live: it stays where it is
        ticks.now += 2
        beat(node, "one", "two", node.id)
        assert first.round()
        assert not second.round()
    ticks.now += LEASE - 1
    beat(node, "one", "two", node.id)  # the process lives, its rounds have stopped
    assert not second.round()
    ticks.now += 1.1
    assert second.round()
    assert one(node, Lease).owner == "two"
    assert not first.round()


def test_a_scheduler_that_ended_is_followed_at_once(node: Node, ticks: Ticks) -> None:
    one_, two = entered(node, "one"), entered(node, "two")
    assert scheduler(one_).round()
    bury(node, ["one"])
    assert scheduler(two).round()


def test_a_scheduler_that_was_killed_here_is_followed_at_once(node: Node, ticks: Ticks) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    one_, two = entered(node, "one", child.pid), entered(node, "two")
    assert scheduler(one_).round()
    assert scheduler(two).round()
    assert "one" not in {process.id for process in alive(node)}


def test_two_schedulers_that_begin_at_once_do_not_both_act(node: Node) -> None:
    nodes = [entered(node, f"s{n}") for n in range(6)]
    start, acted = threading.Barrier(6), []

    def run(own: Node) -> None:
        start.wait()
        if scheduler(own)._is_ours():
            acted.append(own.id)

    threads = [threading.Thread(target=run, args=[own]) for own in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert acted == [one(node, Lease).owner]


# -- taking back -------------------------------------------------------------------------------


@pytest.fixture
def running(working: Node) -> Node:
    """One job, claimed by a worker that is called ``worker``."""
    entered(working, "worker")
    arrive(working, dx_image())
    close_studies(working)
    with working.database.transaction() as session:
        session.execute(update(Job).values(state="running", owner="worker", token=1, attempts=1))
    return working


def test_row_17_a_job_is_taken_back_when_its_beat_stands_still_and_not_before(
    running: Node, ticks: Ticks, clock: Clock
) -> None:
    mine = scheduler(running)
    names = ("worker", running.id)
    mine.round()
    for _ in range(5):
        ticks.now += LEASE - 1
        beat(running, *names)
        with running.database.transaction() as session:
            session.execute(update(Job).values(beat=Job.beat + 1))
        mine.round()
        assert one(running, Job).state == "running"
    ticks.now += LEASE - 1
    beat(running, *names)
    mine.round()
    assert one(running, Job).state == "running"
    ticks.now += 1
    beat(running, *names)
    mine.round()
    job = one(running, Job)
    assert (job.state, job.token, job.owner, job.attempts) == ("ready", 2, None, 1)
    assert job.error == "its worker died or was frozen"


def test_what_is_claimed_while_the_living_are_counted_is_left_alone(
    working: Node, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has just started is not among those who were alive a moment ago."""
    arrive(working, dx_image())
    close_studies(working)

    def then_another_starts(node: Node) -> list[Process]:
        found = alive(node)
        late = entered(node, "late")
        with node.database.transaction() as session:
            session.execute(update(Job).values(state="running", owner=late.id, token=1))
        return found

    monkeypatch.setattr(schedule, "alive", then_another_starts)
    scheduler(working)._take_back()
    assert (one(working, Job).state, one(working, Job).owner) == ("running", "late")


def test_a_heartbeat_that_fails_in_any_way_goes_on() -> None:
    errors = [Unavailable("database: away"), RuntimeError("whatever")]
    beaten = threading.Event()

    def beat_once() -> None:
        if errors:
            raise errors.pop(0)
        beaten.set()

    with beating(beat_once, 0.01):
        assert beaten.wait(10)


def test_row_20_a_wall_clock_that_jumps_a_day_takes_nothing_back(
    running: Node, ticks: Ticks, clock: Clock
) -> None:
    notes = Notes()
    mine = scheduler(running, notes)
    mine.round()
    for jump in (86_400, -2 * 86_400):
        clock.pass_(jump)
        ticks.now += 1
        mine.round()
    assert notes.said == []  # no storm
    assert one(running, Job).state == "running"
    assert {p.id for p in alive(running)} == {"worker", running.id}


@pytest.mark.parametrize("jump", [86_400, -86_400], ids=["forward", "back"])
def test_row_20_a_wall_clock_that_jumps_a_day_stops_no_work_and_makes_no_storm(
    working: Node, ticks: Ticks, clock: Clock, tmp_path: Path, jump: int
) -> None:
    """Everything that waits for a moment, or for a nudge that was lost, goes on after one try."""
    notes, soon = Notes(), clock.time + timedelta(seconds=60)
    mine = scheduler(working, notes)
    registry.add_destination(working, "closed", "folder", {"path": str(tmp_path / "closed")})
    arrive(working, dx_image(patient_id="sent later"))
    close_studies(working)
    run_jobs(working, Saying(), ("any",))
    arrive(working, dx_image(patient_id="nudge lost"), dx_image(patient_id="put off"))
    close_studies(working)
    last = all_of(working, Job)[-1]
    with working.database.transaction() as session:
        session.execute(update(Job).where(Job.id == last.id).values(not_before=soon))
        session.execute(update(Delivery).values(next_at=soon, attempts=1))
        closed = update(Destination).where(Destination.name == "closed")
        session.execute(closed.values(closed_until=soon, failures=3))
    mine.round()
    arrive(working, *ct_series(2))
    mine.round()
    assert notes.said == [("infer", "any")]
    clock.pass_(jump)
    for _ in range(3):
        ticks.now += 1
        beat(working, working.id)
        mine.round()
    assert Counter(notes.said[1:]) == {("infer", "any"): 2, ("deliver", "deliver"): 1}
    assert run_jobs(working, Saying(), ("any",)) == 2
    deliver(working)
    assert [row.state for row in all_of(working, Delivery)] == ["sent"] * 3
    assert one(working, Destination, Destination.name == "closed").closed_until is None
    clock.pass_(jump)  # each was to be asked about in a second
    deliver(working)
    assert [row.state for row in all_of(working, Delivery)] == ["confirmed"] * 3
    mine.round()
    clock.pass_(31)  # the quiet of a CT, from the moment at which the jump was seen
    mine.round()
    assert [row.state for row in all_of(working, Study)] == ["closed"] * 4


def test_the_job_of_a_worker_that_ended_is_taken_back_at_once(running: Node, ticks: Ticks) -> None:
    bury(running, ["worker"])
    notes = Notes()
    scheduler(running, notes).round()
    assert one(running, Job).state == "ready"
    assert ("infer", "any") in notes.said


def test_row_18_a_job_that_kills_its_workers_goes_to_the_dead_letters(
    running: Node, ticks: Ticks, clock: Clock
) -> None:
    with running.database.transaction() as session:
        session.execute(update(Job).values(attempts=running.settings.worker.attempts))
    bury(running, ["worker"])
    scheduler(running).round()
    job = one(running, Job)
    assert (job.state, job.finished_at) == ("dead", clock.time)
    (alert,) = list_alerts(running)
    assert (alert["kind"], alert["subject"]) == ("job dead", f"job {job.id}")


def test_a_delivery_is_taken_back_and_arrives(
    working: Node, ticks: Ticks, clock: Clock, tmp_path: Path
) -> None:
    arrive(working, dx_image())
    close_studies(working)
    run_jobs(working, Saying(), ("any",))
    with working.database.transaction() as session:
        session.execute(update(Delivery).values(state="sending", owner="gone", token=1, attempts=1))
    scheduler(working).round()
    row = one(working, Delivery)
    assert (row.state, row.last_answer) == ("pending", "its sender died or was frozen")
    assert deliver(working) == 0  # it may have been at fault: not at once, as after any failure
    clock.pass_(working.settings.delivery.backoff)
    deliver(working)
    assert (one(working, Delivery).state, one(working, Delivery).attempts) == ("sent", 2)


def test_row_25_a_delivery_that_kills_its_senders_goes_to_the_dead_letters(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    """It was counted before it was sent; others go on."""
    arrive(working, dx_image(patient_id="kills"), dx_image(patient_id="goes on"))
    close_studies(working)
    run_jobs(working, Saying(), ("any",))
    first = all_of(working, Delivery)[0]
    last = working.settings.delivery.attempts
    with working.database.transaction() as session:
        values = {"state": "sending", "owner": "gone", "token": 1, "attempts": last}
        session.execute(update(Delivery).where(Delivery.id == first.id).values(values))
    scheduler(working).round()
    deliver(working)
    rows = all_of(working, Delivery)
    assert [row.state for row in rows] == ["dead", "sent"]
    assert rows[0].attempts == last
    (alert,) = list_alerts(working)
    assert (alert["kind"], alert["subject"]) == ("delivery dead", f"delivery {first.id}")
    assert "its sender died or was frozen" in alert["text"]


def test_the_associations_of_a_listener_that_fell_silent_keep_no_study_waiting(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    listener = entered(working, "listener")
    receive_instance(working, request(dx_image(), opened(listener)))
    mine = scheduler(working)
    mine.round()
    assert count(working, Job) == 0
    ticks.now += LEASE
    beat(working, working.id)
    clock.pass_(1)
    mine.round()
    assert one(working, Association).aborted
    assert count(working, Job) == 1


# -- nudging -----------------------------------------------------------------------------------


def test_ready_work_is_nudged_at_once_and_again_while_it_waits(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    def later(seconds: float) -> None:
        clock.pass_(seconds)
        ticks.now += seconds
        beat(working, working.id)

    notes = Notes()
    mine = scheduler(working, notes)
    arrive(working, dx_image())
    mine.round()
    assert notes.said == [("infer", "any")]
    mine.round()
    later(9)
    mine.round()
    assert len(notes.said) == 1
    later(1)
    mine.round()
    assert notes.said == [("infer", "any")] * 2
    run_jobs(working, Saying(), ("any",))
    mine.round()
    assert notes.said[2:] == [("deliver", "deliver")]
    later(10)
    mine.round()
    assert notes.said[2:] == [("deliver", "deliver")] * 2
    deliver(working)
    later(10)
    mine.round()
    assert notes.said[2:] == [("deliver", "deliver")] * 3  # to ask whether it is held
    deliver(working)
    later(100)
    mine.round()
    assert len(notes.said) == 5


def test_a_broker_that_is_away_is_told_when_it_is_back(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    notes = Notes(up=False)
    mine = scheduler(working, notes)
    arrive(working, dx_image())
    mine.round()
    notes.up = True
    mine.round()
    assert notes.said == [("infer", "any")]


def test_a_job_that_must_wait_is_nudged_when_its_time_has_come(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    arrive(working, dx_image())
    close_studies(working)
    with working.database.transaction() as session:
        session.execute(update(Job).values(not_before=clock.time + timedelta(seconds=60)))
    notes = Notes()
    mine = scheduler(working, notes)
    mine.round()
    assert notes.said == []
    clock.pass_(60)
    mine.round()
    assert notes.said == [("infer", "any")]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Redis]:
    with redis_server(tmp_path) as running:
        yield running


def test_row_15_a_broker_that_forgets_everything_is_nudged_again(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, broker: Redis, clock: Clock
) -> None:
    add_bundle(sqlite_node, tiny_bundle)
    registry.add_destination(sqlite_node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(sqlite_node, parse_rules({"rule": [rule]}))
    settings = BrokerSettings(url=broker.url, socket_timeout=0.5)
    nudger = Nudger(sqlite_node.settings.model_copy(update={"broker": settings}))
    mine = Scheduler(sqlite_node, nudger)
    arrive(sqlite_node, dx_image())
    mine.round()
    assert nudger.waiting() == {"any": 1, "gpu": 0, "deliver": 0}
    broker.flush()
    assert nudger.waiting()["any"] == 0
    clock.pass_(10)
    mine.round()
    assert nudger.waiting()["any"] == 1


def test_row_14_a_nudge_that_dies_with_whoever_took_it_or_was_to_send_it_is_sent_again(
    working: Node, ticks: Ticks, clock: Clock, broker: Redis
) -> None:
    """The scheduler ends between commit and nudge; then a worker ends between BRPOP and claim."""
    settings = BrokerSettings(url=broker.url, socket_timeout=0.5)
    nudger = Nudger(working.settings.model_copy(update={"broker": settings}))
    arrive(working, dx_image())
    close_studies(working)  # committed, and nobody was told
    mine = Scheduler(working, nudger)
    mine.round()
    with broker.client() as client:
        assert client.brpop(["any"], timeout=5)  # taken by somebody who is never heard of again
    mine.round()
    assert nudger.waiting()["any"] == 0
    clock.pass_(10)
    mine.round()
    assert nudger.waiting()["any"] == 1
    assert one(working, Job).state == "ready"


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_row_15_a_broker_that_is_gone_costs_its_timeout_and_nothing_else(
    sqlite_node: Node, broker: Redis, how: str
) -> None:
    settings = BrokerSettings(url=broker.url, socket_timeout=0.5)
    nudger = Nudger(sqlite_node.settings.model_copy(update={"broker": settings}))
    assert nudger.nudge("infer", "any")
    if how == "killed":
        broker.server.kill()
    else:
        broker.server.freeze()
    waited = []
    for _ in range(3):
        before = time.monotonic()
        assert not nudger.nudge("infer", "any")
        waited.append(time.monotonic() - before)
        time.sleep(0.1)  # longer than it takes to be refused: a refusal is asked for anew
    assert waited[0] < 2
    assert sum(waited[1:]) < 0.4, "refused at once, or left alone for as long as it was waited for"
    if how == "killed":
        broker.start()
    else:
        broker.server.thaw()
    eventually(lambda: nudger.nudge("infer", "any"), 10)


# -- disk and database ---------------------------------------------------------------------------


def test_row_20_a_clock_that_jumps_while_a_commit_waits_costs_no_file(
    node: Node, clock: Clock
) -> None:
    """A scheduler starts just then, and sees a file that is a day old and has no row."""
    association, left = opened(node), [1]

    @event.listens_for(node.database.engine, "commit")
    def jump(_: Any) -> None:
        if left:
            left.clear()
            clock.pass_(86_400)
            reconcile(node)

    assert receive_instance(node, request(dx_image(), association)) is Outcome.STORED
    assert not left
    assert [node.instances.path(one(node, Instance).path)] == files_of(node)


def test_disk_and_database_are_held_against_each_other_both_ways(
    working: Node, ticks: Ticks
) -> None:
    arrive(working, dx_image(number=1), dx_image(number=2))
    close_studies(working)
    run_jobs(working, Saying(), ("any",))
    assert reconcile(working) == {"temporary": 0, "orphans": 0, "missing": 0}
    kept = files_of(working)
    orphans = [
        working.instances.path(working.instances.write(".dcm", b"", b"nobody's").name),
        working.results.path(working.results.write(".dcm", b"", b"nobody's").name),
    ]
    dead = working.instances.root / "incoming" / "dead.0123"
    mine = working.instances.root / "incoming" / f"{working.id}.0123"
    dead.write_bytes(b"half")
    mine.write_bytes(b"half")
    seen: dict[Path, float] = {}
    assert reconcile(working, seen) == {"temporary": 1, "orphans": 0, "missing": 0}
    ticks.now += 3599
    assert reconcile(working, seen)["orphans"] == 0
    assert all(path.exists() for path in orphans)  # somebody may be about to name them
    ticks.now += 1
    assert reconcile(working, seen)["orphans"] == 2
    assert files_of(working) == sorted([*kept, mine])
    assert seen == {}
    gone = [all_of(working, Instance)[0].path, all_of(working, Result)[0].path]
    working.instances.remove(gone[0])
    working.results.remove(gone[1])
    for _ in range(2):  # told once
        assert reconcile(working)["missing"] == 2
    assert {(a["kind"], a["subject"]) for a in list_alerts(working)} == {
        ("file missing", name) for name in gone
    }
    assert len(list_alerts(working)) == 2


def test_what_had_no_row_at_the_start_is_removed_an_hour_later(
    working: Node, ticks: Ticks, clock: Clock
) -> None:
    mine = scheduler(working)
    left = working.instances.path(working.instances.write(".dcm", b"", b"nobody's").name)
    mine.reconcile()
    clock.pass_(86_400)
    mine.round()
    ticks.now += 3600
    assert left.exists()
    beat(working, working.id)
    mine.round()
    eventually(lambda: not left.exists(), 10)


def test_what_is_in_quarantine_is_no_orphan(sqlite_node: Node) -> None:
    arrive(sqlite_node, dx_image(sop_uid="1.2.3"))
    with pytest.raises(ConflictingInstance):
        arrive(sqlite_node, dx_image(sop_uid="1.2.3", KVP="80"))
    seen = dict.fromkeys(files_of(sqlite_node), -math.inf)
    assert reconcile(sqlite_node, seen) == {"temporary": 0, "orphans": 0, "missing": 0}
    assert len(files_of(sqlite_node)) == 2
