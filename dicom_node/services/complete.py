"""Owns transaction T2: a study that is complete becomes a revision with its jobs (the outbox).

Gathers the evidence and stores the answer; ``domain.completion`` weighs it and ``domain.routing``
plans. Refuses to know brokers and models' insides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_node import faults
from dicom_node.domain import completion
from dicom_node.domain.completion import Answer, Evidence
from dicom_node.domain.job import JobState, due_at
from dicom_node.domain.routing import JobPlan, Plan, Rule, expected_missing, plan
from dicom_node.domain.study import (
    InstanceFacts,
    Patient,
    StudyState,
    conflicting_patients,
)
from dicom_node.errors import Unavailable
from dicom_node.services.alerts import alert_once, fault
from dicom_node.services.context import Node
from dicom_node.services.moments import has_come
from dicom_node.services.registry import model_version, rules_in_force
from dicom_node.settings import CompletionSettings
from dicom_node.store.tables import (
    Association,
    Expectation,
    Instance,
    Job,
    JobDestination,
    JobInput,
    Model,
    Revision,
    Study,
)

LOOK_AGAIN = timedelta(seconds=5)
"""How long a study may stay unlooked at whatever the evidence said; events come sooner."""

log = structlog.get_logger(__name__)


def close_studies(node: Node) -> int:
    """Look at every study whose time has come; each in a transaction of its own.

    A study that we fail over is told of and looked at again later; those behind it go on.

    Returns:
        How many jobs were made.
    """
    with node.database.reading() as session:
        due = session.scalars(
            select(Study.id).where(
                Study.state == StudyState.OPEN, has_come(Study.check_at, node.now(), LOOK_AGAIN)
            )
        ).all()
    made = 0
    for study in due:
        try:
            made += _look_at(node, study)
            faults.step("committed", "close")
        except Unavailable:
            raise
        except Exception as error:
            _put_off(node, study, error)
    return made


def _put_off(node: Node, study_id: int, error: Exception) -> None:
    reason = fault(error)
    with node.database.transaction() as session:
        study = session.get_one(Study, study_id)
        study.check_at, study.waiting_for = node.now() + LOOK_AGAIN, f"a fault: {reason}"
        alert_once(session, node.now(), "study not closed", study.study_instance_uid, reason)
        log.error("study not closed", study=study.study_instance_uid, reason=reason)


def _look_at(node: Node, study_id: int) -> int:
    with node.database.transaction() as session:
        study = session.scalar(select(Study).where(Study.id == study_id).with_for_update())
        if study is None or study.state != StudyState.OPEN:
            return 0  # another scheduler was here first
        counting = [instance for instance in study.instances if instance.counts]
        if conflicting_patients([Patient(i.patient_id, i.patient_issuer) for i in counting]):
            _hold(session, study, node.now())
            return 0
        rules = rules_in_force(session)
        evidence = _evidence(session, node, study, counting, rules)
        judgement = completion.judge(evidence, node.now())
        if judgement.answer is Answer.WAIT:
            soon = node.now() + LOOK_AGAIN
            study.waiting_for = judgement.reason
            study.check_at = min(judgement.again_at or soon, soon)
            return 0
        facts = [facts_from(instance) for instance in counting]
        versions = [model_version(row) for row in session.scalars(select(Model))]
        decided = plan(facts, rules, versions)
        revision = Revision(
            study_id=study.id,
            number=len(study.revisions) + 1,
            closed_at=node.now(),
            complete=judgement.answer is Answer.COMPLETE,
            evidence=judgement.reason,
            instances=len(counting),
            decisions=_decisions(decided),
        )
        session.add(revision)
        session.flush()
        made = [_job(session, node, revision, study, p, decided) for p in decided.jobs]
        study.state, study.waiting_for, study.check_at = StudyState.CLOSED, "", None
        faults.step("commit", "close")
        log.info(
            "study closed",
            study=study.study_instance_uid,
            revision=revision.number,
            complete=revision.complete,
            evidence=judgement.reason,
            jobs=sum(made),
        )
        return sum(made)


def facts_from(instance: Instance) -> InstanceFacts:
    """The facts as stored; JSON knows no tuples."""
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in instance.facts.items()}
    return InstanceFacts(**values)


def _hold(session: Session, study: Study, now: datetime) -> None:
    study.state = StudyState.HELD
    study.waiting_for = "it names two patients or issuers; an administrator decides"
    study.check_at = None
    alert_once(
        session,
        now,
        "identity conflict",
        study.study_instance_uid,
        "two patient ids or issuers in one study; `dicom-node studies resolve` decides",
    )
    log.error("study held", study=study.study_instance_uid, reason=study.waiting_for)


def _evidence(
    session: Session,
    node: Node,
    study: Study,
    counting: Sequence[Instance],
    rules: Sequence[Rule],
) -> Evidence:
    settings, now = node.settings.completion, node.now()
    longest = timedelta(seconds=settings.hard_cap)
    # The clock was set back since: what is waited for begins now, not when it is there again.
    study.opened_at, study.last_at = (
        now if at > now + longest else at for at in (study.opened_at, study.last_at)
    )
    fresh = [i for i in counting if i.received_at >= study.opened_at]
    associations = {i.association_id for i in fresh}
    sending, closed_at = session.execute(
        select(
            func.count(Association.id).filter(Association.closed_at.is_(None)),
            func.max(Association.closed_at),
        ).where(Association.id.in_(associations))
    ).one()
    if closed_at and closed_at > now + longest:
        closed_at = study.last_at
    quiet, quiet_rule = max(
        (_quiet_for(settings, facts_from(instance)) for instance in fresh),
        default=(settings.default_quiet, "default"),
    )
    return Evidence(
        first_at=study.opened_at,
        last_at=study.last_at,
        sending=sending,
        last_closed_at=closed_at,
        expectations=_expectations(session, study, rules, counting),
        quiet=timedelta(seconds=quiet),
        quiet_rule=quiet_rule,
        whole_radiographs=bool(fresh)
        and all(i.facts["modality"] in settings.single_image_modalities for i in fresh),
        hard_cap=longest,
    )


def _quiet_for(settings: CompletionSettings, facts: InstanceFacts) -> tuple[float, str]:
    """The first entry that fits; a series arriving by its PACS may have its own."""
    for entry in settings.quiet:
        asked = {
            "modality": (entry.modality, facts.modality),
            "AE title": (entry.ae_title, facts.calling_ae),
            "station": (entry.station, facts.station),
        }
        told = {name: wanted for name, (wanted, _) in asked.items() if wanted is not None}
        if all(wanted == found for wanted, found in asked.values() if wanted is not None):
            words = ", ".join(f"{name} {wanted}" for name, wanted in told.items())
            return entry.seconds, words or "any"
    return settings.default_quiet, "default"


def _expectations(
    session: Session, study: Study, rules: Iterable[Rule], counting: Sequence[Instance]
) -> tuple[completion.Expectation, ...]:
    held = {instance.sop_instance_uid for instance in study.instances}
    told = session.scalars(
        select(Expectation).where(Expectation.study_instance_uid == study.study_instance_uid)
    )
    found = [
        completion.Expectation(
            row.source, len(row.sop_instance_uids), len(set(row.sop_instance_uids) - held)
        )
        for row in told
    ]
    facts = [facts_from(instance) for instance in counting]
    for rule in rules:
        missing = expected_missing(rule, facts)
        if missing is not None and rule.expect_instances is not None:
            source = f"rule {rule.name!r}"
            found.append(completion.Expectation(source, rule.expect_instances, missing))
    return tuple(found)


def _decisions(decided: Plan) -> dict[str, Any]:
    return {
        "rules": [asdict(rule) for rule in decided.rules],
        "choices": [asdict(choice) for choice in decided.choices],
    }


def _job(
    session: Session, node: Node, revision: Revision, study: Study, wanted: JobPlan, decided: Plan
) -> bool:
    """Make the job unless this model already ran, or will run, on just these inputs."""
    now = node.now()
    earlier = (
        select(Job)
        .join(Revision)
        .join(Model)
        .where(Revision.study_id == study.id, Model.name == wanted.model.name)
        .order_by(Job.id.desc())
    )
    before = session.scalars(earlier).all()
    same = [j for j in before if j.model_id == wanted.model.id and j.inputs_digest == wanted.digest]
    if same:
        _add_destinations(session, same[0], wanted)
        return False
    rows = {i.sop_instance_uid: i for i in study.instances}
    job = Job(
        revision_id=revision.id,
        model_id=wanted.model.id,
        inputs_digest=wanted.digest,
        queue=session.get_one(Model, wanted.model.id).manifest["hardware"],
        state=JobState.READY,
        priority=int(wanted.priority),
        created_at=now,
        due_at=due_at(now, wanted.priority, timedelta(seconds=node.settings.worker.ageing)),
        inputs=[
            JobInput(position=n, instance_id=rows[i.sop_instance_uid].id, role=i.role)
            for n, i in enumerate(wanted.inputs)
        ],
    )
    uids = {i.sop_instance_uid for i in wanted.inputs}
    current = {p.digest for p in decided.jobs if p.model.name == wanted.model.name}
    superseded = [
        j
        for j in before
        if j.inputs_digest not in current and uids & {i.instance.sop_instance_uid for i in j.inputs}
    ]
    for old in superseded:
        if old.state == JobState.READY:
            old.state, old.finished_at = JobState.CANCELLED, now
            old.error = f"revision {revision.number} of the study came before it ran"
    finished = [j for j in superseded if j.state in (JobState.DONE, JobState.RUNNING)]
    job.predecessor_id = finished[0].id if finished else None
    session.add(job)
    session.flush()
    _add_destinations(session, job, wanted)
    return True


def _add_destinations(session: Session, job: Job, wanted: JobPlan) -> None:
    known = {row.destination for row in job.destinations}
    for name in wanted.destinations:
        if name not in known:
            job.destinations.append(
                JobDestination(job_id=job.id, destination=name, rules=list(wanted.rules))
            )
    session.flush()
