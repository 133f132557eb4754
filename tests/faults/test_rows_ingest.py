"""Rows 1 to 9 of the matrix: what was acknowledged is there, whatever happened meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

import dicom_node
from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.faults import STEPS
from dicom_node.services import registry
from dicom_node.services.receive import part10_head
from dicom_node.store.tables import Alert, Association, Instance, Job, Model, Quarantined
from tests import dicoms
from tests.dicoms import uid
from tests.faults.invariants import (
    Ledger,
    Sent,
    i1,
    i4,
    i5,
    orphans,
    push,
    radiograph,
    slice_of,
    temporary,
)
from tests.faults.proxy import Cut, Deaf, Pass, Proxy, Word
from tests.faults.wire import Gone, Wire, p_data, store_rq
from tests.node import Running, in_parallel, rule, running, statuses, store
from tests.servers import eventually, free_port, lacking, need, postgresql

INGEST = [step for step in STEPS if step.startswith(("instances/", "receive/"))]
EVERYDAY = ["instances/renamed", "receive/commit", "receive/committed"]
LEASE = 2.0
SHIPPED = "bundles/cxr-lungs/manifest.json"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node that takes studies and plans jobs, which nobody runs."""
    with running(
        tmp_path_factory.mktemp("ward"),
        roles=["listen", "scheduler"],
        prepare=_enter_a_model,
        listener={"maximum_associations": 128, "maximum_connections_per_address": 128},
        worker={"lease": LEASE},
        broker={"url": "redis://127.0.0.1:1/0", "socket_timeout": 0.2},
    ) as node:
        yield node


def _enter_a_model(node: Running) -> None:
    """A shipped one for radiographs, without the check that takes torch: nobody will run it."""
    manifest = json.loads((Path(dicom_node.__file__).parent / SHIPPED).read_text())
    with node.node.database.transaction() as session:
        session.add(
            Model(
                name=manifest["name"],
                version=manifest["version"],
                state=ModelState.ACTIVE,
                digest="0" * 64,
                manifest=manifest,
                added_at=node.node.now(),
            )
        )
    registry.add_destination(node.node, "out", "folder", {"path": "/nowhere"})
    rules = parse_rules({"rule": [rule("all", [manifest["name"]], ["out"])]})
    registry.apply_rules(node.node, rules)


def restart(node: Running, role: str, number: int = signal.SIGTERM) -> None:
    if role in node.children:
        node.stop(role, number)
    node.start(role)
    node.ready()


def file_of(instance: Sent, path: Path) -> Path:
    """As a Part 10 file, for DCMTK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = part10_head(instance.sop_class, instance.uid, "1.2.840.10008.1.2.1")
    path.write_bytes(head + instance.data)
    return path


# 1


@pytest.mark.parametrize(
    "steps",
    [EVERYDAY, pytest.param([s for s in INGEST if s not in EVERYDAY], marks=pytest.mark.slow)],
    ids=["three", "the others"],
)
def test_row_01_what_was_acknowledged_survives_a_kill_at_each_step(
    tmp_path: Path, steps: list[str]
) -> None:
    """The second of three instances meets the fault; the node is started again by the next turn."""
    ledger, answered = Ledger(), {}
    with running(tmp_path / "node", roles=["listen", "scheduler"], worker={"lease": LEASE}) as node:
        for step in steps:
            node.faults = {"FAULT_TESTING": "yes", "FAULT": f"{step}:2:kill"}
            if "listen" in node.children:
                node.stop("listen")
            listener = node.start("listen")
            node.ready()
            three = [slice_of("row 1", step, n) for n in range(3)]
            answered[step] = push(node, *three, ledger=ledger)
            assert listener.wait(10) == -signal.SIGKILL, step
            del node.children["listen"]
        node.faults = {}
        restart(node, "listen")
        assert answered == {step: [0] for step in steps}
        assert not i1(node, ledger.acknowledged)
        again = [slice_of("row 1", step, n) for step in steps for n in range(3)]
        assert push(node, *again, ledger=ledger) == [0] * len(again)
        assert not i1(node, ledger.acknowledged)
        assert len(node.rows(Instance)) == len(again)
        assert not i4(node)
        assert not i5(node)


# 2


@contextmanager
def traced(process: psutil.Process, output: Path, *options: str) -> Iterator[None]:
    """strace of all its threads while the block runs; skips where the system forbids it."""
    strace = subprocess.Popen(
        [
            need("strace"),
            "-f",
            "-yy",
            "-s",
            "0",
            "-o",
            str(output),
            *options,
            "-p",
            str(process.pid),
        ],
        stderr=subprocess.PIPE,
    )
    assert strace.stderr
    first = strace.stderr.readline()
    if b"attached" not in first:
        strace.kill()
        lacking(f"strace may not attach: {first.decode().strip()}")
    threading.Thread(target=strace.stderr.read, daemon=True).start()
    try:
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)


def listener_of(node: Running) -> psutil.Process:
    """The process that serves associations."""
    (found,) = [p for p in node.processes("listen") if not p.children()]
    return found


_CALL = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")


def calls(output: Path) -> list[tuple[str, str]]:
    """The system calls of a trace as ("begins" or "ends", name and arguments), in order."""
    found, begun = [], {}
    for line in output.read_text().splitlines():
        if not (match := _CALL.match(line)):
            continue
        thread, resumed, name, rest = match.groups()
        if resumed:
            found.append(("ends", begun.pop(thread, resumed)))
        elif rest.endswith("<unfinished ...>"):
            begun[thread] = f"{name}({rest}"
            found.append(("begins", begun[thread]))
        else:
            found += [("begins", f"{name}({rest}"), ("ends", f"{name}({rest}")]
    return found


@pytest.mark.sqlite
def test_row_02_file_directory_and_row_are_on_disk_before_the_answer_is_sent(
    ward: Running, tmp_path: Path
) -> None:
    instance, output = slice_of("row 2"), tmp_path / "trace"
    names = "trace=openat,fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,pwrite64"
    with Wire(ward.port) as wire:
        assert wire.associate()
        with traced(listener_of(ward), output, "-e", names):
            assert wire.store(instance.sop_class, instance.uid, instance.data) == 0
        wire.release()
    (row,) = ward.rows(Instance, Instance.sop_instance_uid == instance.uid)
    final = str(ward.node.instances.path(row.path))
    folder = str(Path(final).parent)

    seen = calls(output)

    def place(when: str, *words: str, after: int = -1) -> int:
        """Where in the trace a call that names all the words begins or ends."""
        return next(
            (
                n
                for n, (at, call) in enumerate(seen)
                if n > after and at == when and all(word in call for word in words)
            ),
            len(seen) + after + 1,
        )

    steps = [
        place("begins", "openat(", "/incoming/"),
        place("ends", "fsync(", "/incoming/"),
        place("begins", "rename", final),
        place("ends", "fsync(", f"<{folder}>"),
    ]
    steps.append(place("begins", "sync(", "node.sqlite", after=steps[-1]))
    steps.append(place("ends", "sync(", "node.sqlite", after=steps[-2]))
    steps.append(place("begins", "send", f":{ward.port}->", after=steps[-1]))
    told = "\n".join(f"{at} {call}" for at, call in seen)
    assert steps == sorted(steps) and steps[-1] < len(seen), f"{steps}\n{told}"
    early = place("begins", "send", f":{ward.port}->", after=steps[0])
    assert early == steps[-1], f"something was sent before the row was on disk:\n{told}"


# 3 and 4


@pytest.mark.parametrize("which", ["file", "directory"])
def test_row_03_an_fsync_that_fails_is_answered_0xa700_and_never_trusted(
    ward: Running, tmp_path: Path, which: str
) -> None:
    """A second fsync after a failed one says yes and means nothing: the bytes may be gone."""
    bad, good, output = slice_of("row 3", which), slice_of("row 3 good", which), tmp_path / "trace"
    ledger, turn = Ledger(), {"file": 1, "directory": 2}[which]
    with Wire(ward.port) as wire:
        assert wire.associate()
        inject = ("-e", "trace=fsync,rename", "-e", f"inject=fsync:error=EIO:when={turn}")
        with traced(listener_of(ward), output, *inject):
            status = wire.store(bad.sop_class, bad.uid, bad.data)
        assert status == 0xA700
        (failed,) = [line for line in output.read_text().splitlines() if "EIO" in line]
        assert ("/incoming/" in failed) == (which == "file")
        named = "rename(" in output.read_text()
        assert named == (which == "directory"), "a file that was not synced got its name"
        assert ward.rows(Instance, Instance.sop_instance_uid == bad.uid) == []
        assert not orphans(ward)
        for instance in (good, bad):  # the association lives on, and the same is taken now
            ledger.note(instance, wire.store(instance.sop_class, instance.uid, instance.data))
        wire.release()
    assert len(ledger.acknowledged) == 2
    assert ward.logged("instance not stored", status="0xA700", sop_instance_uid=bad.uid)
    assert not i1(ward, ledger.acknowledged)
    assert not i4(ward)


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        lacking(f"no file system may be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def on_disk(folder: Path, disk: Path, reserve_mb: int) -> Iterator[tuple[Running, Wire]]:
    """A node that keeps its files there, and an association with it."""
    with (
        running(
            folder,
            roles=["listen"],
            storage={"folder": str(disk), "database": f"sqlite:///{folder}/node.sqlite"},
            listener={"port": free_port(), "reserve_mb": reserve_mb},
        ) as node,
        Wire(node.port) as wire,
    ):
        assert wire.associate()
        yield node, wire


def test_row_04_a_full_disk_is_answered_0xa700_and_the_association_lives_on(
    tmp_path: Path,
) -> None:
    """Filled by somebody else and emptied again."""
    large = dicoms.phantom((96, 96))
    ledger, images = Ledger(), [slice_of("row 4", n, pixels=large) for n in range(3)]
    with (
        small_disk(tmp_path / "small", 2) as small,
        on_disk(tmp_path / "node", small, reserve_mb=0) as (node, wire),
    ):

        def send(instance: Sent) -> int | None:
            status = wire.store(instance.sop_class, instance.uid, instance.data)
            return ledger.note(instance, status)

        assert send(images[0]) == 0
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
            while True:
                file.write(b"x" * 4096)
        os.truncate(ballast, ballast.stat().st_size - 4096)  # room for half of an image
        assert send(images[1]) == 0xA700
        assert node.logged("instance not stored", status="0xA700", error="OutOfSpace")
        assert temporary(small / "instances") == []
        ballast.unlink()
        assert [send(images[1]), send(images[2])] == [0, 0]
        wire.release()
        assert not i1(node, ledger.acknowledged)
        assert not i4(node)


def test_row_04_the_reserve_is_left_alone_by_what_is_larger_than_what_is_free(
    tmp_path: Path,
) -> None:
    """Of 32 MiB, 8 in reserve: one object of 28 is too much, and so are two of 16 at once."""
    ledger, small_one = Ledger(), slice_of("row 4 small")
    sizes = {"whole": (2048, 7168), "one": (2048, 4096), "other": (2048, 4096)}
    whole, *two = (slice_of("row 4", name, pixels=dicoms.phantom(s)) for name, s in sizes.items())
    with (
        small_disk(tmp_path / "small", 32) as small,
        on_disk(tmp_path / "node", small, reserve_mb=8) as (node, wire),
    ):
        assert wire.store(whole.sop_class, whole.uid, whole.data) == 0xA700
        assert node.logged("instance not stored", status="0xA700", error="OutOfSpace")
        assert temporary(small / "instances") == []
        assert sorted(in_parallel(*(lambda i=i: push(node, i, ledger=ledger) for i in two)))[1] == [
            0xA700
        ]
        assert shutil.disk_usage(small).free >= 8 << 20
        status = wire.store(small_one.sop_class, small_one.uid, small_one.data)
        assert ledger.note(small_one, status) == 0, "what is small goes in"
        wire.release()
        assert not i1(node, ledger.acknowledged)
        assert not i4(node)


# 5


@pytest.mark.sqlite
def test_row_05_a_full_database_is_answered_0xa700_and_the_file_goes(
    ward: Running, tmp_path: Path
) -> None:
    """SQLite's own writes (pwrite64) find no space; nothing that is ours uses that call."""
    instance, ledger = slice_of("row 5 full"), Ledger()
    with Wire(ward.port) as wire:
        assert wire.associate()
        inject = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC")
        with traced(listener_of(ward), tmp_path / "trace", *inject):
            assert wire.store(instance.sop_class, instance.uid, instance.data) == 0xA700
        assert ward.rows(Instance, Instance.sop_instance_uid == instance.uid) == []
        assert not orphans(ward)
        status = wire.store(instance.sop_class, instance.uid, instance.data)
        assert ledger.note(instance, status) == 0
        wire.release()
    assert not i1(ward, ledger.acknowledged)
    assert not i4(ward)


@pytest.mark.sqlite
def test_row_05_a_row_that_the_disk_did_not_confirm_finds_its_file_after_a_crash(
    tmp_path: Path,
) -> None:
    """SQLite rolls back where the log cannot be synced; what stands in it comes back all the same
    where nobody writes over it before the crash."""
    instance, ledger = slice_of("row 5 sync"), Ledger()
    with running(tmp_path / "node", roles=["listen"]) as node:
        with Wire(node.port) as wire:
            assert wire.associate()
            inject = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO")
            with traced(listener_of(node), tmp_path / "trace", *inject):
                assert wire.store(instance.sop_class, instance.uid, instance.data) == 0xA700
                node.node.database.engine.dispose()  # the last who has it open, but the listener
                node.stop("listen", signal.SIGKILL)
        (row,) = node.rows(Instance, Instance.sop_instance_uid == instance.uid)
        assert node.node.instances.path(row.path).is_file(), "the file must wait"
        node.start("listen")
        node.ready()
        assert push(node, instance, ledger=ledger) == [0]
        assert not i1(node, ledger.acknowledged)
        assert len(list(node.node.instances.names())) == 1


@pytest.mark.slow
@pytest.mark.sqlite
def test_row_05_a_locked_database_is_answered_0xa700_and_loses_nothing(ward: Running) -> None:
    """Another process holds SQLite's lock for longer than a writer waits, and than the sender."""
    instance, ledger = slice_of("row 5 locked"), Ledger()
    path = ward.node.settings.database_url.removeprefix("sqlite:///")
    with Wire(ward.port) as wire:
        assert wire.associate()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert wire.store(instance.sop_class, instance.uid, instance.data) == 0xA700
            wire.release()
            eventually(lambda: ward.logged("association not closed yet"), 30)
            other.execute("ROLLBACK")
    assert push(ward, instance, ledger=ledger) == [0]
    assert not i1(ward, ledger.acknowledged)
    ward.closed(instance.study, patience=30)  # which an association left open would hold up
    eventually(lambda: not ward.rows(Association, Association.closed_at.is_(None)), 10)
    assert not i4(ward)


@pytest.mark.parametrize("delivered", [True, False], ids=["committed", "not committed"])
def test_row_05_the_file_stays_while_the_outcome_of_the_commit_is_unknown(
    tmp_path: Path, delivered: bool
) -> None:
    """PostgreSQL is cut off in a COMMIT, once before and once after it took effect."""
    instance, ledger = slice_of("row 5 unknown", delivered), Ledger()
    with postgresql(tmp_path) as server:
        name = server.new_database().partition("?")[0].rpartition("/")[2]
        with Proxy(f"{server.folder}/.s.PGSQL.5432") as proxy:
            url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable"
            with (
                running(tmp_path / "node", roles=["listen"], storage={"database": url}) as node,
                Wire(node.port) as wire,
            ):
                assert wire.associate()
                proxy.fault = Word(b"COMMIT", delivered)
                proxy.cut_existing()
                first = wire.store(instance.sop_class, instance.uid, instance.data)
                assert first == 0xA700
                assert proxy.hits
                proxy.fault = Pass()
                proxy.cut_existing()
                rows = node.rows(Instance, Instance.sop_instance_uid == instance.uid)
                assert len(rows) == delivered
                assert len(list(node.node.instances.names())) == 1, "the file must wait"
                second = wire.store(instance.sop_class, instance.uid, instance.data)
                assert ledger.note(instance, second) == 0
                wire.release()
                assert not i1(node, ledger.acknowledged)
                assert not i4(node)
                assert len(node.rows(Instance)) == 1
                assert len(list(node.node.instances.names())) == 1


# 6 and 7


def test_row_06_a_peer_that_aborts_inside_a_c_store_leaves_nothing(ward: Running) -> None:
    """By A-ABORT between two fragments, by closing, and by a network that cuts."""
    before = {row.sop_instance_uid for row in ward.rows(Instance)}
    instance = slice_of("row 6")
    for ending in ("abort", "close"):
        with Wire(ward.port) as wire:
            assert wire.associate()
            context = wire.context(instance.sop_class)
            command = store_rq(instance.sop_class, instance.uid)
            wire.send(p_data(context, command, command=True))
            wire.send(p_data(context, instance.data[:900], command=False, last=False))
            if ending == "abort":
                wire.abort()
    with Proxy(("127.0.0.1", ward.port)) as proxy:
        for after in (100, 700, 1500, 2000):
            for reset in (False, True):
                proxy.fault = Cut(after, reset)
                with pytest.raises(Gone), Wire(proxy.port) as wire:
                    assert wire.associate()
                    wire.store(instance.sop_class, instance.uid, instance.data)
        assert proxy.hits == 8
    eventually(lambda: not temporary(ward.node.instances.root), 10, "temporary files go")
    assert {row.sop_instance_uid for row in ward.rows(Instance)} == before
    assert not i4(ward)


def test_row_07_a_sender_lost_before_the_answer_finds_its_instance_stored_once(
    ward: Running, tmp_path: Path
) -> None:
    """DCMTK behind a network that loses answers; then it sends again, as modalities do."""
    image, ledger = radiograph("row 7"), Ledger()
    path = file_of(image, tmp_path / "image.dcm")
    with Proxy(("127.0.0.1", ward.port), Deaf(1)) as proxy:
        assert statuses(store(proxy.port, [path])) == []
        assert proxy.hits == 1
    eventually(lambda: ward.rows(Instance, Instance.sop_instance_uid == image.uid), 10)
    assert ward.send([path]) == [0]
    ledger.note(image, 0)
    assert len(ward.rows(Instance, Instance.sop_instance_uid == image.uid)) == 1
    assert not i1(ward, ledger.acknowledged)
    ward.closed(image.study, patience=30)
    assert len(ward.jobs(image.study)) == 1
    assert not i4(ward)


# 8 and 9


def test_row_08_an_instance_a_hundred_times_at_once_is_one_row_and_one_job(ward: Running) -> None:
    image, ledger = radiograph("row 8"), Ledger()
    gate = threading.Barrier(100)

    def one() -> int:
        with Wire(ward.port) as wire:
            assert wire.associate()
            gate.wait(60)
            status = wire.store(image.sop_class, image.uid, image.data)
            wire.release()
            return status

    assert in_parallel(*[one] * 100) == [0] * 100
    ledger.note(image, 0)
    assert len(ward.rows(Instance, Instance.sop_instance_uid == image.uid)) == 1
    ward.closed(image.study, patience=30)
    time.sleep(1)  # for a second revision, if there was to be one
    assert len(ward.jobs(image.study)) == 1
    assert not i1(ward, ledger.acknowledged)
    assert not i4(ward)


def test_row_09_the_same_uid_with_other_content_goes_to_quarantine(ward: Running) -> None:
    first = slice_of("row 9")
    other = slice_of("row 9", pixels=dicoms.phantom((32, 32), seed=9))
    assert first.uid == other.uid and first.data != other.data
    ledger = Ledger()
    assert push(ward, first, ledger=ledger) == [0]
    assert push(ward, other, other, first) == [0xC003, 0xC003, 0]
    assert not i1(ward, ledger.acknowledged), "the original is no longer what it was"
    (row,) = ward.rows(Instance, Instance.sop_instance_uid == first.uid)
    (kept,) = ward.rows(Quarantined, Quarantined.instance_id == row.id)
    assert kept.sha256 == other.sha256
    assert ward.node.instances.path(kept.path).is_file()
    (alert,) = ward.rows(Alert, Alert.subject == first.uid)
    assert alert.kind == "conflicting instance"
    assert not i4(ward)


def test_the_rows_above_named_no_patient_and_made_one_job_a_study(ward: Running) -> None:
    """I5 over all of them; runs last in this file."""
    assert not i5(ward)
    jobs = ward.rows(Job)
    assert len({(j.model_id, j.inputs_digest, j.generation) for j in jobs}) == len(jobs)
    assert uid("row 8") in {row.sop_instance_uid for row in ward.rows(Instance)}
