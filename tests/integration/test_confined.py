"""The child in which jobs run: what it does to itself ends one job's attempt, and nothing else."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from dicom_node import faults
from dicom_node.domain.routing import parse_rules
from dicom_node.services import registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.schedule import reconcile
from dicom_node.store.tables import Job, Result
from dicom_node.worker.confined import Confined, Ended
from inference.bundle import Bundle
from tests.arrivals import all_of, arrive, count, files_of, one
from tests.dicoms import dx_image, phantom
from tests.nodes import Clock, add_bundle
from tests.servers import eventually

HOSTILE = """
import ctypes, os, resource, signal, sys, time
import numpy as np
from inference import pixels

def hostile(dataset, declared, decode=pixels.decode):
    if dataset.PatientID == "crash":  # as a codec in C that is led astray
        os.kill(os.getpid(), signal.SIGSEGV)
    if dataset.PatientID == "hang":
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, as a hanging codec does
    if dataset.PatientID == "grow":
        held = []
        while True:
            held.append(np.ones(2**23, np.uint8))
            time.sleep(0.01)
    if dataset.PatientID == "bomb":
        np.empty(2**40, np.uint8)
    return decode(dataset, declared)

pixels.decode = hostile
resource.setrlimit(resource.RLIMIT_DATA, (2**33, resource.RLIM_INFINITY))

from dicom_node.worker.child import serve
from inference.types import Prediction

class Saying:  # not torch, which takes seconds to load
    def predict(self, digest, stacks, keep_probability=False):
        return [Prediction(not_analysed="a test") for _ in stacks]

serve(sys.argv[1], lambda node: Saying())
"""

ANY = ("any",)


@pytest.fixture
def confined(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Confined]:
    """A child with hostile codecs."""
    add_bundle(sqlite_node, tiny_bundle)
    registry.add_destination(sqlite_node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(sqlite_node, parse_rules({"rule": [rule]}))
    monkeypatch.setenv("DICOM_NODE_STORAGE__FOLDER", str(sqlite_node.settings.storage.folder))
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE", sqlite_node.settings.storage.database)
    monkeypatch.setenv("DICOM_NODE_WORKER__DEVICE", "cpu")
    confined = Confined(sqlite_node, [sys.executable, "-c", HOSTILE])
    yield confined
    confined.close()


def ready(node: Node, clock: Clock, *patients: str) -> None:
    for number, patient in enumerate(patients):
        arrive(node, dx_image(phantom((48, 40), seed=number), patient_id=patient))
        clock.pass_(60)
        assert close_studies(node) == 1


def within(confined: Confined, **limits: float) -> None:
    """Other limits for what is asked from now on."""
    node = confined._node
    worker = node.settings.worker.model_copy(update=limits)
    confined._node = replace(node, settings=node.settings.model_copy(update={"worker": worker}))


def pid(confined: Confined) -> int:
    assert confined._child is not None
    return confined._child.pid


def test_row_18_a_study_that_crashes_its_process_is_tried_alone_and_given_up(
    confined: Confined, sqlite_node: Node, clock: Clock
) -> None:
    ready(sqlite_node, clock, "one", "crash", "two")
    assert confined.run(ANY) == 3
    jobs = all_of(sqlite_node, Job)
    assert {(job.state, job.attempts, job.owner) for job in jobs} == {("ready", 1, None)}
    assert {job.error for job in jobs} == {"its process died of SIGSEGV"}
    runs = [confined.run(ANY) for _ in range(5)]
    assert runs == [1, 1, 1, 1, 0]  # the two others once each, the culprit twice, each alone
    jobs = all_of(sqlite_node, Job)
    assert [(job.state, job.attempts) for job in jobs] == [("done", 2), ("dead", 3), ("done", 2)]
    (alert,) = list_alerts(sqlite_node)
    assert alert["text"] == "given up after 3 attempts: its process died of SIGSEGV"


def test_row_19_a_hang_is_ended_at_the_deadline_and_memory_at_its_limit(
    confined: Confined, sqlite_node: Node, clock: Clock
) -> None:
    ready(sqlite_node, clock, "one")
    assert confined.run(ANY) == 1
    assert one(sqlite_node, Job).state == "done"
    first = pid(confined)

    # What is refused at once costs no process: the allocation fails, and the job with it.
    ready(sqlite_node, clock, "bomb")
    assert confined.run(ANY) == 1
    bomb = all_of(sqlite_node, Job)[1]
    assert bomb.summary is not None
    assert bomb.summary["not_analysed"] == "the images cannot be read: memory did not suffice"
    assert pid(confined) == first

    ready(sqlite_node, clock, "hang")
    within(confined, job_deadline=1, attempts=1)
    began = time.monotonic()
    assert confined.run(ANY) == 1
    assert time.monotonic() - began < 30
    hung = all_of(sqlite_node, Job)[2]
    assert (hung.state, hung.error) == ("dead", "ran for over 1 s (worker.job_deadline)")
    assert confined._child is None

    ready(sqlite_node, clock, "grow")
    within(confined, job_deadline=120, memory_mb=700)
    assert confined.run(ANY) == 1
    grown = all_of(sqlite_node, Job)[3]
    assert (grown.state, grown.error) == ("dead", "needed more than 700 MiB (worker.memory_mb)")

    ready(sqlite_node, clock, "two")
    assert confined.run(ANY) == 1  # another child
    assert [job.state for job in all_of(sqlite_node, Job)] == [
        "done",
        "done",
        "dead",
        "dead",
        "done",
    ]
    incoming = sqlite_node.results.root / "incoming"
    assert not [path for path in files_of(sqlite_node) if path.parent == incoming]


PROTOCOL = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    {answer}
"""


def saying(node: Node, answer: str) -> Confined:
    """A child that speaks the protocol and does nothing else."""
    return Confined(node, [sys.executable, "-c", PROTOCOL.format(answer=answer)])


def claimed(node: Node) -> Job:
    """The one job, as the child would claim it."""
    with node.database.transaction() as session:
        session.execute(update(Job).values(state="running", owner=node.id, token=1, attempts=1))
    return one(node, Job)


def test_row_17_the_parent_beats_for_what_its_child_runs(
    confined: Confined, sqlite_node: Node, clock: Clock
) -> None:
    ready(sqlite_node, clock, "one")
    child = saying(sqlite_node, "time.sleep(600)")
    within(child, lease=0.2, job_deadline=2)
    running = threading.Thread(target=child.run, args=(ANY,))
    running.start()
    time.sleep(0.5)
    job = claimed(sqlite_node)
    eventually(lambda: one(sqlite_node, Job).beat >= job.beat + 3, 10)
    running.join()
    assert one(sqlite_node, Job).state == "ready"
    assert one(sqlite_node, Job).error == "ran for over 2 s (worker.job_deadline)"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("sys.exit(3)", "its process ended with 3"),
        ("print('KeyError in look, somewhere.py line 3', flush=True)", "KeyError in look"),
        ("print('1', end='', flush=True); sys.exit()", "its process ended with 0"),
    ],
)
def test_whatever_a_child_answers_nothing_is_left_running(
    confined: Confined, sqlite_node: Node, clock: Clock, answer: str, reason: str
) -> None:
    ready(sqlite_node, clock, "one")
    child = saying(sqlite_node, f"time.sleep(1); {answer}")
    running = threading.Thread(target=child.run, args=(ANY,))
    running.start()
    time.sleep(0.5)
    claimed(sqlite_node)
    running.join()
    job = one(sqlite_node, Job)
    assert (job.state, job.owner) == ("ready", None)
    assert job.error.startswith(reason)
    child.close()


def test_a_database_that_was_away_amid_a_run_costs_no_attempt(
    confined: Confined, sqlite_node: Node, clock: Clock
) -> None:
    ready(sqlite_node, clock, "one")
    child = saying(sqlite_node, "time.sleep(1); print('later: database is locked', flush=True)")
    running = threading.Thread(target=child.run, args=(ANY,))
    running.start()
    time.sleep(0.5)
    claimed(sqlite_node)
    running.join()
    job = one(sqlite_node, Job)
    assert (job.state, job.attempts, job.owner) == ("ready", 0, None)
    assert job.error == "database is locked"
    assert job.not_before is not None
    child.close()


def test_what_a_child_could_not_do_for_now_it_says_in_words(
    confined: Confined, sqlite_node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sqlite_node.settings.storage.folder / "gone" / "node.sqlite"
    gone.mkdir(parents=True)
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE", f"sqlite:///{gone}")
    answer = confined._ask("any")
    assert answer.startswith("later: database: unable to open"), answer


def test_a_child_that_hears_nothing_more_is_told_as_it_died(
    confined: Confined, sqlite_node: Node, clock: Clock
) -> None:
    """It closes its ear before it ends: what was written stays in our pipe."""
    ready(sqlite_node, clock, "one")
    deaf = (
        "import os, sys, time; print('ready', flush=True); os.close(0); time.sleep(1); sys.exit(3)"
    )
    child = Confined(sqlite_node, [sys.executable, "-c", deaf])
    with pytest.raises(Ended, match="its process ended with 3"):
        child._ask("any")
    child.close()


JOB_STEPS = [step for step in faults.STEPS if step.startswith(("job/", "results/"))]


@pytest.mark.parametrize(
    "steps",
    [
        ["job/predicted", "results/renamed", "job/committed"],
        pytest.param(JOB_STEPS, marks=pytest.mark.slow),
    ],
    ids=["three", "all"],
)
def test_row_17_a_kill_at_each_step_of_a_job_costs_an_attempt_and_leaves_nothing(
    confined: Confined,
    sqlite_node: Node,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    steps: list[str],
) -> None:
    orders = tmp_path / "orders"
    monkeypatch.setenv("FAULT_TESTING", "yes")
    monkeypatch.setenv("FAULT", f"@{orders}")
    for number, step in enumerate(steps):
        ready(sqlite_node, clock, f"P{number}")
        orders.write_text(f"{step}:kill")
        done = step == "job/committed"
        assert confined.run(ANY) == (0 if done else 1), step
        assert not orders.exists(), f"{step} was not met"
        assert confined.run(ANY) == (0 if done else 1), step
        job = all_of(sqlite_node, Job)[-1]
        assert (job.state, job.attempts) == ("done", 1 if done else 2), step
        assert count(sqlite_node, Result) == number + 1
    # As an hour later: nobody can still be about to name what no row names.
    reconcile(sqlite_node, dict.fromkeys(files_of(sqlite_node), -math.inf))
    named = {row.path for row in all_of(sqlite_node, Result)}
    named |= {job.prediction for job in all_of(sqlite_node, Job) if job.prediction}
    assert set(sqlite_node.results.names()) == named
    assert not list((sqlite_node.results.root / "incoming").iterdir())
