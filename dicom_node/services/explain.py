"""Owns the answer to "why is this study where it is": all that is known of it, in order, in words.

Reads only. Names no patient, and no description, which a person typed and may name one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from dicom_node.domain.job import JobState
from dicom_node.domain.study import StudyState
from dicom_node.services.context import Node
from dicom_node.services.deliveries import delivery_row, subject_of
from dicom_node.services.jobs import PATIENCE, destination_row, job_row
from dicom_node.services.studies import find, series_rows
from dicom_node.store.tables import (
    Alert,
    Association,
    Delivery,
    Expectation,
    Instance,
    Job,
    JobInput,
    Process,
    Quarantined,
    Result,
    Revision,
    Study,
)

_RETRY = "dicom-node deliveries retry"


def explain(node: Node, uid: str) -> dict[str, Any]:
    """Where a study is, and why.

    Returns:
        ``summary`` (sentences: the state, what it waits for, what to do), ``series``,
        ``passed_over``, ``associations``, ``expectations``, ``quarantine``, ``revisions`` (each
        with its evidence, ``rules``, ``choices``, ``jobs`` and their ``deliveries``), ``alerts``.

    Raises:
        NotFound: no instance of that study was received.
    """
    with node.database.reading() as session:
        study = find(session, uid)
        instances = study.instances
        jobs = session.scalars(
            select(Job)
            .join(Revision)
            .where(Revision.study_id == study.id)
            .order_by(Job.id)
            .options(
                selectinload(Job.inputs).selectinload(JobInput.instance),
                selectinload(Job.destinations),
            )
        ).all()
        roles = set(session.scalars(select(Process.role).where(Process.ended_at.is_(None))))
        told_jobs = {job.id: _job(session, job, node.now(), roles) for job in jobs}
        series = series_rows(instances)
        for row in series:
            del row["description"]
        told = {
            "study": uid,
            "state": study.state,
            "first_at": study.first_at,
            "last_at": study.last_at,
            "check_at": study.check_at,
            "series": series,
            "passed_over": [
                {"why": why, "instances": count}
                for why, count in Counter(i.note for i in instances if not i.counts).items()
            ],
            "associations": _associations(session, study),
            "expectations": _expectations(session, uid, instances),
            "quarantine": _quarantine(session, study),
            "revisions": [_revision(r, jobs, told_jobs) for r in study.revisions],
            "alerts": _alerts(session, study, jobs),
        }
    return {"summary": _summary(study, told, roles), **told}


def found_in_words(summary: Mapping[str, Any] | None) -> list[str]:
    """What a job found, one sentence a finding.

    Args:
        summary: as ``services.infer.summarise`` made it; None while the job is not done.
    """
    if summary is None:
        return []
    if reason := summary["not_analysed"]:
        said = reason.lower().startswith("not analysed")  # the models' own sentences begin so
        return [reason if said else f"not analysed: {reason}"]
    sentences = []
    for segment in summary["segments"]:
        measured = ", ".join(
            f"{m['name']} {m['value']:.4g} {m['unit']}" for m in segment["measurements"]
        )
        state = "" if segment["found"] else ": not found"
        sentences.append(f"{segment['label']}{state or (f': {measured}' if measured else '')}")
    for finding in summary["findings"]:
        chance = finding["probability"]
        words = [
            "present" if finding["present"] else "not present",
            *([f"severity {finding['severity']}"] if finding["severity"] else []),
            *([f"probability {chance:.2f}"] if chance is not None else []),
        ]
        sentences.append(f"{finding['label']}: {', '.join(words)}")
    return [*sentences, *summary["notes"]]


def seconds_of(job: Job) -> float | None:
    """From the last start of a job to its end."""
    if job.started_at is None or job.finished_at is None:
        return None
    return (job.finished_at - job.started_at).total_seconds()


def _job(session: Session, job: Job, now: datetime, roles: set[str]) -> dict[str, Any]:
    deliveries = session.scalars(
        select(Delivery).join(Result).where(Result.job_id == job.id).order_by(Delivery.id)
    )
    return {
        **job_row(job),
        "seconds": seconds_of(job),
        "images": len(job.inputs),
        "predecessor": job.predecessor_id,
        "waits_for": _job_waits(job, now, roles),
        "found": found_in_words(job.summary),
        "destinations": [destination_row(row) for row in job.destinations],
        "deliveries": [delivery_row(delivery) for delivery in deliveries],
    }


def _job_waits(job: Job, now: datetime, roles: set[str]) -> str:
    if job.state != JobState.READY:
        return ""
    if job.revision.study.state == StudyState.HELD:
        return "an administrator's decision on the study"
    if job.not_before and now < job.not_before <= now + PATIENCE:
        return f"its next attempt in {(job.not_before - now).total_seconds():.0f} s"
    if "worker" not in roles:
        return "a worker: none is running"
    return "a free worker" if job.queue == "any" else f"a free worker with a {job.queue.upper()}"


def _associations(session: Session, study: Study) -> list[dict[str, Any]]:
    rows = session.execute(
        select(Association, func.count(Instance.id))
        .join(Instance, Instance.association_id == Association.id)
        .where(Instance.study_id == study.id)
        .group_by(Association.id)
        .order_by(Association.id)
    )
    return [
        {
            "from": row.calling_ae,
            "to": row.called_ae,
            "address": row.address,
            "instances": count,
            "opened_at": row.opened_at,
            "closed_at": row.closed_at,
            "aborted": row.aborted,
        }
        for row, count in rows
    ]


def _expectations(
    session: Session, uid: str, instances: Iterable[Instance]
) -> list[dict[str, Any]]:
    held = {instance.sop_instance_uid for instance in instances}
    rows = session.scalars(select(Expectation).where(Expectation.study_instance_uid == uid))
    return [
        {
            "source": row.source,
            "told_at": row.told_at,
            "instances": len(row.sop_instance_uids),
            "missing": len(set(row.sop_instance_uids) - held),
        }
        for row in rows
    ]


def _quarantine(session: Session, study: Study) -> list[dict[str, Any]]:
    rows = session.scalars(select(Quarantined).join(Instance).where(Instance.study_id == study.id))
    return [
        {
            "id": row.id,
            "sop_instance_uid": row.instance.sop_instance_uid,
            "received_at": row.received_at,
            "resolution": row.resolution,
        }
        for row in rows
    ]


def _revision(
    revision: Revision, jobs: Sequence[Job], told: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    own = [job for job in jobs if job.revision_id == revision.id]
    return {
        "revision": revision.number,
        "closed_at": revision.closed_at,
        "complete": revision.complete,
        "evidence": revision.evidence,
        "instances": revision.instances,
        "rules": revision.decisions["rules"],
        "choices": revision.decisions["choices"],
        "jobs": [told[job.id] for job in own],
        "covered": _covered(revision, own, [j for j in jobs if j.revision_id < revision.id]),
    }


def _covered(revision: Revision, own: Sequence[Job], before: Sequence[Job]) -> list[dict[str, Any]]:
    """Candidates that this revision needed no job for, and the earlier job that stands for each."""
    covered = []
    for choice in revision.decisions["choices"]:
        for uid in choice["taken"]:
            if not any(_reads(job, choice["model"], uid) for job in own):
                earlier = [job.id for job in before if _reads(job, choice["model"], uid)]
                covered += [{"candidate": uid, "model": choice["model"], "job": max(earlier)}] * (
                    bool(earlier)
                )
    return covered


def _reads(job: Job, model: str, candidate: str) -> bool:
    return f"{job.model.name}@{job.model.version}" == model and any(
        candidate in (i.instance.sop_instance_uid, i.instance.series_instance_uid)
        for i in job.inputs
    )


def _alerts(session: Session, study: Study, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Unresolved ones about the study or what hangs on it: instance, file, job, delivery, model."""
    subjects = {study.study_instance_uid}
    for instance in study.instances:
        subjects |= {instance.sop_instance_uid, instance.path[:64]}
    for job in jobs:
        subjects.add(f"job {job.id}")
        sent = select(Delivery).join(Result).where(Result.job_id == job.id)
        subjects |= {subject_of(delivery) for delivery in session.scalars(sent)}
        if job.state in (JobState.READY, JobState.RUNNING):
            subjects.add(job.model.name)
    rows = session.scalars(select(Alert).where(Alert.resolved_at.is_(None)).order_by(Alert.id))
    return [
        {"at": row.at, "kind": row.kind, "subject": row.subject, "text": row.text}
        for row in rows
        if row.subject in subjects
    ]


def _summary(study: Study, told: Mapping[str, Any], roles: set[str]) -> list[str]:
    sentences = [*_state_in_words(study, told, roles), *_purged_in_words(study, told)]
    waiting = [row for row in told["quarantine"] if row["resolution"] is None]
    if waiting:
        sentences.append(
            "Came again with other content and waits in quarantine for a decision: "
            f"{', '.join(row['sop_instance_uid'] for row in waiting[:3])}"
            f"{' and more' * (len(waiting) > 3)}; `dicom-node instances list`."
        )
    jobs = [job for revision in told["revisions"] for job in revision["jobs"]]
    sentences += [
        f"Job {job['job']} ({job['model']}) is dead: {job['error']}; mend the cause, then "
        f"`dicom-node jobs retry {job['job']}`."
        for job in jobs
        if job["state"] == JobState.DEAD
    ]
    sentences += [
        f"{d['kind'].upper()} of job {job['job']} did not reach {d['destination']}: "
        f"{d['answer']}; `{_RETRY} {d['delivery']}` sends it again."
        for job in jobs
        for d in job["deliveries"]
        if d["state"] == "dead"
    ]
    return sentences


def _purged_in_words(study: Study, told: Mapping[str, Any]) -> list[str]:
    """Files that went by rule; their rows are what the rest of the story is told from."""
    images = [row.purging_at for row in study.instances if row.purging_at]
    sentences = []
    if images:
        sentences.append(
            f"The files of {len(images)} of {len(study.instances)} instances were purged, the last "
            f"on {max(images):%Y-%m-%d}; what is sent again is stored again."
        )
    deliveries = [d for r in told["revisions"] for job in r["jobs"] for d in job["deliveries"]]
    results = {d["sop_instance_uid"]: d["purged_at"] for d in deliveries if d["purged_at"]}
    if results:
        sentences.append(
            f"{len(results)} result{'s were' if len(results) > 1 else ' was'} purged, the last on "
            f"{max(results.values()):%Y-%m-%d}: no file of it is left to be sent again."
        )
    return sentences


def _state_in_words(study: Study, told: Mapping[str, Any], roles: set[str]) -> list[str]:
    uid = study.study_instance_uid
    if study.state == StudyState.HELD:
        return [
            f"Held: {study.waiting_for}. Until then nothing of it runs and nothing is sent.",
            f"`dicom-node studies show {uid}` tells the identities, "
            f"`dicom-node studies resolve {uid} --patient-id ID` keeps one of them.",
        ]
    if study.state == StudyState.OPEN:
        sentences = [f"Open, not yet called complete: {study.waiting_for or 'not yet looked at'}."]
        if "scheduler" not in roles:
            sentences.append("No scheduler is running, so nothing looks at it: `dicom-node up`.")
        return sentences
    if not told["revisions"]:
        return ["Closed: nothing that came opens a revision (see what is passed over)."]
    last = told["revisions"][-1]
    how = "complete" if last["complete"] else "INCOMPLETE, and every report says so"
    sentences = [f"Closed: revision {last['revision']} holds all that counts; {how}."]
    jobs = [job for revision in told["revisions"] for job in revision["jobs"]]
    if not last["jobs"] and not last["covered"]:
        return [*sentences, _why_no_job(last), f"`dicom-node studies reopen {uid}` looks again."]
    states = Counter(job["state"] for job in jobs)
    sent = Counter(d["state"] for job in jobs for d in job["deliveries"])
    sentences.append(f"Jobs: {_counts(states)}. Deliveries: {_counts(sent)}.")
    return sentences


def _why_no_job(revision: Mapping[str, Any]) -> str:
    rules = revision["rules"]
    matched = [rule for rule in rules if rule["matched"]]
    if not rules:
        return "No rule was in force, so nothing was to be done: `dicom-node routes apply FILE`."
    if not matched:
        return f"No rule wanted it: none of {len(rules)} matched."
    names = ", ".join(repr(rule["rule"]) for rule in matched)
    if notes := [f"rule {rule['rule']!r} {rule['note']}" for rule in matched if rule["note"]]:
        return f"Nothing was run: {'; '.join(notes)}."
    return f"Nothing was run: {names} matched, but no model found images that it takes."


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "none"
