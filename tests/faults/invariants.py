"""The invariants I1 to I6 of a node, asked of its database, its disk, its log and its PACS.

Each function returns what is wrong, a line a fault, so that tests and the soak print all of them;
``assert not i1(...)`` is how a test says it. Nothing here knows how the node came to its state.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.dsutils import split_dataset
from sqlalchemy import select

from dicom_node.domain.job import JobState
from dicom_node.domain.study import StudyState
from dicom_node.services.schedule import reconcile
from dicom_node.store.tables import (
    Base,
    Delivery,
    Instance,
    Job,
    Quarantined,
    Result,
    Revision,
    Study,
)
from tests import dicoms
from tests.arrivals import files_of
from tests.dicoms import uid
from tests.faults.wire import PATIENCE, Gone, Wire, encoded
from tests.node import Running
from tests.servers import eventually

CANARY = "ZEBRA^CANARY"
CANARY_ID = "ZEBRA-4711"
NEEDLE = "ZEBRA"
NAMING = {("studies", "patient_id"), ("instances", "patient_id")}
"""Columns that are meant to hold what identifies a patient."""
UNDER_WAY = {"pending", "sending"}
"""States of a delivery that is not over; whatever else it says counts as an end."""

Problems = list[str]


@dataclass
class Sent:
    """An instance of the canary patient, as a modality has it."""

    sop_class: str
    uid: str
    study: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def sent(ds: Dataset) -> Sent:
    """The same of a data set; it is made the canary's."""
    ds.PatientName, ds.PatientID = CANARY, CANARY_ID
    return Sent(str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.StudyInstanceUID), encoded(ds))


def radiograph(*name: object, **attributes: Any) -> Sent:
    """A small DX image that the tiny model takes, in a study of that name."""
    study = attributes.pop("study_uid", uid(*name, "study"))
    given = {"pixels": dicoms.phantom((64, 64)), "series_uid": uid(study, "series"), **attributes}
    return sent(dicoms.dx_image(study_uid=study, sop_uid=uid(*name), **given))


def slice_of(*name: object, **attributes: Any) -> Sent:
    """A small CT slice in a study of that name."""
    study = attributes.pop("study_uid", uid(*name, "study"))
    given = {"pixels": dicoms.phantom((32, 32)), "series_uid": uid(study, "series"), **attributes}
    return sent(dicoms.ct_slice(study_uid=study, sop_uid=uid(*name), **given))


@dataclass
class Ledger:
    """What a modality believes: which of its instances were acknowledged."""

    acknowledged: dict[str, str] = field(default_factory=dict)

    def note(self, instance: Sent, status: int | None) -> int | None:
        if status == 0:
            self.acknowledged[instance.uid] = instance.sha256
        return status


def push(
    node: Running,
    *instances: Sent,
    port: int = 0,
    ledger: Ledger | None = None,
    patience: float = PATIENCE,
) -> list[int]:
    """Send over one association; the statuses of those that were answered, noted in a ledger."""
    statuses = []
    with suppress(Gone), Wire(port or node.port, patience) as wire:
        assert wire.associate(), f"rejected: {wire.rejection}"
        for instance in instances:
            status = wire.store(instance.sop_class, instance.uid, instance.data)
            statuses.append(status)
            if ledger:
                ledger.note(instance, status)
        wire.release()
    return statuses


# The invariants


def i1(node: Running, acknowledged: Mapping[str, str]) -> Problems:
    """Every acknowledged instance has a row and a file with the sender's bytes."""
    problems = []
    rows = {row.sop_instance_uid: row for row in node.rows(Instance)}
    for instance, digest in acknowledged.items():
        row = rows.get(instance)
        if row is None:
            problems.append(f"I1: {instance} was acknowledged and has no row")
            continue
        found = _digest_of(node.node.instances.path(row.path))
        if found != digest or row.sha256 != digest:
            problems.append(f"I1: {instance} was acknowledged with {digest[:8]}, held is {found}")
    return problems


def _digest_of(path: Path) -> str:
    """SHA-256 of the data set in a Part 10 file; "nothing" where there is no file."""
    try:
        _, start = split_dataset(path)
        return hashlib.sha256(path.read_bytes()[start:]).hexdigest()
    except OSError:
        return "nothing"


def i2(node: Running, *studies: str) -> Problems:
    """One finished job for each model and inputs; all jobs of these studies (or of all) ended well.

    A job that a later revision made needless is cancelled; that is an end too.
    """
    problems = []
    jobs = node.jobs(*studies) if studies else node.rows(Job)
    for job in jobs:
        if job.state not in (JobState.DONE, JobState.CANCELLED):
            problems.append(f"I2: job {job.id} is {job.state}: {job.error}")
    finished = Counter(
        (j.model_id, j.inputs_digest, j.generation) for j in jobs if j.state == JobState.DONE
    )
    problems += [f"I2: {key} finished {n} times" for key, n in finished.items() if n != 1]
    by_job: dict[int, Counter[str]] = defaultdict(Counter)
    wanted = {job.id for job in jobs}
    for result in node.rows(Result):
        if result.job_id in wanted:
            by_job[result.job_id][result.form] += 1
    for job in jobs:
        forms = by_job[job.id]
        if (job.state == JobState.DONE) != bool(forms) or any(n > 1 for n in forms.values()):
            problems.append(f"I2: job {job.id} is {job.state} and has results {dict(forms)}")
    ours = select(Result.sop_instance_uid)
    for row in node.rows(Instance, Instance.counts, Instance.sop_instance_uid.in_(ours)):
        problems.append(f"I2: our own {row.sop_instance_uid} came back and counts as an image")
    return problems


def i3(node: Running, came: Iterable[tuple[str, str]], *studies: str) -> Problems:
    """The PACS has each result, with one hash, and nothing else.

    What it refused for good in one form it has in another: of the first it need not hold anything.

    Args:
        came: SOP Instance UID and SHA-256 of the data set of everything that the PACS was given.
        studies: look at the results of these; of all by default.
    """
    problems = []
    results = node.results(*studies) if studies else node.rows(Result)
    deliveries = node.rows(Delivery)
    states: dict[int, set[str]] = defaultdict(set)
    for delivery in deliveries:
        states[delivery.result_id].add(delivery.state)
    expected = {r.sop_instance_uid: r for r in results if states[r.id] != {"replaced"}}
    every = {r.sop_instance_uid for r in node.rows(Result)}
    hashes: dict[str, set[str]] = defaultdict(set)
    for instance, digest in came:
        hashes[instance].add(digest)
    for instance, result in expected.items():
        file = node.node.results.path(result.path)
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != result.sha256:
            problems.append(f"I3: the file of result {instance} is missing or altered")
        elif hashes.get(instance) != {_digest_of(file)}:
            problems.append(f"I3: {instance} is at the PACS as {hashes.get(instance)}")
    problems += [f"I3: the PACS got {i}, which is no result" for i in hashes.keys() - every]
    ids = {r.id for r in results}
    for delivery in deliveries:
        if delivery.result_id in ids and delivery.state in {*UNDER_WAY, "dead"}:
            problems.append(
                f"I3: delivery {delivery.id} is {delivery.state}: {delivery.last_answer}"
            )
    return problems


def orphans(node: Running) -> set[str]:
    """Stored instances' files that no row names now; `i4` lets the node tidy up before it looks."""
    rows = {row.path for row in node.rows(Instance)} | {row.path for row in node.rows(Quarantined)}
    return set(node.node.instances.names()) - rows


def i4(node: Running, patience: float = 30.0) -> Problems:
    """No orphan files, rows or temporary files.

    Temporary files of the dead are the scheduler's to find, which takes as long as a lease. A file
    without a row is nobody's after an hour only: the node's own reconciliation is run as if all of
    them had been seen an hour ago.
    """
    problems = []
    for folder in (node.node.instances, node.node.results):
        until = time.monotonic() + patience
        while (left := temporary(folder.root)) and time.monotonic() < until:
            time.sleep(0.2)
        problems += [f"I4: temporary file {path.name}" for path in left]
    reconcile(node.node, dict.fromkeys(files_of(node.node), -math.inf))
    named = {
        node.node.instances: {row.path for row in node.rows(Instance)}
        | {row.path for row in node.rows(Quarantined)},
        node.node.results: {row.path for row in node.rows(Result)}
        | {row.prediction for row in node.rows(Job) if row.prediction},
    }
    for folder, rows in named.items():
        present = set(folder.names())
        problems += [f"I4: {folder.root.name}/{name} has no row" for name in present - rows]
        problems += [f"I4: {folder.root.name}/{name} has no file" for name in rows - present]
    with node.node.database.reading() as session:
        empty = session.scalars(select(Study.study_instance_uid).where(~Study.instances.any()))
        problems += [f"I4: study {study} has no instance" for study in empty]
        lost = session.scalars(select(Job.id).where(~Job.inputs.any()))
        problems += [f"I4: job {job} has no input" for job in lost]
    return problems


def temporary(root: Path) -> list[Path]:
    """Files that are being written, or were when their process died."""
    return list((root / "incoming").iterdir())


def i5(node: Running, broker: redis.Redis | None = None, needle: str = NEEDLE) -> Problems:
    """The canary is named nowhere but where it is meant to be.

    That is in images, results, some columns and the audit trail, which has to name patients.
    """
    problems = []
    for path in node.folder.rglob("*.log"):
        if path.is_relative_to(node.node.settings.audit_folder):
            continue
        for line in path.read_text(errors="replace").splitlines():
            if needle in line:
                problems.append(f"I5: {path.name} says {line[:200]}")
                break
    problems += [
        f"I5: a file is named {path}" for path in node.folder.rglob("*") if needle in path.name
    ]
    problems += [
        f"I5: process title {' '.join(process.cmdline())}"
        for process in node.processes()
        if needle in " ".join(process.cmdline())
    ]
    for table in Base.metadata.sorted_tables:
        with node.node.database.reading() as session:
            for row in session.execute(select(table)).mappings():
                for name, value in row.items():
                    if needle in str(value) and (table.name, name) not in NAMING:
                        problems.append(f"I5: {table.name}.{name} names the patient")
    if broker is not None:
        problems += in_broker(broker, needle)
    return sorted(set(problems))


def in_broker(broker: redis.Redis, needle: str = NEEDLE) -> Problems:
    """The part of `i5` that is gone after a FLUSHALL."""
    return [
        f"I5: Redis names the patient in {key!r}"
        for key in broker.scan_iter()
        if needle.encode() in key + (broker.dump(key) or b"")
    ]


def i6(node: Running, usual: float, patience: float = 60.0, *name: object) -> Problems:
    """A fresh radiograph goes through, and takes no longer than is usual."""
    fresh = radiograph("fresh", *(name or (time.monotonic_ns(),)))
    started = time.monotonic()
    statuses = push(node, fresh)
    if statuses != [0]:
        return [f"I6: a fresh study is answered {statuses}"]
    try:
        over(node, fresh.study, patience=patience)
    except BaseException as error:  # pytest's failure is none of Exception
        return [f"I6: a fresh study does not go through: {error}"]
    took = time.monotonic() - started
    return [] if took <= usual else [f"I6: a fresh study took {took:.1f} s, usual are {usual:g} s"]


# Until it is over


def over(node: Running, *studies: str, patience: float = 120.0) -> None:
    """Until the studies (or all of them) are closed, their jobs ended, their results delivered."""
    eventually(lambda: not under_way(node, *studies), patience, f"over: {studies[:3] or 'all'}")


def under_way(node: Running, *studies: str) -> Problems:
    """What still moves, or waits to."""
    with node.node.database.reading() as session:
        found = session.execute(select(Study.study_instance_uid, Study.state)).all()
        states = {study: state for study, state in found if not studies or study in studies}
        moving = [
            f"study {s} is {state}" for s, state in states.items() if state == StudyState.OPEN
        ]
        moving += [f"study {study} is not there" for study in set(studies) - states.keys()]
        # As columns: rows of a thousand studies take seconds to be made.
        jobs = select(Job.id, Job.state).where(Job.state.in_((JobState.READY, JobState.RUNNING)))
        waiting = (
            select(Delivery.id, Delivery.state)
            .join(Result)
            .join(Job)
            .where(Delivery.state.in_(UNDER_WAY))
        )
        if studies:
            of = select(Revision.id).join(Study).where(Study.study_instance_uid.in_(studies))
            jobs = jobs.where(Job.revision_id.in_(of))
            waiting = waiting.where(Job.revision_id.in_(of))
        moving += [f"job {number} is {state}" for number, state in session.execute(jobs)]
        moving += [f"delivery {n} is {state}" for n, state in session.execute(waiting)]
    return moving


def held_hashes(folder: Path) -> list[tuple[str, str]]:
    """What a folder or a PACS's storage holds, as `i3` asks for it."""
    files = [path for path in folder.rglob("*.dcm") if path.is_file()]
    return [(str(dcmread(io.BytesIO(p.read_bytes())).SOPInstanceUID), _digest_of(p)) for p in files]


def memory(process: psutil.Process) -> int:
    """Bytes that a process holds."""
    return int(process.memory_info().rss)
