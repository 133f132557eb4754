"""Owns transaction T1: an instance becomes durable, then it is acknowledged.

Refuses to know sockets and statuses: the listener hands over bytes and gets an outcome or an
error of ``dicom_node.errors``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, faults
from dicom_node.domain.study import StudyState
from dicom_node.errors import ConflictingInstance
from dicom_node.services import audit
from dicom_node.services.alerts import alert_once
from dicom_node.services.context import Node
from dicom_node.services.enter import Entry, enter, is_own_series
from dicom_node.services.headers import (
    Header,
    check_identity,
    facts_of,
    patient_of,
    scan_header,
    study_uid_of,
)
from dicom_node.services.same import same_content
from dicom_node.store.database import CommitUnknown
from dicom_node.store.files import Stored
from dicom_node.store.tables import (
    Association,
    Expectation,
    Instance,
    Quarantined,
    Result,
    Study,
)

log = structlog.get_logger(__name__)

AT_ONCE = 5000
"""UIDs in one statement."""


@dataclass(frozen=True)
class Arrival:
    """A C-STORE request without its data set.

    Attributes:
        transfer_syntax: of the data set, the accepted one of its presentation context.
        sop_class_uid: Affected SOP Class UID of the request.
        sop_instance_uid: Affected SOP Instance UID of the request.
        association: the row that ``open_association`` returned.
    """

    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    association: int


@dataclass(frozen=True)
class Reception:
    """One C-STORE request with its whole data set.

    Attributes:
        dataset: as encoded, byte for byte, without file meta information.
        transfer_syntax: as in `Arrival`, and so are the others.
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


class Intake:
    """One instance on its way in: to a file as it comes; at the end durable, or gone.

    Args:
        arrival: what is about to come.

    Raises:
        Unavailable: disk or database cannot take it now.
    """

    def __init__(self, node: Node, arrival: Arrival) -> None:
        self._node, self._arrival = node, arrival
        self._known = _known(node, arrival)
        self._draft = node.instances.begin(_head(arrival))

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the data set.

        Raises:
            Unavailable: the disk cannot take them.
        """
        self._draft.write(piece)

    def finish(self) -> Outcome:
        """Make it durable: file, directory, row; when this returns, 0x0000 is true.

        Raises:
            RefusedInstance: one of its kinds; nothing is kept, but a conflicting one in quarantine.
            Unavailable: disk or database cannot take it now; nothing is acknowledged.
        """
        try:
            return self._finish()
        finally:
            self._draft.drop()

    def drop(self) -> None:
        """Keep nothing of it; harmless at the end."""
        self._draft.drop()

    def _finish(self) -> Outcome:
        node, arrival, body = self._node, self._arrival, self._draft.body()
        header = scan_header(body, arrival.transfer_syntax)
        check_identity(header, arrival.sop_class_uid, arrival.sop_instance_uid)
        digest, known = self._draft.sha256, self._known
        if known.held:  # a purge may have begun since
            known = _known(node, arrival)
        if not known.held:
            stored = self._draft.keep(".dcm")
            with _or_none(node, stored):
                is_first = enter(node.database, _entry(node, arrival, header, stored, known))
            if is_first:
                faults.step("committed", "receive")
                return Outcome.STORED
            node.instances.remove(stored.name)  # another association was first
            known = _known(node, arrival)
        if known.sha256 == digest:
            _see_held_file(node, arrival, known, body)
            return Outcome.DUPLICATE
        held = node.instances.path(known.path)
        if same_content(held, known.transfer_syntax, body, arrival.transfer_syntax):
            return Outcome.OTHER_ENCODING
        _quarantine(node, arrival, known, digest, body)
        raise ConflictingInstance("held with other content", arrival.sop_instance_uid)


def receive_instance(node: Node, reception: Reception) -> Outcome:
    """What `Intake` does, of an instance that is all here."""
    arrival = Arrival(
        reception.transfer_syntax,
        reception.sop_class_uid,
        reception.sop_instance_uid,
        reception.association,
    )
    intake = Intake(node, arrival)
    try:
        intake.write(reception.dataset)
        return intake.finish()
    finally:
        intake.drop()


def part10_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 section 7.1)."""
    uids = (
        (0x0002, sop_class_uid),
        (0x0003, sop_instance_uid),
        (0x0010, transfer_syntax),
        (0x0012, IMPLEMENTATION_CLASS_UID),
    )
    meta = struct.pack("<HH2sHL2s", 2, 1, b"OB", 0, 2, b"\0\1")
    meta += b"".join(_meta(element, b"UI", uid, b"\0") for element, uid in uids)
    meta += _meta(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" ")
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def _meta(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii")
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


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
    audit.received(node, association)
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


def expect(
    node: Node, source: str, study_uid: str | None, sop_instance_uids: Sequence[str]
) -> None:
    """Record what somebody told belongs to a study; evidence for completion.

    Args:
        study_uid: None when only instances are told (storage commitment); then the study is that
            of the instances already held.
    """
    with node.database.transaction() as session:
        for uids in _some_at_a_time(sop_instance_uids):
            study_uid = study_uid or session.scalar(
                select(Study.study_instance_uid)
                .join(Study.instances)
                .where(Instance.sop_instance_uid.in_(uids))
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


def commit(node: Node, references: Mapping[str, str]) -> dict[str, str]:
    """Which of the instances are durable here, a row and its file seen.

    Those of the class that is told are kept from now on: the promise is in the database before
    anybody hears of it, and binds the purge (``services.purge``) until an archive holds them.

    Args:
        references: SOP Class UID by SOP Instance UID.

    Returns:
        The same of what is here; another class than was told is no promise.
    """
    held = {}
    with node.database.transaction() as session:
        for uids in _some_at_a_time(sorted(references)):
            rows = session.scalars(
                select(Instance)
                .where(Instance.sop_instance_uid.in_(uids), Instance.purging_at.is_(None))
                .with_for_update()
            )
            for row in rows:
                uid, sop_class = row.sop_instance_uid, row.sop_class_uid
                if node.instances.path(row.path).is_file():
                    held[uid] = sop_class
                    if references[uid] == sop_class:
                        row.committed_at = row.committed_at or node.now()
    return held


def _some_at_a_time(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    """A request may name more than a statement may (SQLite 32,766, PostgreSQL 65,535)."""
    return (uids[at : at + AT_ONCE] for at in range(0, len(uids), AT_ONCE))


def _head(arrival: Arrival) -> bytes:
    return part10_head(arrival.sop_class_uid, arrival.sop_instance_uid, arrival.transfer_syntax)


def _write(node: Node, arrival: Arrival, suffix: str, body: memoryview) -> Stored:
    return node.instances.write(suffix, _head(arrival), [body])


@dataclass(frozen=True)
class _Known:
    """What the database knows of an arrival: its sender, and the instance if it is held.

    Attributes:
        own: the result that it is, if this node built it.
        id: of the instance's row; None, and so is what follows, where there is none.
        purging_at: since when nobody relies on its file.
    """

    calling_ae: str
    called_ae: str
    own: int | None
    id: int | None
    path: str
    sha256: str
    transfer_syntax: str
    purging_at: datetime | None

    @property
    def held(self) -> bool:
        """Whether it is here; what was purged and comes again is stored again."""
        return self.id is not None and self.purging_at is None


_KNOWN = (
    select(
        Association.calling_ae,
        Association.called_ae,
        Result.id,
        Instance.id,
        Instance.path,
        Instance.sha256,
        Instance.transfer_syntax,
        Instance.purging_at,
    )
    .select_from(Association)
    .outerjoin(Result, Result.sop_instance_uid == bindparam("instance"))
    .outerjoin(Instance, Instance.sop_instance_uid == bindparam("instance"))
    .where(Association.id == bindparam("association"))
)


def _known(node: Node, arrival: Arrival) -> _Known:
    named = {"instance": arrival.sop_instance_uid, "association": arrival.association}
    with node.database.looking() as connection:
        return _Known(*connection.execute(_KNOWN, named).one())


def _entry(node: Node, arrival: Arrival, header: Header, stored: Stored, known: _Known) -> Entry:
    facts = facts_of(header, stored.sha256, known.calling_ae, known.called_ae)
    series = facts.series_instance_uid
    return Entry(
        study_uid=study_uid_of(header),
        patient=patient_of(header),
        facts=facts,
        own=known.own is not None or is_own_series(node.database, series),
        transfer_syntax=arrival.transfer_syntax,
        association=arrival.association,
        stored=stored,
        received_at=node.now(),
        again=known.id is not None,
    )


def _see_held_file(node: Node, arrival: Arrival, held: _Known, body: memoryview) -> None:
    """A duplicate is acknowledged only when the held file is there; else it takes its place."""
    if node.instances.path(held.path).is_file():
        return
    stored = _write(node, arrival, ".dcm", body)
    with _or_none(node, stored), node.database.transaction() as session:
        row = session.get_one(Instance, held.id)
        row.path = stored.name
        row.purging_at = row.purged_at = None  # where a purge was what took it
    uid = arrival.sop_instance_uid
    log.warning("held file was missing and is replaced", sop_instance_uid=uid)


def _quarantine(node: Node, arrival: Arrival, held: _Known, digest: str, body: memoryview) -> None:
    with node.database.reading() as session:
        same = select(Quarantined.id).where(
            Quarantined.instance_id == held.id, Quarantined.sha256 == digest
        )
        if session.scalar(same) is not None:
            return
    stored = _write(node, arrival, ".quarantined", body)
    # Refused as a duplicate where the same bytes come on two associations at once.
    with suppress(IntegrityError), _or_none(node, stored), node.database.transaction() as session:
        session.add(
            Quarantined(
                instance_id=held.id,
                association_id=arrival.association,
                transfer_syntax=arrival.transfer_syntax,
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
            arrival.sop_instance_uid,
            "came again with other content; see `dicom-node instances list`",
        )


@contextmanager
def _or_none(node: Node, stored: Stored) -> Iterator[None]:
    """A file whose row is certainly not there goes; where nobody knows, the sweep decides."""
    try:
        yield
    except CommitUnknown:
        raise
    except BaseException:
        node.instances.remove(stored.name)
        raise
