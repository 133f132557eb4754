"""Owns a job's run: claim (T3), read, predict, build, store (T4); refuses to know torch.

No transaction is open while a model runs. A job that kills its worker was counted before it ran;
one whose lease was lost finds its token stale and stores nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from pydicom import dcmread
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

from dicom_node.domain.job import JobState
from dicom_node.domain.study import StudyState
from dicom_node.errors import ResultError, Unavailable
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import (
    BuildContext,
    BuiltObject,
    ModelIdentity,
    ReferencedSOP,
    Source,
)
from dicom_node.services import claims
from dicom_node.services.alerts import alert_once, fault
from dicom_node.services.context import Node
from dicom_node.services.deliver import queue_deliveries
from dicom_node.services.processes import beating
from dicom_node.store.database import CommitUnknown
from dicom_node.store.files import Stored
from dicom_node.store.tables import Job, JobInput, Result, Revision, Study
from inference.errors import BundleError, ReadingError
from inference.reading import read_files
from inference.types import FrameRef, ImageStack, Prediction

PATIENCE = timedelta(seconds=60)
"""How long a job waits that could not be run for want of its model or of space."""

log = structlog.get_logger(__name__)


class Engines(Protocol):
    """Warm models: what the worker lends to this service."""

    def predict(self, digest: str, stacks: Sequence[ImageStack]) -> list[Prediction]:
        """Run the model with this bundle digest on each stack."""
        ...


@dataclass(frozen=True)
class Claimed:
    """A job that is ours, with all that its run needs, loaded."""

    row: Job
    files: tuple[Path, ...]
    digests: tuple[str, ...]


def run_jobs(node: Node, engines: Engines, queues: Sequence[str]) -> int:
    """Claim the most urgent ready job and up to a batch of its kind, and run them.

    Returns:
        How many jobs were claimed; 0 when nothing was ready.
    """
    claimed = _claim(node, queues)
    if not claimed:
        return 0
    every = node.settings.worker.lease / 4
    with beating(lambda: claims.beat(node, [c.row for c in claimed]), every):
        readable = []
        for job in claimed:
            try:
                readable.append((job, read_files(job.files)))
            except ReadingError as error:
                # The input will not get better: the report says why nothing was analysed.
                _finish(node, job, Prediction(not_analysed=_sentence(error)), ())
            except MemoryError:
                _fail(node, job, "out of memory while reading")
        _predict(node, engines, readable)
    return len(claimed)


def _predict(node: Node, engines: Engines, readable: Sequence[tuple[Claimed, ImageStack]]) -> None:
    """Run a batch; when it fails, each job alone, so that one cannot take the others with it."""
    if not readable:
        return
    digest = readable[0][0].row.model.digest
    try:
        predictions = engines.predict(digest, [stack for _, stack in readable])
    except BundleError as error:
        for job, _ in readable:
            name = job.row.model.name
            _wait(node, job, "model not loadable", name, f"the model cannot be loaded: {error}")
        return
    except Exception as error:  # whatever a network makes of an odd stack: it is that stack's fault
        if len(readable) > 1:
            for one in readable:
                _predict(node, engines, [one])
        else:
            _fail(node, readable[0][0], f"{type(error).__name__}: {_first_line(error)}")
        return
    for (job, stack), prediction in zip(readable, predictions, strict=True):
        _finish(node, job, prediction, stack.frames)


def _claim(node: Node, queues: Sequence[str]) -> list[Claimed]:
    now = node.now()
    ready = (
        select(Job)
        .join(Revision)
        .join(Study)
        .where(
            Job.state == JobState.READY,
            Job.queue.in_(queues),
            or_(Job.not_before.is_(None), Job.not_before <= now),
            Study.state != StudyState.HELD,
        )
        .order_by(Job.due_at, Job.id)
        .options(
            selectinload(Job.model),
            selectinload(Job.inputs).selectinload(JobInput.instance),
            selectinload(Job.revision).selectinload(Revision.study),
        )
    )
    if node.database.is_postgresql:
        ready = ready.with_for_update(skip_locked=True, of=Job)
    with node.database.transaction() as session:
        first = session.scalars(ready.limit(1)).first()
        if first is None:
            return []
        rows = [first]
        if first.model.manifest["select"]["unit"] == "image":
            same = ready.where(Job.model_id == first.model_id, Job.id != first.id)
            rows += session.scalars(same.limit(node.settings.worker.batch - 1)).all()
        return [
            Claimed(
                row,
                tuple(node.instances.path(i.instance.path) for i in row.inputs),
                tuple(i.instance.sha256 for i in row.inputs),
            )
            for row in rows
            if claims.claim(
                session, node, row, JobState.READY, JobState.RUNNING, started_at=now, error=""
            )
        ]


def _finish(node: Node, job: Claimed, prediction: Prediction, frames: tuple[FrameRef, ...]) -> None:
    """Build the objects once, make them durable, then T4."""
    stored: list[tuple[BuiltObject, Stored]] = []
    try:
        for built in _build(node, job, prediction, frames):
            stored.append((built, node.results.write(".dcm", b"", encode(built.dataset))))
    except Unavailable as error:  # a full disk is no fault of the job
        _discard(node, stored)
        _wait(node, job, "results not kept", "results", str(error))
        return
    except Exception as error:  # what libraries raise on headers that they do not expect
        _discard(node, stored)
        _fail(node, job, str(error) if isinstance(error, ResultError) else fault(error))
        return
    try:
        with node.database.transaction() as session:
            done = claims.still_ours(
                session,
                job.row,
                JobState.RUNNING,
                state=JobState.DONE,
                finished_at=node.now(),
                owner=None,
                summary=summarise(prediction),
            )
            if done:
                _store_rows(session, node, job.row.id, stored)
    except CommitUnknown:
        raise  # the rows may exist: the files stay, reconciliation removes them if they do not
    except BaseException:
        _discard(node, stored)  # the rollback is certain
        raise
    if not done:
        _discard(node, stored)
        log.warning("stale lease: result discarded", job=job.row.id, token=job.row.token)
        return
    log.info(
        "job done",
        job=job.row.id,
        model=job.row.model.name,
        objects=[built.kind for built, _ in stored],
        not_analysed=prediction.not_analysed is not None,
        seconds=(node.now() - (job.row.started_at or node.now())).total_seconds(),
    )


def _build(
    node: Node, job: Claimed, prediction: Prediction, frames: tuple[FrameRef, ...]
) -> tuple[BuiltObject, ...]:
    headers = tuple(dcmread(path, stop_before_pixels=True) for path in job.files)
    source = Source(headers, job.digests, frames)
    return build_results(prediction, source, model_identity(job.row), _context(node, job.row))


def _store_rows(
    session: Session, node: Node, job_id: int, stored: Sequence[tuple[BuiltObject, Stored]]
) -> None:
    job = session.get_one(Job, job_id)
    for position, (built, file) in enumerate(stored):
        job.results.append(
            Result(
                position=position,
                kind=built.kind,
                sop_class_uid=built.sop_class_uid,
                sop_instance_uid=built.sop_instance_uid,
                series_instance_uid=built.series_instance_uid,
                transfer_syntax=str(built.dataset.file_meta.TransferSyntaxUID),
                path=file.name,
                sha256=file.sha256,
                size=file.size,
                created_at=node.now(),
            )
        )
    session.flush()
    queue_deliveries(session, job, node.now())


def model_identity(job: Job) -> ModelIdentity:
    """What the objects say of the model; thresholds are its parameters (TID 4019)."""
    manifest = job.model.manifest
    return ModelIdentity(
        name=job.model.name,
        version=job.model.version,
        title=manifest["title"],
        manufacturer=manifest["manufacturer"],
        bundle_digest=job.model.digest,
        research_only=manifest["research_only"],
        parameters={
            f"threshold {label['label']}": f"{label['threshold']:g}" for label in manifest["labels"]
        },
    )


def _context(node: Node, job: Job) -> BuildContext:
    revision = job.revision
    incomplete = None if revision.complete else revision.evidence
    return BuildContext(
        node_salt=node.settings.node_salt,
        job_created_at=job.created_at,
        generation=job.generation,
        predecessor=_predecessor(node, job),
        incomplete_reason=incomplete,
    )


def _predecessor(node: Node, job: Job) -> ReferencedSOP | None:
    """The report that this one supersedes, where one was made."""
    if job.predecessor_id is None:
        return None
    with node.database.reading() as session:
        sr = session.scalar(
            select(Result).where(Result.job_id == job.predecessor_id, Result.kind == "sr")
        )
    if sr is None:
        return None
    return ReferencedSOP(
        sop_class_uid=sr.sop_class_uid,
        sop_instance_uid=sr.sop_instance_uid,
        series_instance_uid=sr.series_instance_uid,
        study_instance_uid=job.revision.study.study_instance_uid,
    )


def summarise(prediction: Prediction) -> dict[str, Any]:
    """What was found, in words and numbers, for the command; no pixels."""
    return {
        "not_analysed": prediction.not_analysed,
        "segments": [
            {
                "label": segment.label,
                "found": not segment.empty,
                "colour": list(segment.colour),
                "measurements": [
                    {"name": m.name.meaning, "value": m.value, "unit": m.unit.meaning}
                    for m in segment.measurements
                ],
            }
            for segment in prediction.segments
        ],
        "findings": [
            {
                "label": finding.label,
                "present": finding.present,
                "probability": finding.probability,
                "severity": finding.severity.meaning if finding.severity else None,
            }
            for finding in prediction.findings
        ],
        "notes": list(prediction.notes),
        "timings": prediction.timings,
    }


def _wait(node: Node, job: Claimed, kind: str, subject: str, reason: str) -> None:
    """What is no fault of the job is not counted: it waits, and an administrator is told."""
    with node.database.transaction() as session:
        ours = claims.still_ours(
            session,
            job.row,
            JobState.RUNNING,
            state=JobState.READY,
            owner=None,
            attempts=job.row.attempts - 1,
            not_before=node.now() + PATIENCE,
            error=reason,
        )
        if ours:
            alert_once(session, node.now(), kind, subject, reason)
    log.error(kind, job=job.row.id, model=job.row.model.name, reason=reason)


def _fail(node: Node, job: Claimed, reason: str) -> None:
    """Try again, or give up when its attempts are used up."""
    last = job.row.attempts >= node.settings.worker.attempts
    state = JobState.DEAD if last else JobState.READY
    with node.database.transaction() as session:
        ours = claims.still_ours(
            session,
            job.row,
            JobState.RUNNING,
            state=state,
            owner=None,
            error=reason,
            finished_at=node.now() if last else None,
        )
        if ours and last:
            text = f"given up after {job.row.attempts} attempts: {reason}"
            alert_once(session, node.now(), "job dead", f"job {job.row.id}", text)
    log.error("job failed", job=job.row.id, attempt=job.row.attempts, reason=reason, dead=last)


def _discard(node: Node, stored: Sequence[tuple[BuiltObject, Stored]]) -> None:
    for _, file in stored:
        node.results.remove(file.name)


def _sentence(error: ReadingError) -> str:
    return f"the images cannot be read: {error.reason}"


def _first_line(error: BaseException) -> str:
    """Of a message, cut short: libraries put values into the rest."""
    return (str(error).splitlines() or [""])[0][:200]
