"""Redis and workers come to harm while jobs wait and run; each job still finishes exactly once."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis

from dicom_node.domain.delivery import ARRIVED
from dicom_node.domain.job import JobState
from dicom_node.store.tables import Delivery, Instance, Job, Result
from tests.faults.conftest import Site
from tests.faults.invariants import i5, i6
from tests.node import Running, maps_torch, seconds_since
from tests.servers import eventually

pytestmark = pytest.mark.slow  # each waits for leases, children and models of a whole node


def finished_exactly_once(site: Site, *studies: str) -> None:
    """I2 and I3: one finished job a study, one object a kind, each at the PACS with one hash."""
    site.node.settled(*studies)
    for study in studies:
        (job,) = site.node.jobs(study)
        assert (job.state, job.error) == (JobState.DONE, "")
        results = site.node.results(study)
        assert Counter(r.kind for r in results) == {"seg": 1, "sr": 1}
        for result in results:
            file = site.node.node.results.path(result.path).read_bytes()
            assert hashlib.sha256(file).hexdigest() == result.sha256
            came = [r for r in site.pacs.received if r.sop_instance_uid == result.sop_instance_uid]
            assert came, "not at the PACS"
            assert len({r.sha256 for r in came}) == 1
            (delivery,) = site.node.rows(Delivery, Delivery.result_id == result.id)
            assert delivery.state in ARRIVED
            if delivery.attempts == 1:
                assert len(came) == 1
    keys = Counter((j.model_id, j.inputs_digest, j.generation) for j in site.node.rows(Job))
    assert set(keys.values()) == {1}


def embedded_redis(node: Running) -> psutil.Process:
    found: psutil.Process = eventually(
        lambda: next(iter(node.processes("redis-server")), None), 30, "a Redis"
    )
    return found


def client(node: Running) -> redis.Redis:
    path = str(node.node.settings.embedded_redis_socket)
    return redis.Redis(unix_socket_path=path, socket_timeout=5)


def until_running(node: Running, study: str) -> Job:
    """Until a worker has claimed the study's job."""

    def running_job() -> Job | None:
        return next((j for j in node.jobs(study) if j.state == JobState.RUNNING), None)

    job: Job = eventually(running_job, 60, f"a running job of {study}")
    return job


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        if process.is_running():
            process.resume()


# Redis


def test_row_15_flushall_with_jobs_queued_reserved_and_running_loses_none(site: Site) -> None:
    slow, files = site.slow_ct("flushed slow")
    assert set(site.node.send(files)) == {0}
    until_running(site.node, slow)
    others = [site.radiograph(f"flushed {n}") for n in range(3)]
    for _, paths in others:
        assert site.node.send(paths) == [0]
    site.node.closed(*(study for study, _ in others))
    with client(site.node) as redis_client:
        assert not i5(site.node, redis_client), "what is queued names no patient"
        redis_client.flushall()
    finished_exactly_once(site, slow, *(study for study, _ in others))


def test_row_15_a_redis_that_is_killed_is_started_again_and_no_job_is_lost(site: Site) -> None:
    slow, files = site.slow_ct("killed redis slow")
    assert set(site.node.send(files)) == {0}
    until_running(site.node, slow)
    victim = embedded_redis(site.node)
    victim.kill()
    fast, paths = site.radiograph("killed redis fast")
    assert site.node.send(paths) == [0], "ingest does not need Redis"
    finished_exactly_once(site, slow, fast)
    assert embedded_redis(site.node).pid != victim.pid


def test_row_15_a_frozen_redis_does_not_slow_the_ingest_and_loses_nothing(site: Site) -> None:
    studies = [site.radiograph(f"frozen redis {n}") for n in range(3)]
    with frozen(embedded_redis(site.node)):
        started = time.monotonic()
        for _, paths in studies:
            assert site.node.send(paths) == [0]
        assert seconds_since(started) < 15
        site.node.closed(*(study for study, _ in studies))
        assert all(j.state == JobState.READY for s, _ in studies for j in site.node.jobs(s))
    finished_exactly_once(site, *(study for study, _ in studies))


# Workers


def test_row_17_a_worker_killed_in_inference_costs_an_attempt_and_nothing_else(
    site: Site,
) -> None:
    """Its child, which runs the models, goes with it."""
    slow, files = site.slow_ct("killed worker")
    child = site.node.worker()
    worker = child.parent()
    assert worker is not None and not maps_torch(worker)
    assert set(site.node.send(files)) == {0}
    job = until_running(site.node, slow)
    worker.kill()
    eventually(lambda: not child.is_running(), 10, "the child is gone")
    finished_exactly_once(site, slow)
    (done,) = site.node.jobs(slow)
    assert done.attempts == 2
    assert site.node.logged("restarted", child="worker 1")
    assert site.node.logged("job taken back", job=job.id)


def test_row_17_what_runs_the_models_is_killed_and_only_its_job_notices(site: Site) -> None:
    slow, files = site.slow_ct("killed child")
    child = site.node.worker()
    worker = child.parent()
    assert set(site.node.send(files)) == {0}
    job = until_running(site.node, slow)
    child.kill()
    finished_exactly_once(site, slow)
    (done,) = site.node.jobs(slow)
    assert done.attempts == 2
    assert site.node.logged("job failed", job=job.id, dead=False)
    assert not site.node.logged("job taken back", job=job.id)
    assert site.node.worker().parent() == worker


def test_row_17_a_worker_frozen_past_its_lease_loses_its_job_and_writes_nothing_later(
    site: Site,
) -> None:
    """A second worker takes over; the first one goes on and finds its token stale."""
    slow, files = site.slow_ct("frozen worker")
    assert set(site.node.send(files)) == {0}
    child = site.node.worker()
    worker = child.parent()
    assert worker is not None
    job = until_running(site.node, slow)
    with frozen(worker), frozen(child):
        site.node.start("worker", "--queues", "any,deliver")
        finished_exactly_once(site, slow)
        (taken,) = site.node.jobs(slow)
        assert taken.token > job.token
    eventually(
        lambda: site.node.logged("stale lease: result discarded", job=job.id),
        60,
        "the first worker finds its claim stale",
    )
    finished_exactly_once(site, slow)
    assert site.node.stop("worker") == 0


def test_deliveries_wait_for_their_worker_and_go_out_once_it_is_back(site: Site) -> None:
    slow, files = site.slow_ct("killed delivery")
    assert set(site.node.send(files)) == {0}
    until_running(site.node, slow)
    (delivery,) = site.node.processes("worker", "--queues deliver")
    with frozen(delivery):
        eventually(lambda: site.node.results(slow), 60, "the job is done")
        delivery.kill()
    finished_exactly_once(site, slow)


def test_a_listener_that_is_killed_is_started_again(site: Site) -> None:
    study, files = site.radiograph("killed listener")
    (listener,) = site.node.processes("dicom_node.cli.main listen")
    listener.kill()
    eventually(lambda: site.node.logged("restarted", child="listener"), 30)
    eventually(lambda: site.node.send(files) == [0], 30, "the listener is back")
    finished_exactly_once(site, study)


def test_nothing_was_done_twice_and_no_file_is_left_over(site: Site) -> None:
    """After all of the above, and of a fresh study that goes through; runs last in this file."""
    assert not i6(site.node, 60)
    results = site.node.rows(Result)
    predictions = {job.prediction for job in site.node.rows(Job) if job.prediction}
    assert set(site.node.node.results.names()) == {r.path for r in results} | predictions
    assert set(site.node.node.instances.names()) == {r.path for r in site.node.rows(Instance)}
    came = {(r.sop_instance_uid, r.sha256) for r in site.pacs.received}
    assert sorted(uid for uid, _ in came) == sorted(r.sop_instance_uid for r in results)
    with client(site.node) as redis_client:
        assert not i5(site.node, redis_client)
