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
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from dicom_node import faults
from dicom_node.domain.job import JobState
from dicom_node.domain.profile import DEFAULT, Encoding, Layout, Profile
from dicom_node.domain.study import StudyState
from dicom_node.errors import ResultError, Unavailable
from dicom_node.services import claims, forms
from dicom_node.services.alerts import alert_once, fault, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.jobs import PATIENCE, is_ready
from dicom_node.services.predictions import Told, keep, new_context
from dicom_node.store.database import CommitUnknown
from dicom_node.store.files import Stored
from dicom_node.store.tables import Job, JobInput, Revision, Study
from inference.errors import BundleError, ReadingError
from inference.reading import read_files
from inference.types import ImageStack, Prediction

PURGED, UNLOADABLE, NOT_KEPT = "images purged", "model not loadable", "results not kept"
"""Kinds of the alerts on what jobs wait for; the next that is done shows that it is over."""
SOON = timedelta(seconds=5)
"""How long one waits whose database was away amid its run."""

log = structlog.get_logger(__name__)


class Engines(Protocol):
    """Warm models: what the worker lends to this service."""

    def predict(
        self, digest: str, stacks: Sequence[ImageStack], keep_probability: bool = False
    ) -> list[Prediction]:
        """Run the model with this bundle digest on each stack."""
        ...


@dataclass(frozen=True)
class Claimed:
    """A job that is ours, with all that its run needs, loaded."""

    row: Job
    files: tuple[Path, ...]
    profiles: dict[str, Profile]  # of its destinations, by name


def run_jobs(node: Node, engines: Engines, queues: Sequence[str]) -> int:
    """Claim the most urgent ready job and up to a batch of its kind, and run them.

    Returns:
        How many jobs were claimed; 0 when nothing was ready.
    """
    claimed = _claim(node, queues)
    if not claimed:
        return 0
    faults.step("claimed", "job")
    readable = []
    for job in claimed:
        if any(i.instance.purging_at for i in job.row.inputs):
            text = "its images were purged; it runs when the study was sent again"
            _wait(node, job, PURGED, f"job {job.row.id}", text)
            continue
        try:
            readable.append((job, read_files(job.files)))
        except ReadingError as error:
            # The input will not get better: the report says why nothing was analysed.
            _finish(node, job, Prediction(not_analysed=_sentence(error)))
        except MemoryError:
            _fail(node, job.row, "out of memory while reading")
    _predict(node, engines, readable)
    return len(claimed)


def break_off(node: Node, reason: str, counts: bool = True) -> int:
    """Fail the jobs that were claimed in this process's name: whoever ran them is gone.

    Of several that ran together nobody knows whose fault it was: each gets another attempt, alone.

    Args:
        node: in whose name.
        reason: in words.
        counts: an attempt; not where it was no fault of theirs: then they wait a little.

    Returns:
        How many there were.
    """
    held = select(Job).where(Job.state == JobState.RUNNING, Job.owner == node.id)
    with node.database.reading() as session:
        rows = session.scalars(held).all()
    for row in rows:
        if counts:
            _fail(node, row, reason, alone=len(rows) == 1)
        else:
            with node.database.transaction() as session:
                _let_wait(session, node, row, reason, SOON)
    if rows:
        node.results.sweep_own()
    return len(rows)


def _predict(node: Node, engines: Engines, readable: Sequence[tuple[Claimed, ImageStack]]) -> None:
    """Run a batch; when it fails, each job alone, so that one cannot take the others with it."""
    if not readable:
        return
    digest = readable[0][0].row.model.digest
    try:
        predictions = engines.predict(
            digest,
            [stack for _, stack in readable],
            any(
                profile.segmentation is Encoding.FRACTIONAL
                for job, _ in readable
                for profile in job.profiles.values()
            ),
        )
    except BundleError as error:
        for job, _ in readable:
            name = job.row.model.name
            _wait(node, job, UNLOADABLE, name, f"the model cannot be loaded: {error}")
        return
    except Exception as error:  # whatever a network makes of an odd stack: it is that stack's fault
        if len(readable) > 1:
            for one in readable:
                _predict(node, engines, [one])
        else:
            _fail(node, readable[0][0].row, f"{type(error).__name__}: {_first_line(error)}")
        return
    faults.step("predicted", "job")
    for (job, stack), prediction in zip(readable, predictions, strict=True):
        _finish(node, job, prediction, stack)


def _claim(node: Node, queues: Sequence[str]) -> list[Claimed]:
    now = node.now()
    ready = (
        select(Job)
        .join(Revision)
        .join(Study)
        .where(
            is_ready(now),
            Job.queue.in_(queues),
            Study.state != StudyState.HELD,
        )
        .order_by(Job.due_at, Job.id)
        .options(
            selectinload(Job.model),
            selectinload(Job.destinations),
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
        # One that failed before may have ended its process: it takes no other with it again.
        if first.model.manifest["select"]["unit"] == "image" and not first.attempts:
            same = ready.where(
                Job.model_id == first.model_id, Job.id != first.id, Job.attempts == 0
            )
            rows += session.scalars(same.limit(node.settings.worker.batch - 1)).all()
        return [
            Claimed(
                row,
                forms.input_files(node, row),
                forms.profiles(session, [d.destination for d in row.destinations]),
            )
            for row in rows
            if claims.claim(
                session, node, row, JobState.READY, JobState.RUNNING, started_at=now, error=""
            )
        ]


def _finish(
    node: Node, job: Claimed, prediction: Prediction, stack: ImageStack | None = None
) -> None:
    """Keep the prediction, build its objects once, make both durable, then T4."""
    objects: forms.Objects = ()
    kept: Stored | None = None
    try:
        told = Told(prediction, stack.frames if stack else (), new_context(node, job.row))
        kept = keep(node, told)
        layouts = _layouts(job, prediction)
        wanted = {form for layout in layouts.values() for form in layout} or DEFAULT
        objects = forms.write(node, job.row, told, wanted, (lambda: stack) if stack else None)
    except Unavailable as error:  # a full disk is no fault of the job
        _discard(node, kept, objects)
        _wait(node, job, NOT_KEPT, "results", str(error))
        return
    except Exception as error:  # what libraries raise on headers that they do not expect
        _discard(node, kept, objects)
        _fail(node, job.row, str(error) if isinstance(error, ResultError) else fault(error))
        return
    faults.step("built", "job")
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
                prediction=kept.name,
                prediction_sha256=kept.sha256,
            )
            if done:
                row = session.get_one(Job, job.row.id)
                forms.add_rows(session, node, row, objects)
                for destination in row.destinations:
                    # One that joined while the model ran is laid out when it is delivered to.
                    if layout := layouts.get(destination.destination):
                        destination.layout = [str(form) for form in layout]
                forms.queue(session, row, node)
                over = (
                    (PURGED, f"job {row.id}"),
                    (UNLOADABLE, row.model.name),
                    (NOT_KEPT, "results"),
                )
                for kind, subject in over:
                    resolve_alerts(session, node.now(), kind, subject)
            faults.step("commit", "job")
    except CommitUnknown:
        raise  # the rows may exist: the files stay, reconciliation removes them if they do not
    except BaseException:
        _discard(node, kept, objects)  # the rollback is certain
        raise
    faults.step("committed", "job")
    if not done:
        _discard(node, kept, objects)
        log.warning("stale lease: result discarded", job=job.row.id, token=job.row.token)
        return
    log.info(
        "job done",
        job=job.row.id,
        model=job.row.model.name,
        objects=[str(built.form) for built, _ in objects],
        not_analysed=prediction.not_analysed is not None,
        seconds=(node.now() - (job.row.started_at or node.now())).total_seconds(),
    )


def _layouts(job: Claimed, prediction: Prediction) -> dict[str, Layout]:
    """What each destination gets at first."""
    chosen = {name: forms.choose(wish, prediction) for name, wish in job.profiles.items()}
    return {name: layout for name, layout in chosen.items() if layout}


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
        if _let_wait(session, node, job.row, reason, PATIENCE):
            alert_once(session, node.now(), kind, subject, reason)
    log.error(kind, job=job.row.id, model=job.row.model.name, reason=reason)


def _let_wait(session: Session, node: Node, job: Job, reason: str, wait: timedelta) -> bool:
    """Give the job back as if it had not been claimed; False where the claim is stale."""
    return claims.still_ours(
        session,
        job,
        JobState.RUNNING,
        state=JobState.READY,
        owner=None,
        attempts=job.attempts - 1,
        not_before=node.now() + wait,
        error=reason,
    )


def _fail(node: Node, job: Job, reason: str, alone: bool = True) -> None:
    """Try again, or give up when its attempts are used up and it was certainly at fault."""
    last = alone and job.attempts >= node.settings.worker.attempts
    state = JobState.DEAD if last else JobState.READY
    with node.database.transaction() as session:
        ours = claims.still_ours(
            session,
            job,
            JobState.RUNNING,
            state=state,
            owner=None,
            error=reason,
            finished_at=node.now() if last else None,
        )
        if ours and last:
            text = f"given up after {job.attempts} attempts: {reason}"
            alert_once(session, node.now(), "job dead", f"job {job.id}", text)
    log.error("job failed", job=job.id, attempt=job.attempts, reason=reason, dead=last)


def _discard(node: Node, kept: Stored | None, objects: forms.Objects) -> None:
    """Remove what no row names."""
    if kept:
        node.results.remove(kept.name)
    forms.discard(node, objects)


def _sentence(error: ReadingError) -> str:
    return f"the images cannot be read: {error.reason}"


def _first_line(error: BaseException) -> str:
    """Of a message, cut short: libraries put values into the rest."""
    return (str(error).splitlines() or [""])[0][:200]
