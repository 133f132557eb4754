"""Owns transaction T1: an instance becomes durable, then it is acknowledged.

Refuses to know sockets and statuses: the listener hands over bytes and gets an outcome or an
error of ``dicom_node.errors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from ipaddress import ip_address, ip_network

import structlog
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.domain.loops import why_ignored
from dicom_node.domain.study import StudyState
from dicom_node.errors import ConflictingInstance
from dicom_node.services.alerts import alert_once
from dicom_node.services.context import Node
from dicom_node.services.headers import (
    check_identity,
    facts_of,
    patient_of,
    read_header,
    study_uid_of,
)
from dicom_node.services.same import same_content
from dicom_node.store.database import CommitUnknown
from dicom_node.store.files import Stored
from dicom_node.store.tables import (
    Association,
    Expectation,
    Instance,
    Modality,
    Quarantined,
    Result,
    Study,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Reception:
    """One C-STORE request, as it came.

    Attributes:
        dataset: the encoded data set, byte for byte, without file meta information.
        transfer_syntax: of ``dataset``, the accepted one of its presentation context.
        sop_class_uid: Affected SOP Class UID of the request.
        sop_instance_uid: Affected SOP Instance UID of the request.
        association: the row that ``open_association`` returned.
    """

    dataset: bytes
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    association: int


class Outcome(StrEnum):
    """Why a C-STORE is acknowledged."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    OTHER_ENCODING = "other encoding"


def receive_instance(node: Node, reception: Reception) -> Outcome:
    """Make one instance durable: file, directory, row; when this returns, 0x0000 is true.

    Raises:
        RefusedInstance: one of its kinds; nothing is kept, but a conflicting one in quarantine.
        Unavailable: disk or database cannot take it now; nothing is acknowledged.
    """
    header = read_header(reception.dataset, reception.transfer_syntax)
    check_identity(header, reception.sop_class_uid, reception.sop_instance_uid)
    digest = sha256(reception.dataset).hexdigest()
    with node.database.reading() as session:
        held = _held(session, reception.sop_instance_uid)
    if held is None:
        stored = _write(node, reception, ".dcm")
        try:
            with node.database.transaction() as session:
                _insert(session, node, reception, header, stored)
        except CommitUnknown:
            raise  # the row may exist: the file stays, the sweep finds it if it does not
        except IntegrityError:
            node.instances.remove(stored.name)
            return receive_instance(node, reception)  # another association was first
        except BaseException:
            node.instances.remove(stored.name)  # the rollback is certain
            raise
        return Outcome.STORED
    if held.sha256 == digest:
        _see_held_file(node, reception, held)
        return Outcome.DUPLICATE
    if same_content(node.instances.path(held.path), reception.dataset, reception.transfer_syntax):
        return Outcome.OTHER_ENCODING
    _quarantine(node, reception, held, digest)
    raise ConflictingInstance("held with other content", reception.sop_instance_uid)


def part10_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(head, meta)
    return head.getvalue()


def open_association(node: Node, calling: str, called: str, address: str) -> int:
    """Record an association before its first instance, so that completion can see it."""
    with node.database.transaction() as session:
        row = Association(
            process_id=node.id,
            calling_ae=calling,
            called_ae=called,
            address=address,
            opened_at=node.now(),
        )
        session.add(row)
        session.flush()
        return row.id


def close_association(node: Node, association: int, *, aborted: bool) -> None:
    """Record its end; the studies that it sent are looked at at once."""
    with node.database.transaction() as session:
        end_association(session, association, node.now(), aborted=aborted)


def end_association(session: Session, association: int, now: datetime, *, aborted: bool) -> None:
    """The same inside a transaction, for those whose listener died."""
    session.execute(
        update(Association)
        .where(Association.id == association, Association.closed_at.is_(None))
        .values(closed_at=now, aborted=aborted)
    )
    sent = select(Instance.study_id).where(Instance.association_id == association).distinct()
    session.execute(
        update(Study)
        .where(Study.id.in_(sent), Study.state == StudyState.OPEN)
        .values(check_at=now)
        .execution_options(synchronize_session=False)
    )


def is_known(node: Node, calling: str, address: str) -> bool:
    """Whether this AE title may send from this address."""
    with node.database.reading() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == calling))
    if row is None:
        return False
    return not row.addresses or any(
        ip_address(address) in ip_network(network) for network in row.addresses
    )


def endpoint(node: Node, ae_title: str) -> tuple[str, int] | None:
    """Where a modality takes associations from us, if it was told."""
    with node.database.reading() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == ae_title))
    return (row.host, row.port) if row and row.host and row.port else None


def expect(
    node: Node, source: str, study_uid: str | None, sop_instance_uids: Sequence[str]
) -> None:
    """Record what somebody told belongs to a study; evidence for completion.

    Args:
        study_uid: None when only instances are told (storage commitment); then the study is that
            of the instances already held.
    """
    with node.database.transaction() as session:
        study_uid = study_uid or session.scalar(
            select(Study.study_instance_uid)
            .join(Study.instances)
            .where(Instance.sop_instance_uid.in_(sop_instance_uids))
            .limit(1)
        )
        if study_uid is None:
            return
        session.add(
            Expectation(
                study_instance_uid=study_uid,
                source=source,
                sop_instance_uids=list(sop_instance_uids),
                told_at=node.now(),
            )
        )
        session.execute(
            update(Study)
            .where(Study.study_instance_uid == study_uid, Study.state == StudyState.OPEN)
            .values(check_at=node.now())
        )


def held(node: Node, sop_instance_uids: Sequence[str]) -> set[str]:
    """Which of the instances are durable here: a row, and its file seen."""
    with node.database.reading() as session:
        rows = session.execute(
            select(Instance.sop_instance_uid, Instance.path).where(
                Instance.sop_instance_uid.in_(sop_instance_uids)
            )
        ).all()
    return {uid for uid, path in rows if node.instances.path(path).is_file()}


def _write(node: Node, reception: Reception, suffix: str) -> Stored:
    head = part10_head(
        reception.sop_class_uid, reception.sop_instance_uid, reception.transfer_syntax
    )
    return node.instances.write(suffix, head, reception.dataset)


def _held(session: Session, sop_instance_uid: str) -> Instance | None:
    return session.scalar(select(Instance).where(Instance.sop_instance_uid == sop_instance_uid))


def _insert(
    session: Session, node: Node, reception: Reception, header: Dataset, stored: Stored
) -> None:
    now, patient = node.now(), patient_of(header)
    association = session.get_one(Association, reception.association)
    facts = facts_of(header, stored.sha256, association.calling_ae, association.called_ae)
    own = is_own(session, facts.sop_instance_uid, facts.series_instance_uid)
    ignored = why_ignored(facts.sop_class, facts.modality, own)
    uid = study_uid_of(header)
    study = session.scalar(select(Study).where(Study.study_instance_uid == uid).with_for_update())
    if study is None:
        study = Study(
            study_instance_uid=uid,
            state=StudyState.CLOSED,
            patient_id=patient.patient_id,
            patient_issuer=patient.issuer,
            first_at=now,
            opened_at=now,
            last_at=now,
        )
        session.add(study)
        session.flush()
    if not ignored:
        if study.state == StudyState.CLOSED:  # a late instance opens a new revision
            study.state, study.opened_at = StudyState.OPEN, now
        study.last_at = now
        # The scheduler weighs the evidence; nothing is decided on the C-STORE path.
        study.check_at = now
    session.add(
        Instance(
            study_id=study.id,
            association_id=association.id,
            sop_instance_uid=facts.sop_instance_uid,
            sop_class_uid=facts.sop_class_uid,
            series_instance_uid=facts.series_instance_uid,
            transfer_syntax=reception.transfer_syntax,
            path=stored.name,
            sha256=stored.sha256,
            size=stored.size,
            received_at=now,
            counts=not ignored,
            note=ignored,
            patient_id=patient.patient_id,
            patient_issuer=patient.issuer,
            facts=asdict(facts),
        )
    )


def is_own(session: Session, sop_instance_uid: str, series_instance_uid: str) -> bool:
    """Whether this node built it, or a series of ours holds it."""
    ours = select(Result.id).where(
        (Result.sop_instance_uid == sop_instance_uid)
        | (Result.series_instance_uid == series_instance_uid)
    )
    return session.scalar(ours.limit(1)) is not None


def _see_held_file(node: Node, reception: Reception, held: Instance) -> None:
    """A duplicate is acknowledged only when the held file is there; else it takes its place."""
    if node.instances.path(held.path).is_file():
        return
    stored = _write(node, reception, ".dcm")
    with node.database.transaction() as session:
        session.get_one(Instance, held.id).path = stored.name
    log.warning("held file was missing and is replaced", sop_instance_uid=held.sop_instance_uid)


def _quarantine(node: Node, reception: Reception, held: Instance, digest: str) -> None:
    with node.database.reading() as session:
        same = select(Quarantined.id).where(
            Quarantined.instance_id == held.id, Quarantined.sha256 == digest
        )
        if session.scalar(same) is not None:
            return
    stored = _write(node, reception, ".quarantined")
    try:
        with node.database.transaction() as session:
            session.add(
                Quarantined(
                    instance_id=held.id,
                    association_id=reception.association,
                    transfer_syntax=reception.transfer_syntax,
                    path=stored.name,
                    sha256=digest,
                    size=stored.size,
                    received_at=node.now(),
                )
            )
            alert_once(
                session,
                node.now(),
                "conflicting instance",
                held.sop_instance_uid,
                "came again with other content; see `dicom-node instances list`",
            )
    except IntegrityError:  # the same bytes on two associations at once
        node.instances.remove(stored.name)
