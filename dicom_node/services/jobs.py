"""Owns what administrators do with jobs: list, show, retry, cancel, rerun."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from dicom_node.domain.job import JobState, Priority, after, due_at
from dicom_node.domain.profile import describe, form_of
from dicom_node.errors import InvalidTransition, NotFound
from dicom_node.services.context import Node
from dicom_node.services.moments import has_come
from dicom_node.store.tables import Job, JobDestination, JobInput, Model, Revision, Study

PATIENCE = timedelta(seconds=60)
"""How long a job waits at most: one that could not be run for want of its model or of space."""


def is_ready(now: datetime) -> ColumnElement[bool]:
    """For queries: it waits for a worker, and for nothing else."""
    waits = Job.not_before.is_not(None) & ~has_come(Job.not_before, now, PATIENCE)
    return (Job.state == JobState.READY) & ~waits


def list_jobs(node: Node, state: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest jobs first."""
    query = select(Job).order_by(Job.id.desc()).limit(limit)
    if state:
        query = query.where(Job.state == state)
    with node.database.reading() as session:
        return [job_row(job) for job in session.scalars(query)]


def show_job(node: Node, job_id: int) -> dict[str, Any]:
    """One job with its inputs, results and what it found."""
    with node.database.reading() as session:
        job = _job(session, job_id)
        return {
            **job_row(job),
            "inputs_digest": job.inputs_digest,
            "inputs": [
                {"role": i.role, "sop_instance_uid": i.instance.sop_instance_uid}
                for i in job.inputs
            ],
            "destinations": [destination_row(row) for row in job.destinations],
            "results": [
                {
                    "kind": r.kind,
                    "form": form_of(r.form).words,
                    "sop_instance_uid": r.sop_instance_uid,
                    "file": str(node.results.path(r.path)),
                    "sha256": r.sha256,
                }
                for r in job.results
            ],
            "predecessor": job.predecessor_id,
            "summary": job.summary,
        }


def destination_row(row: JobDestination) -> dict[str, Any]:
    """Where a job's results go, by which rules, and in which forms as it was chosen."""
    layout = tuple(map(form_of, row.layout or ()))
    return {"name": row.destination, "rules": row.rules, "forms": describe(layout)}


def retry_job(node: Node, job_id: int) -> None:
    """Let a dead or cancelled job run again, with its attempts counted anew."""
    with node.database.transaction() as session:
        job = _job(session, job_id, lock=True)
        _refuse_purged(job.revision.study, [job], "run it again")
        job.state = after("retry", str(job.id), JobState(job.state))
        job.attempts, job.error, job.not_before, job.finished_at = 0, "", None, None


def cancel_job(node: Node, job_id: int) -> None:
    """Stop a job that waits or runs; a running one's result will find its claim stale."""
    with node.database.transaction() as session:
        job = _job(session, job_id, lock=True)
        job.state = after("cancel", str(job.id), JobState(job.state))
        job.token += 1
        job.finished_at, job.error = node.now(), "cancelled by an administrator"


def rerun_study(node: Node, study_uid: str, model: str | None = None) -> list[int]:
    """Make a new generation of each model's last job on a study; its report names the old one.

    Args:
        model: only that model, by name.

    Returns:
        The new jobs' numbers; none for what waits or runs already.

    Raises:
        NotFound: no such study, or nothing of it was ever run.
        InvalidTransition: its images were purged.
    """
    with node.database.transaction() as session:
        # Locked: a purge must not take the images from under the new job.
        study = session.scalar(
            select(Study).where(Study.study_instance_uid == study_uid).with_for_update()
        )
        if study is None:
            raise NotFound("study", study_uid)
        newest = (
            select(func.max(Job.id))
            .join(Revision)
            .join(Model)
            .where(Revision.study_id == study.id, Job.state.in_((JobState.DONE, JobState.DEAD)))
            .group_by(Job.model_id, Job.inputs_digest)
        )
        if model:
            newest = newest.where(Model.name == model)
        jobs = session.scalars(select(Job).where(Job.id.in_(newest))).all()
        if not jobs:
            raise NotFound("finished job of study", study_uid)
        _refuse_purged(study, jobs, "run its models again")
        successors = (
            select(Job.predecessor_id)
            .join(Revision)
            .where(Revision.study_id == study.id, Job.state != JobState.CANCELLED)
        )
        superseded = set(session.scalars(successors))
        made = [_again(session, node, job) for job in jobs if job.id not in superseded]
        return [job.id for job in made if job is not None]


def _refuse_purged(study: Study, jobs: Iterable[Job], wanted: str) -> None:
    """A job cannot read images that are gone; say so now, and what to do."""
    gone = [
        i.instance.purged_at or i.instance.purging_at
        for job in jobs
        for i in job.inputs
        if i.instance.purging_at
    ]
    if gone:
        raise InvalidTransition(
            f"study {study.study_instance_uid}",
            f"without its images, which were purged on {max(filter(None, gone)):%Y-%m-%d}",
            f"{wanted} before it was sent again",
        )


def _again(session: Session, node: Node, job: Job) -> Job | None:
    """The next generation; None while one waits or runs."""
    now = node.now()
    same = session.scalars(
        select(Job).where(Job.model_id == job.model_id, Job.inputs_digest == job.inputs_digest)
    ).all()
    if any(other.state in (JobState.READY, JobState.RUNNING) for other in same):
        return None
    ageing = timedelta(seconds=node.settings.worker.ageing)
    new = Job(
        revision_id=job.revision_id,
        model_id=job.model_id,
        inputs_digest=job.inputs_digest,
        generation=max(other.generation for other in same) + 1,
        predecessor_id=job.id,
        queue=job.queue,
        state=JobState.READY,
        priority=job.priority,
        created_at=now,
        due_at=due_at(now, Priority(job.priority), ageing),
        inputs=[
            JobInput(position=i.position, instance_id=i.instance_id, role=i.role)
            for i in job.inputs
        ],
        destinations=[
            JobDestination(destination=d.destination, rules=d.rules) for d in job.destinations
        ],
    )
    session.add(new)
    session.flush()
    return new


def _job(session: Session, job_id: int, lock: bool = False) -> Job:
    job = session.get(Job, job_id, with_for_update=lock)
    if job is None:
        raise NotFound("job", str(job_id))
    return job


def job_row(job: Job) -> dict[str, Any]:
    """A job as a listing shows it."""
    return {
        "job": job.id,
        "study": job.revision.study.study_instance_uid,
        "revision": job.revision.number,
        "model": f"{job.model.name}@{job.model.version}",
        "generation": job.generation,
        "state": job.state,
        "priority": Priority(job.priority).name.lower(),
        "attempts": job.attempts,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
    }
