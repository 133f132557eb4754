"""Each queue is asked whether anybody takes what lies in it; administrators hear who does not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import update

from dicom_node.services import registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.canaries import Canaries, answer, list_queues
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.health import Level, _queues, status
from dicom_node.store.tables import Job
from inference.bundle import Bundle
from tests.arrivals import arrive
from tests.dicoms import dx_image
from tests.nodes import Clock, add_bundle, route


@dataclass
class Time:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Notes:
    """Stands in for the broker."""

    said: list[tuple[str, str]] = field(default_factory=list)

    def nudge(self, task: str, queue: str) -> bool:
        self.said.append((task, queue))
        return True


@pytest.fixture
def asking(node: Node) -> tuple[Node, Canaries, Notes, Time]:
    scheduler = node.settings.scheduler.model_copy(update={"canary": 10})
    node = replace(node, settings=node.settings.model_copy(update={"scheduler": scheduler}))
    notes, time = Notes(), Time()
    nudger: Any = notes
    return node, Canaries(node, nudger, time), notes, time


def late(node: Node) -> list[str]:
    return [row["queue"] for row in list_queues(node) if row["late"]]


def go_on(canaries: Canaries, time: Time, rounds: int) -> None:
    for _ in range(rounds):
        time.now += 10
        canaries.round()


def test_a_queue_that_is_no_longer_served_is_told_until_it_is(
    asking: tuple[Node, Canaries, Notes, Time],
) -> None:
    node, canaries, notes, time = asking
    canaries.round()
    assert notes.said == [("canary", queue) for queue in ("any", "gpu", "deliver")]
    time.now += 9
    canaries.round()
    assert len(notes.said) == 3  # once an interval
    for queue in ("any", "deliver"):
        answer(node, queue)
    go_on(canaries, time, 4)
    assert late(node) == []
    go_on(canaries, time, 1)
    assert late(node) == ["any", "deliver"]  # nobody ever served gpu, and nothing waits there
    assert [(a["kind"], a["subject"]) for a in list_alerts(node)] == [
        ("queue not served", "deliver"),
        ("queue not served", "any"),
    ]
    told = {check.found: check.level for check in _queues(node)}
    assert told["any: nobody takes tasks from it"] is Level.FAULT
    assert told["gpu: no worker so far, and no work"] is Level.OK
    answer(node, "any")
    assert late(node) == ["deliver"]
    assert [a["subject"] for a in status(node)["alerts"]] == ["deliver"]
    assert "any: served 0 s ago" in {check.found for check in _queues(node)}


def test_a_queue_that_is_served_is_never_late(asking: tuple[Node, Canaries, Notes, Time]) -> None:
    node, canaries, _, time = asking
    for _ in range(20):
        go_on(canaries, time, 1)
        for queue in ("any", "gpu", "deliver"):
            answer(node, queue)
    assert list_alerts(node) == []


def test_a_worker_that_is_busy_is_not_late_and_work_without_a_worker_is(
    asking: tuple[Node, Canaries, Notes, Time], tiny_bundle: Bundle, tmp_path: Any, clock: Clock
) -> None:
    node, canaries, _, time = asking
    add_bundle(node, tiny_bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    route(node)
    arrive(node, dx_image())
    close_studies(node)
    go_on(canaries, time, 5)
    assert late(node) == ["any"]  # a job waits, and nobody ever took anything
    answer(node, "any")
    with node.database.transaction() as session:
        session.execute(update(Job).values(state="running", owner=node.id))
    go_on(canaries, time, 10)
    assert late(node) == []
    with node.database.transaction() as session:
        session.execute(update(Job).values(state="running", owner="another"))
    go_on(canaries, time, 4)
    assert late(node) == ["any"]
