"""Owns what administrators do with instances that came again with other content.

The newcomer lies in quarantine; keeping it swaps the two files, so that nothing is ever lost.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydicom import Dataset, dcmread
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from dicom_node.domain.loops import why_ignored
from dicom_node.domain.study import StudyState
from dicom_node.errors import InvalidTransition, NodeError, NotFound
from dicom_node.services.alerts import resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.enter import is_own
from dicom_node.services.headers import facts_of, patient_of
from dicom_node.store.tables import Association, Quarantined

Keep = Literal["old", "new"]


def list_quarantine(node: Node, everything: bool = False) -> list[dict[str, Any]]:
    """Instances in quarantine, the oldest first.

    Args:
        everything: those that were settled too.

    Returns:
        For each, beside its row: ``differs_in``, the attributes in which the two data sets
        differ, by keyword and without values.
    """
    query = select(Quarantined).order_by(Quarantined.id).options(joinedload(Quarantined.instance))
    if not everything:
        query = query.where(Quarantined.resolved_at.is_(None))
    with node.database.reading() as session:
        return [
            {
                "id": row.id,
                "sop_instance_uid": row.instance.sop_instance_uid,
                "study": row.instance.study.study_instance_uid,
                "received_at": row.received_at,
                "from": _calling(session, row.association_id),
                "held_since": row.instance.received_at,
                "held_from": _calling(session, row.instance.association_id),
                "differs_in": ["purged: it cannot be told any more"]
                if row.purging_at or row.instance.purging_at
                else differences(
                    node.instances.path(row.instance.path), node.instances.path(row.path)
                ),
                "resolution": row.resolution,
                "purged_at": row.purging_at,
                "held_purged_at": row.instance.purging_at,
                "file": node.instances.path(row.path),
                "held_file": node.instances.path(row.instance.path),
            }
            for row in session.scalars(query)
        ]


def differences(one: Path, other: Path) -> list[str]:
    """Keywords (tags where there is none) of the elements in which two files differ."""
    try:
        a, b = dcmread(one), dcmread(other)
        tags = sorted(set(a.keys()) | set(b.keys()))
        found = [tag for tag in tags if a.get(tag) != b.get(tag)]
    except Exception:  # whatever a damaged file makes pydicom raise: it must not hide the others
        return ["a file cannot be read"]
    named = {tag: (a.get(tag) or b.get(tag)) for tag in found}
    return [element.keyword or str(tag) if element else str(tag) for tag, element in named.items()]


def resolve_instance(node: Node, quarantined: int, keep: Keep) -> None:
    """Settle which of the two is the instance; the other stays as the quarantined file.

    With ``new`` the study is opened, so that a new revision follows.

    Raises:
        NotFound: nothing in quarantine by that number, or its file is gone.
        InvalidTransition: it was settled before.
        NodeError: the newcomer names another study and cannot take the place.
    """
    with node.database.transaction() as session:
        row = session.get(Quarantined, quarantined, with_for_update=True)
        if row is None:
            raise NotFound("instance in quarantine", str(quarantined))
        if row.resolved_at is not None:
            state = f"settled ({row.resolution})"
            raise InvalidTransition(f"instance {quarantined}", state, f"keep the {keep} one")
        if keep == "new":
            _swap(session, node, row)
        row.resolution, row.resolved_at = f"keep-{keep}", node.now()
        session.flush()
        waiting = select(Quarantined.id).where(
            Quarantined.instance_id == row.instance_id, Quarantined.resolved_at.is_(None)
        )
        if session.scalar(waiting.limit(1)) is None:
            uid = row.instance.sop_instance_uid
            resolve_alerts(session, node.now(), "conflicting instance", uid)


def _swap(session: Session, node: Node, row: Quarantined) -> None:
    """Both files stay where they are; the two rows change which of them they name."""
    held, now = row.instance, node.now()
    header = _header(node.instances.path(row.path), row.id)
    study = held.study
    if str(header.StudyInstanceUID) != study.study_instance_uid:
        raise NodeError(
            f"instance {row.id} names another study than the one that holds its UID: keep the old "
            "one, and have it sent again under a UID of its own"
        )
    for name in ("path", "sha256", "size", "transfer_syntax", "association_id"):
        old, new = getattr(held, name), getattr(row, name)
        setattr(held, name, new)
        setattr(row, name, old)
    association = session.get(Association, held.association_id) if held.association_id else None
    calling, called = (association.calling_ae, association.called_ae) if association else ("", "")
    facts = facts_of(header, held.sha256, calling, called)
    patient = patient_of(header)
    own = is_own(session, facts.sop_instance_uid, facts.series_instance_uid)
    held.note = why_ignored(facts.sop_class, facts.modality, own)
    held.counts = not held.note
    held.facts = asdict(facts)
    held.sop_class_uid, held.series_instance_uid = facts.sop_class_uid, facts.series_instance_uid
    held.patient_id, held.patient_issuer = patient.patient_id, patient.issuer
    held.archived_at = None  # what an archive told was told of the other bytes
    row.received_at, held.received_at = held.received_at, now
    if {(one.patient_id, one.patient_issuer) for one in study.instances} == {
        (patient.patient_id, patient.issuer)
    }:
        study.patient_id, study.patient_issuer = patient.patient_id, patient.issuer
    # A held study is judged again too: the newcomer may have settled whose it is.
    resolve_alerts(session, now, "identity conflict", study.study_instance_uid)
    study.state, study.waiting_for = StudyState.OPEN, ""
    study.opened_at = study.last_at = study.check_at = now


def _header(path: Path, quarantined: int) -> Dataset:
    try:
        return dcmread(path, stop_before_pixels=True)
    except OSError as error:
        raise NotFound("file of the instance in quarantine", str(quarantined)) from error


def _calling(session: Session, association: int | None) -> str:
    row = session.get(Association, association) if association else None
    return row.calling_ae if row else ""
