"""Owns the rows of instances that are on disk: one transaction for all that are entered at once.

Refuses to know files and bytes. An instance that somebody else entered first stays theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, bindparam, case, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dicom_node import faults
from dicom_node.domain.loops import why_ignored
from dicom_node.domain.study import InstanceFacts, Patient, StudyState
from dicom_node.errors import ConflictingInstance
from dicom_node.store.database import Database
from dicom_node.store.files import Stored
from dicom_node.store.tables import Base, Instance, Result, Study

RACES = 5
"""Times that other processes may enter the same study or instance at the same moment."""
REMEMBERED_SERIES = 4096

# Statements are built once: building costs as much as running them. They update one row and insert
# one, whatever the study holds already.
_INSTANCES, _STUDIES = Base.metadata.tables["instances"], Base.metadata.tables["studies"]
_is_closed = _STUDIES.c.state == StudyState.CLOSED
_SEE = select(Study.id).where(Study.study_instance_uid == bindparam("study"))
_COME = (
    update(_STUDIES)
    .where(_STUDIES.c.study_instance_uid == bindparam("study"))
    .values(
        last_at=bindparam("at"),
        # The scheduler weighs the evidence; nothing is decided on the C-STORE path.
        check_at=bindparam("at"),
        # A late instance opens a new revision.
        opened_at=case((_is_closed, bindparam("at")), else_=_STUDIES.c.opened_at),
        state=case((_is_closed, StudyState.OPEN), else_=_STUDIES.c.state),
    )
)
_ENTER = insert(_INSTANCES).values(study_id=_SEE.scalar_subquery())
_THERE = select(Instance.id).where(
    Instance.sop_instance_uid == bindparam("instance"), Instance.purging_at.is_(None)
)
_PURGED = (
    select(Study.study_instance_uid, Instance.sha256)
    .join(Study.instances)
    .where(Instance.sop_instance_uid == bindparam("instance"), Instance.purging_at.is_not(None))
)
_RESTORE = (
    update(_INSTANCES)
    .where(
        _INSTANCES.c.sop_instance_uid == bindparam("instance"),
        _INSTANCES.c.purging_at.is_not(None),
    )
    # What was promised of the former file was kept; an archive may hold other bytes than these.
    .values(purging_at=None, purged_at=None, committed_at=None, archived_at=None)
)
_OWN_SERIES = select(Result.id).where(Result.series_instance_uid == bindparam("series")).limit(1)


@dataclass(frozen=True)
class Entry:
    """What is about to become a row.

    Attributes:
        own: it, or its series, was built by this node.
        received_at: decides the study's times too.
        again: it has a row, and its file was purged.
    """

    study_uid: str
    patient: Patient
    facts: InstanceFacts
    own: bool
    transfer_syntax: str
    association: int
    stored: Stored
    received_at: datetime
    again: bool = False

    @property
    def note(self) -> str:
        """Why it opens no revision; empty when it does."""
        return why_ignored(self.facts.sop_class, self.facts.modality, self.own)


def enter(database: Database, entry: Entry) -> bool:
    """Commit it, perhaps with others; False where the instance was there already.

    Raises:
        ConflictingInstance: it was purged, and came in another study then.
        Unavailable: the database cannot take it now.
    """
    group = database.group(_insert)
    for left in range(RACES, -1, -1):
        try:
            return group.submit(entry)
        except IntegrityError:  # entered meanwhile, it or its study
            with database.looking() as connection:
                named = {"instance": entry.facts.sop_instance_uid}
                if connection.scalar(_THERE, named) is not None:
                    return False
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _insert(connection: Connection, entries: Sequence[Entry]) -> list[bool]:
    """The rows of several receptions; which of them are new.

    Raises:
        IntegrityError: somebody else entered one of them, or its study, meanwhile.
        ConflictingInstance: one was purged, and came in another study then.
    """
    fresh: dict[str, Entry] = {}
    for entry in entries:
        fresh.setdefault(entry.facts.sop_instance_uid, entry)
    studies: dict[str, list[Entry]] = {}
    for entry in fresh.values():
        studies.setdefault(entry.study_uid, []).append(entry)
    known = _come_back(connection, fresh.values())
    # In one order everywhere: processes that lock rows in several could wait for each other.
    for uid in sorted(studies):
        _come(connection, studies[uid], known)
    rows = []
    for uid, entry in sorted(fresh.items()):
        # Where another came back first, the insertion fails and says so.
        if not entry.again or not _restore(connection, entry, uid in known):
            rows.append(_row(entry))
    if rows:
        connection.execute(_ENTER, rows)
    faults.step("commit", "receive")
    return [fresh[entry.facts.sop_instance_uid] is entry for entry in entries]


def _come_back(connection: Connection, entries: Iterable[Entry]) -> set[str]:
    """Those whose purged bytes come back: nothing follows, but that a rerun can read them."""
    known = set()
    for entry in entries:
        if not entry.again:
            continue
        uid = entry.facts.sop_instance_uid
        purged = connection.execute(_PURGED, {"instance": uid}).one_or_none()
        if purged and purged.study_instance_uid != entry.study_uid:
            raise ConflictingInstance("known in another study, and purged", uid)
        if purged and purged.sha256 == entry.stored.sha256:
            known.add(uid)
    return known


def _restore(connection: Connection, entry: Entry, is_known: bool) -> bool:
    """Give a purged row its new file; False where it is purged no more.

    Args:
        is_known: the bytes are those that were purged; then what an administrator passed over stays
            passed over.
    """
    kept = {"study", "sop_instance_uid"} | ({"counts", "note"} if is_known else set())
    values = {name: value for name, value in _row(entry).items() if name not in kept}
    named = {"instance": entry.facts.sop_instance_uid}
    return connection.execute(_RESTORE, {**values, **named}).rowcount == 1


def _come(connection: Connection, entries: Sequence[Entry], known: set[str]) -> None:
    """The study of the entries learns that they came; it is made where it is new."""
    first, uid = entries[0], {"study": entries[0].study_uid}
    came = [
        entry.received_at
        for entry in entries
        if not entry.note and entry.facts.sop_instance_uid not in known
    ]
    if came:
        seen = connection.execute(_COME, {**uid, "at": max(came)}).rowcount == 1
    else:
        seen = connection.scalar(_SEE, uid) is not None
    if not seen:
        at = max(came, default=first.received_at)
        row = {
            "study_instance_uid": first.study_uid,
            "state": StudyState.OPEN if came else StudyState.CLOSED,
            "patient_id": first.patient.patient_id,
            "patient_issuer": first.patient.issuer,
            "first_at": min(entry.received_at for entry in entries),
            "opened_at": at,
            "last_at": at,
            "waiting_for": "",
            "check_at": at if came else None,
        }
        connection.execute(insert(_STUDIES), row)


def _row(entry: Entry) -> dict[str, object]:
    return {
        "study": entry.study_uid,
        "association_id": entry.association,
        "sop_instance_uid": entry.facts.sop_instance_uid,
        "sop_class_uid": entry.facts.sop_class_uid,
        "series_instance_uid": entry.facts.series_instance_uid,
        "transfer_syntax": entry.transfer_syntax,
        "path": entry.stored.name,
        "sha256": entry.stored.sha256,
        "size": entry.stored.size,
        "received_at": entry.received_at,
        "counts": not entry.note,
        "note": entry.note,
        "patient_id": entry.patient.patient_id,
        "patient_issuer": entry.patient.issuer,
        "facts": dict(vars(entry.facts)),
    }


_foreign: WeakKeyDictionary[Database, set[str]] = WeakKeyDictionary()


def is_own_series(database: Database, uid: str) -> bool:
    """Whether this node built a series.

    What is not ours stays so, for the UIDs of ours are a digest of what they are made of; so that
    much is remembered.
    """
    foreign = _foreign.setdefault(database, set())
    if uid in foreign:
        return False
    with database.looking() as connection:
        if connection.scalar(_OWN_SERIES, {"series": uid}) is not None:
            return True
    if len(foreign) >= REMEMBERED_SERIES:
        foreign.clear()
    foreign.add(uid)
    return False


def is_own(session: Session, sop_instance_uid: str, series_instance_uid: str) -> bool:
    """Whether this node built it, or a series of ours holds it; asked anew."""
    ours = select(Result.id).where(
        (Result.sop_instance_uid == sop_instance_uid)
        | (Result.series_instance_uid == series_instance_uid)
    )
    return session.scalar(ours.limit(1)) is not None
