"""Owns what administrators do with studies: list, show, settle an identity conflict, look again.

Refuses to explain them (``services.explain``) and to run anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node.domain.delivery import ARRIVED, DeliveryState
from dicom_node.domain.delivery import after as delivery_after
from dicom_node.domain.job import JobState
from dicom_node.domain.job import after as job_after
from dicom_node.domain.study import Patient, StudyState, conflicting_patients
from dicom_node.errors import ConfigurationError, InvalidTransition, NotFound
from dicom_node.services.alerts import resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.jobs import job_row
from dicom_node.store.tables import Delivery, Instance, Job, JobInput, Result, Revision, Study

ANOTHER_PATIENT = "another patient's, by `dicom-node studies resolve`"


def list_studies(node: Node, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The studies that were sent to last, first."""
    query = select(Study).order_by(Study.last_at.desc(), Study.id.desc()).limit(limit)
    if state:
        query = query.where(Study.state == state)
    modality = Instance.facts["modality"].as_string()
    with node.database.reading() as session:
        studies = session.scalars(query).all()
        ids = [study.id for study in studies]
        modalities: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for study, name, count in session.execute(
            select(Instance.study_id, modality, func.count())
            .where(Instance.study_id.in_(ids))
            .group_by(Instance.study_id, modality)
            .order_by(modality)
        ):
            modalities[study][name or "?"] = count
        numbers = session.execute(
            select(Revision.study_id, func.max(Revision.number))
            .where(Revision.study_id.in_(ids))
            .group_by(Revision.study_id)
        )
        revisions = {row[0]: row[1] for row in numbers}
        jobs: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for study, job_state, count in session.execute(
            select(Revision.study_id, Job.state, func.count())
            .join(Job, Job.revision_id == Revision.id)
            .where(Revision.study_id.in_(ids))
            .group_by(Revision.study_id, Job.state)
        ):
            jobs[study][job_state] = count
    return [
        {
            "study": study.study_instance_uid,
            "state": study.state,
            "modalities": list(modalities[study.id]),
            "instances": sum(modalities[study.id].values()),
            "revision": revisions.get(study.id, 0),
            "jobs": [f"{count} {state}" for state, count in sorted(jobs[study.id].items())],
            "last_at": study.last_at,
        }
        for study in studies
    ]


def show_study(node: Node, uid: str) -> dict[str, Any]:
    """One study with its series, revisions and jobs; its identities only while they conflict."""
    with node.database.reading() as session:
        study = find(session, uid)
        held = study.state == StudyState.HELD
        jobs = session.scalars(
            select(Job).join(Revision).where(Revision.study_id == study.id).order_by(Job.id)
        )
        return {
            "study": uid,
            "state": study.state,
            "first_at": study.first_at,
            "last_at": study.last_at,
            "waiting_for": study.waiting_for,
            "series": series_rows(study.instances),
            "revisions": [
                {
                    "revision": revision.number,
                    "closed_at": revision.closed_at,
                    "complete": revision.complete,
                    "instances": revision.instances,
                    "evidence": revision.evidence,
                }
                for revision in study.revisions
            ],
            "jobs": [job_row(job) for job in jobs],
            "identities": _identities(study.instances) if held else [],
        }


def series_rows(instances: Iterable[Instance]) -> list[dict[str, Any]]:
    """Stored instances by series, in order of arrival; descriptions as typed at the modality."""
    groups: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.series_instance_uid].append(instance)
    return [
        {
            "series": uid,
            "number": members[0].facts["series_number"],
            "modality": members[0].facts["modality"],
            "description": members[0].facts["series_description"],
            "instances": len(members),
            "counting": sum(member.counts for member in members),
            "purged": sum(member.purging_at is not None for member in members),
            "megabytes": round(sum(member.size for member in members) / 1e6, 1),
            "first_at": min(member.received_at for member in members),
            "last_at": max(member.received_at for member in members),
            "from": sorted({member.facts["calling_ae"] for member in members}),
        }
        for uid, members in groups.items()
    ]


def resolve_study(
    node: Node, uid: str, patient_id: str, issuer: str | None = None
) -> dict[str, int]:
    """Settle an identity conflict: keep one patient's instances, pass over the others.

    What waits to be run or sent on the others' images is stopped: it would reach the PACS under
    this study. The kept ones become a new revision.

    Args:
        patient_id: Patient ID (0010,0020) of the instances to keep.
        issuer: of that id; needed where the instances name more than one. An absent issuer
            agrees with any.

    Returns:
        How many instances were kept and passed over, jobs cancelled, deliveries stopped, and
        results that had been sent before.

    Raises:
        NotFound: no such study, or no instance of that patient in it.
        InvalidTransition: it is not held.
        ConfigurationError: an issuer is needed to tell two patients apart.
    """
    with node.database.transaction() as session:
        study = find(session, uid, lock=True)
        if study.state != StudyState.HELD:
            raise InvalidTransition(f"study {uid}", study.state, "settle whose it is")
        counting = [instance for instance in study.instances if instance.counts]
        kept = [
            i
            for i in counting
            if i.patient_id == patient_id and (issuer is None or i.patient_issuer in ("", issuer))
        ]
        if not kept:
            raise NotFound("instance of that patient in study", uid)
        if conflicting_patients([Patient(i.patient_id, i.patient_issuer) for i in kept]):
            raise ConfigurationError("that id has two issuers in this study: name one of them")
        others = [instance for instance in counting if instance not in kept]
        for instance in others:
            instance.counts, instance.note = False, ANOTHER_PATIENT
        study.patient_id = patient_id
        study.patient_issuer = next((i.patient_issuer for i in kept if i.patient_issuer), "")
        _open(node, study)
        stopped = _stop(session, node, [instance.id for instance in others])
        resolve_alerts(session, node.now(), "identity conflict", uid)
        return {"kept": len(kept), "passed_over": len(others), **stopped}


def reopen_study(node: Node, uid: str) -> None:
    """Let the scheduler look at a closed study again, with the rules and models now in force.

    Raises:
        NotFound: no such study.
        InvalidTransition: it is not closed.
    """
    with node.database.transaction() as session:
        study = find(session, uid, lock=True)
        if study.state != StudyState.CLOSED:
            raise InvalidTransition(f"study {uid}", study.state, "be opened again")
        study.opened_at = node.now()
        _open(node, study)


def find(session: Session, uid: str, lock: bool = False) -> Study:
    """A study by its Study Instance UID.

    Raises:
        NotFound: none was received.
    """
    query = select(Study).where(Study.study_instance_uid == uid)
    study = session.scalar(query.with_for_update() if lock else query)
    if study is None:
        raise NotFound("study", uid)
    return study


def _open(node: Node, study: Study) -> None:
    """Its time in an administrator's hands must not count as one in which it was never quiet."""
    now = node.now()
    if now - study.opened_at >= timedelta(seconds=node.settings.completion.hard_cap):
        study.opened_at = now
    study.state, study.waiting_for, study.check_at = StudyState.OPEN, "", now


def _stop(session: Session, node: Node, instances: Sequence[int]) -> dict[str, int]:
    """Stop all jobs and deliveries that rest on these instances."""
    told = {"cancelled": 0, "stopped": 0, "sent_before": 0}
    jobs = session.scalars(
        select(Job)
        .where(Job.id.in_(select(JobInput.job_id).where(JobInput.instance_id.in_(instances))))
        .order_by(Job.id)
    ).all()
    for job in jobs:
        for destination in job.destinations:
            destination.layout = destination.layout or []  # nothing more is built for it
        if job.state in (JobState.READY, JobState.RUNNING):
            job.state = job_after("cancel", str(job.id), JobState(job.state))
            job.token += 1  # a running worker's claim is stale from here on
            job.finished_at, job.error = node.now(), f"its input is {ANOTHER_PATIENT}"
            told["cancelled"] += 1
    deliveries = session.scalars(
        select(Delivery).join(Result).where(Result.job_id.in_([job.id for job in jobs]))
    )
    for delivery in deliveries:
        if delivery.state in ARRIVED:
            told["sent_before"] += 1
        elif delivery.state not in (DeliveryState.DEAD, DeliveryState.REPLACED):
            state = DeliveryState(delivery.state)
            delivery.state = delivery_after("give up", str(delivery.id), state)
            delivery.token += 1
            delivery.last_answer = f"not sent: its input is {ANOTHER_PATIENT}"
            told["stopped"] += 1
    return told


def _identities(instances: Iterable[Instance]) -> list[dict[str, Any]]:
    counts = Counter((i.patient_id, i.patient_issuer) for i in instances if i.counts)
    return [
        {"patient_id": patient, "issuer": issuer, "instances": count}
        for (patient, issuer), count in counts.items()
    ]
