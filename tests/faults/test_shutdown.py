"""The whole node is told to stop, or is killed: nothing acknowledged is lost, nothing is left."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from dicom_node.domain.job import JobState
from dicom_node.store.tables import Association, Instance, Process
from inference.bundle import Bundle
from tests import dicoms
from tests.dicoms import save, uid
from tests.faults.conftest import Site, site_rules, site_settings
from tests.faults.invariants import Ledger, Sent, i1, push, slice_of
from tests.faults.test_jobs_survive import finished_exactly_once, until_running
from tests.node import Running, described, dimse, in_parallel, running, statuses, store, tree
from tests.pacs import Pacs
from tests.servers import answers_on, eventually, free_port, postgresql


@pytest.mark.slow
def test_row_28_a_node_told_to_stop_drains_and_goes_on_where_it_was(
    tmp_path: Path, tiny_bundle: Bundle, slow_bundle: Bundle
) -> None:
    """SIGTERM with a job running and a modality sending; later SIGKILL; each time a new start."""
    with (
        Pacs(tmp_path / "pacs") as pacs,
        running(
            tmp_path / "node",
            models=[tiny_bundle.path, slow_bundle.path],
            destinations={"pacs": dimse(pacs)},
            rules=site_rules(),
            **site_settings(),
        ) as node,
    ):
        site = Site(node, pacs, tmp_path / "studies")
        node.worker()  # warm, or the signal would find it loading
        slow, files = site.slow_ct("drained")
        assert set(node.send(files)) == {0}
        until_running(node, slow)
        late, more = many_images(tmp_path / "late", 150)
        sending, stopping = in_parallel(
            lambda: statuses(store(node.port, more)),
            lambda: (eventually(lambda: node.rows(Instance)[len(files) :]), node.stop("up"))[1],
        )
        assert stopping == 0, "it did not end as told"
        held = {row.sop_instance_uid for row in node.rows(Instance)}
        assert len(held) - len(files) >= len([s for s in sending if s == 0]) > 0
        (job,) = node.jobs(slow)
        assert job.state == JobState.DONE, "the running job was not finished first"
        assert not [p for p in node.rows(Process) if p.ended_at is None]
        assert not [a for a in node.rows(Association) if a.closed_at is None]

        node.start("up")
        node.ready()
        finished_exactly_once(site, slow)
        node.closed(late)

        killed_without_warning(node)
        node.start("up")
        node.ready()
        study, again = site.radiograph("after the power cut")
        assert node.send(again) == [0]
        finished_exactly_once(site, study)


def many_images(folder: Path, count: int) -> tuple[str, list[Path]]:
    """A study that no model wants."""
    study = uid("late")
    images = [dicoms.mr_slice(number=n, study_uid=study) for n in range(1, count + 1)]
    return study, [save(ds, folder / f"{n}.dcm") for n, ds in enumerate(images)]


def killed_without_warning(node: Running) -> None:
    """SIGKILL of the supervisor: all that it had started ends by itself."""
    child = node.children.pop("up")
    family = tree(child.pid)
    assert len(family) >= 6, [described(p) for p in family]
    child.kill()
    child.wait()
    _, left = psutil.wait_procs(family[1:], timeout=90)
    told = [described(process) for process in left]
    for process in left:
        process.kill()
    assert not told, f"left behind: {told}"
    assert not answers_on(node.port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "database"),
    [
        pytest.param(signal.SIGSTOP, "postgresql", id="frozen"),
        pytest.param(signal.SIGKILL, "postgresql", id="killed"),
        pytest.param(signal.SIGKILL, "sqlite", id="killed on SQLite"),
    ],
)
def test_row_32_the_other_listener_takes_every_connection(
    tmp_path: Path, fault: signal.Signals, database: str
) -> None:
    """Two processes share one socket; one of them is hit under load, and later it is healed.

    Not frozen on SQLite: who is frozen in its commit holds the lock of the whole file, and nobody
    else can write until it goes on.
    """
    ledger = Ledger()
    with ExitStack() as stack:
        server = stack.enter_context(postgresql(tmp_path)) if database == "postgresql" else None
        url = server.new_database() if server else f"sqlite:///{tmp_path}/node.sqlite"
        node = stack.enter_context(
            running(
                tmp_path / "node",
                roles=["listen", "scheduler"],
                storage={"database": url},
                listener={"port": free_port(), "reserve_mb": 16, "processes": 2},
                worker={"lease": 4},
            )
        )
        first, second = eventually(lambda: listeners(node), 60, "two listeners")
        hit = threading.Event()
        before = [series(f"before {n}") for n in range(6)]
        after = [series(f"after {n}") for n in range(12)]

        def load(studies: list[list[Sent]]) -> list[list[int]]:
            """Gives up soon when nobody answers: it may have met the one that is frozen."""
            return [push(node, *study, ledger=ledger, patience=10) for study in studies]

        def strike() -> None:
            eventually(lambda: len(node.rows(Instance)) >= 10, 60, "load")
            first.send_signal(fault)
            hit.set()

        try:
            in_parallel(lambda: load(before[:3]), lambda: load(before[3:]), strike)
            assert hit.is_set()
            taken = in_parallel(*(lambda part=after[n::3]: load(part) for n in range(3)))
            assert taken == [[[0] * 5] * 4] * 3
            assert not i1(node, ledger.acknowledged)
        finally:
            if first.is_running() and fault == signal.SIGSTOP:
                first.resume()
        assert second.is_running()
        if fault == signal.SIGKILL:
            eventually(lambda: len(listeners(node)) == 2, 30, "the dead one is replaced")
        fresh = series("fresh")  # I6, as far as these processes go
        assert load([fresh]) == [[0] * 5]
        node.closed(fresh[0].study, patience=30)
        assert not i1(node, ledger.acknowledged)


def listeners(node: Running) -> list[psutil.Process]:
    found = node.processes("listen", "--fd")
    return found if len(found) == 2 else []


def series(name: str) -> list[Sent]:
    pixels = dicoms.phantom((128, 128))
    study = uid("shared", name)
    return [slice_of("shared", name, n, study_uid=study, pixels=pixels) for n in range(5)]
