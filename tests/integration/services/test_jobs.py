"""What administrators do with jobs, on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.errors import InvalidTransition, NotFound
from dicom_node.services import jobs, models, registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.infer import run_jobs
from dicom_node.store.tables import Job
from inference.bundle import Bundle
from inference.types import Prediction
from tests.arrivals import all_of, arrive, one
from tests.dicoms import ct_series, dx_image
from tests.nodes import Clock, add_bundle

STUDY = "1.2.3"


class Saying:
    def predict(self, digest: str, stacks: Any, *_: Any) -> list[Prediction]:
        del digest  # part of the interface
        return [Prediction(not_analysed="a test") for _ in stacks]


@pytest.fixture(autouse=True)
def prepared(node: Node, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """One ready job of one study."""
    add_bundle(node, tiny_bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    arrive(node, dx_image(study_uid=STUDY))
    close_studies(node)


def run(node: Node) -> int:
    return run_jobs(node, Saying(), ("any",))


def test_a_job_is_listed_and_shown_with_all_that_belongs_to_it(node: Node) -> None:
    run(node)
    (row,) = jobs.list_jobs(node)
    assert (row["job"], row["study"], row["state"]) == (1, STUDY, "done")
    assert (row["model"], row["revision"], row["priority"]) == ("tiny@0.0.1", 1, "routine")
    assert jobs.list_jobs(node, "ready") == []
    shown = jobs.show_job(node, 1)
    assert [d["name"] for d in shown["destinations"]] == ["out"]
    assert [r["kind"] for r in shown["results"]] == ["sr"]
    assert Path(shown["results"][0]["file"]).is_file()
    assert len(shown["inputs"]) == 1
    with pytest.raises(NotFound):
        jobs.show_job(node, 99)


def test_a_dead_job_runs_again_with_its_attempts_counted_anew(node: Node, clock: Clock) -> None:
    with node.database.transaction() as session:
        session.execute(
            update(Job).values(state="dead", attempts=3, error="x", finished_at=clock.time)
        )
    jobs.retry_job(node, 1)
    job = one(node, Job)
    assert (job.state, job.attempts, job.error, job.finished_at) == ("ready", 0, "", None)
    assert run(node) == 1
    with pytest.raises(InvalidTransition, match="job 1 is done: cannot retry"):
        jobs.retry_job(node, 1)


def test_a_cancelled_job_is_not_run_until_it_is_retried(node: Node, clock: Clock) -> None:
    jobs.cancel_job(node, 1)
    job = one(node, Job)
    assert (job.state, job.error) == ("cancelled", "cancelled by an administrator")
    assert job.finished_at == clock.time
    assert run(node) == 0
    with pytest.raises(InvalidTransition):
        jobs.cancel_job(node, 1)
    jobs.retry_job(node, 1)
    assert run(node) == 1
    assert one(node, Job).state == "done"


def test_each_rerun_is_a_generation_after_the_last(node: Node) -> None:
    run(node)
    for generation in (2, 3, 4):
        (made,) = jobs.rerun_study(node, STUDY)
        run(node)
        job = one(node, Job, Job.id == made)
        assert (job.generation, job.state, job.predecessor_id) == (generation, "done", made - 1)
    assert jobs.rerun_study(node, STUDY, "tiny") == [5]


def test_a_rerun_that_waits_already_is_not_made_twice(node: Node) -> None:
    run(node)
    jobs.rerun_study(node, STUDY)
    assert jobs.rerun_study(node, STUDY) == []
    run(node)
    assert [job.generation for job in all_of(node, Job)] == [1, 2]
    assert jobs.rerun_study(node, STUDY) == [3]


def test_a_rerun_follows_one_that_was_cancelled(node: Node) -> None:
    run(node)
    (second,) = jobs.rerun_study(node, STUDY)
    jobs.cancel_job(node, second)
    (third,) = jobs.rerun_study(node, STUDY)
    run(node)
    job = one(node, Job, Job.id == third)
    assert (job.generation, job.predecessor_id, job.state) == (3, 1, "done")


def test_what_a_late_image_superseded_is_not_rerun(
    node: Node, clock: Clock, tiny_ct_bundle: Bundle
) -> None:
    add_bundle(node, tiny_ct_bundle)
    rule = {"name": "all", "models": ["tiny-ct"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    series = ct_series(3, study_uid="1.2.4")
    for part in (series[:2], series[2:]):
        arrive(node, *part)
        clock.pass_(60)
        close_studies(node)
        while run(node):
            pass
    first, second = all_of(node, Job)[1:]
    assert (first.state, second.state, second.predecessor_id) == ("done", "done", first.id)
    (made,) = jobs.rerun_study(node, "1.2.4")
    assert one(node, Job, Job.id == made).predecessor_id == second.id


def test_what_is_being_superseded_is_not_rerun_either(
    node: Node, clock: Clock, tiny_ct_bundle: Bundle
) -> None:
    """The late slice's job waits: a rerun of the old inputs would overtake it."""
    add_bundle(node, tiny_ct_bundle)
    rule = {"name": "all", "models": ["tiny-ct"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    series = ct_series(3, study_uid="1.2.4")
    arrive(node, *series[:2])
    clock.pass_(60)
    close_studies(node)
    while run(node):
        pass
    arrive(node, series[2])
    clock.pass_(60)
    close_studies(node)
    assert jobs.rerun_study(node, "1.2.4") == []


def test_a_rerun_of_what_is_unknown_says_so(node: Node) -> None:
    with pytest.raises(NotFound, match=r"study '9\.9'"):
        jobs.rerun_study(node, "9.9")
    with pytest.raises((NotFound, InvalidTransition)):
        jobs.rerun_study(node, STUDY)  # nothing has run yet
    run(node)
    with pytest.raises(NotFound):
        jobs.rerun_study(node, STUDY, "other")


def test_a_model_retired_by_hand_runs_nothing_that_waited(node: Node) -> None:
    models.set_state(node, "tiny", ModelState.RETIRED)
    assert run(node) == 0
    (row,) = jobs.list_jobs(node)
    assert (row["state"], row["error"]) == ("cancelled", "its model was retired")
