"""Owns trying the routing rules on files or on a stored study, before they are in force.

Nothing is stored and nothing runs; ``domain.routing`` decides as it does for a closed study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from sqlalchemy import select

from dicom_node.domain.loops import why_ignored
from dicom_node.domain.routing import Rule, plan
from dicom_node.domain.study import InstanceFacts, Patient, by_series, conflicting_patients
from dicom_node.errors import NotFound
from dicom_node.services.context import Node
from dicom_node.services.headers import facts_of, patient_of
from dicom_node.services.registry import model_version, rules_in_force
from dicom_node.services.studies import find
from dicom_node.store.tables import Model, RuleSet


@dataclass(frozen=True)
class _Instance:
    """An instance of a trial; ``ignored`` says why it would not count, empty when it would."""

    facts: InstanceFacts
    patient: Patient
    ignored: str


def list_rules(node: Node) -> list[dict[str, Any]]:
    """The rules in force, as they were written, with when they were applied."""
    with node.database.reading() as session:
        row = session.scalar(select(RuleSet).order_by(RuleSet.id.desc()).limit(1))
        rules = rules_in_force(session)
    return [
        {
            "name": rule.name,
            "enabled": rule.enabled,
            "priority": rule.priority.name.lower(),
            "models": rule.models,
            "destinations": rule.destinations,
            "when": rule.source.get("when", {}),
            "expect_instances": rule.expect_instances,
            "applied_at": row.applied_at if row else None,
        }
        for rule in rules
    ]


def try_rules(
    node: Node,
    target: str,
    rules: Sequence[Rule] | None = None,
    calling: str = "",
    called: str = "",
) -> list[dict[str, Any]]:
    """What the rules would make of a file, of a folder's files, or of a stored study.

    Args:
        target: a path, or a Study Instance UID.
        rules: to try; None takes those in force.
        calling: AE title that files count as sent by; a stored study knows its own.
        called: AE title that files count as sent to.

    Returns:
        For each study: ``held`` (it names two patients), ``series``, ``passed_over``, ``rules``
        and ``choices`` (as in a revision's decisions), ``jobs``.

    Raises:
        NotFound: no such study, or no DICOM file there.
    """
    path = Path(target)
    studies = _of_files(path, calling, called) if path.exists() else _stored(node, target)
    with node.database.reading() as session:
        in_force = rules_in_force(session) if rules is None else rules
        models = [model_version(row) for row in session.scalars(select(Model))]
    told = []
    for uid, every in studies.items():
        counting = [instance.facts for instance in every if not instance.ignored]
        patients = [instance.patient for instance in every if not instance.ignored]
        decided = plan(counting, in_force, models)
        told.append(
            {
                "study": uid,
                "held": conflicting_patients(patients),
                "series": [
                    {
                        "series": series,
                        "number": members[0].series_number,
                        "modality": members[0].modality,
                        "instances": len(members),
                    }
                    for series, members in by_series(counting).items()
                ],
                "passed_over": [
                    {"sop_instance_uid": one.facts.sop_instance_uid, "why": one.ignored}
                    for one in every
                    if one.ignored
                ],
                "rules": [asdict(rule) for rule in decided.rules],
                "choices": [asdict(choice) for choice in decided.choices],
                "jobs": [
                    {
                        "model": job.model.title,
                        "state": job.model.state,
                        "images": len(job.inputs),
                        "inputs": [i.sop_instance_uid for i in job.inputs],
                        "priority": job.priority.name.lower(),
                        "destinations": job.destinations,
                        "rules": job.rules,
                    }
                    for job in decided.jobs
                ],
            }
        )
    return told


def _stored(node: Node, uid: str) -> dict[str, list[_Instance]]:
    from dicom_node.services.complete import facts_from  # here, since it brings the network along

    with node.database.reading() as session:
        return {
            uid: [
                _Instance(
                    facts_from(row),
                    Patient(row.patient_id, row.patient_issuer),
                    "" if row.counts else row.note or "passed over",
                )
                for row in find(session, uid).instances
            ]
        }


def _of_files(path: Path, calling: str, called: str) -> dict[str, list[_Instance]]:
    studies: defaultdict[str, dict[str, _Instance]] = defaultdict(dict)
    for header in _headers(path):
        facts = facts_of(header, "", calling, called)
        ignored = why_ignored(facts.sop_class, facts.modality, is_own_result=False)
        one = _Instance(facts, patient_of(header), ignored)
        study = str(header.get("StudyInstanceUID", ""))
        studies[study].setdefault(facts.sop_instance_uid, one)  # a copy changes nothing
    if not studies:
        raise NotFound("DICOM file", str(path))
    return {uid: list(instances.values()) for uid, instances in studies.items()}


def _headers(path: Path) -> Iterator[Dataset]:
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            try:
                yield dcmread(file, stop_before_pixels=True)
            except Exception:  # noqa: S112 - whatever lies beside the images is not the question
                continue
