"""Owns what the node audits: it turns rows into the messages of ``dicom_node.audit``.

Nothing here raises or holds up its caller: an event that cannot be recorded waits in memory, is
logged, and raises an alert. Transfers are told once for each association and study, not for each
instance, from the rows, so that they are told too of a listener that was killed: before an
association is marked closed, hence at least once. Likewise a delivery before its answer is
recorded, and a purge before its files go.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, cast

import structlog
from sqlalchemy import ColumnElement, func, select

from dicom_node.audit import messages, who
from dicom_node.audit.messages import Action, Message, Outcome, Participant
from dicom_node.audit.syslog import Shipper
from dicom_node.domain.study import Patient
from dicom_node.errors import NodeError
from dicom_node.services.alerts import alert_once, resolve_alerts
from dicom_node.services.alerts import fault as fault_of
from dicom_node.services.context import Node
from dicom_node.store.tables import (
    Association,
    Instance,
    Job,
    Process,
    Quarantined,
    Result,
    Revision,
    Study,
)

ALERT = "audit trail"
UNSHIPPED = "audit not shipped"
LONG = 600.0
"""Seconds that a receiver may be away before somebody is called; nothing is lost meanwhile."""

P = ParamSpec("P")

log = structlog.get_logger(__name__)


def _guarded(audit: Callable[P, None]) -> Callable[P, None]:
    """What is audited has happened: whatever goes wrong here must not undo it."""

    @wraps(audit)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            audit(*args, **kwargs)
        except Exception as error:
            reason = str(error) if isinstance(error, NodeError) else fault_of(error)
            log.error("not audited", what=audit.__name__, reason=reason)

    return guarded


@_guarded
def record(node: Node, *told: Message) -> None:
    """Write messages into the trail; where it does not take them, somebody is told."""
    before = node.audit.fault
    fault = node.audit.record(*told)
    if fault and fault != before:
        _alert(node, f"{fault}; see to the disk and the folder's rights, messages wait in memory")
    elif before and not fault:
        _resolve(node)


@_guarded
def started(node: Node) -> None:
    """A role of the node starts."""
    record(node, messages.activity(True, node.now(), node.audit.process))
    if not node.audit.fault:
        _resolve(node)  # what the one before it could not write is over


@_guarded
def ended(node: Node, processes: Collection[str]) -> None:
    """Processes are no more: this one, which stops, or others, which died and could not say so."""
    with node.database.reading() as session:
        rows = session.scalars(
            select(Process).where(Process.id.in_(processes), Process.ended_at.is_(None))
        ).all()
        cut = session.scalars(
            select(Association.id).where(
                Association.process_id.in_(processes), Association.closed_at.is_(None)
            )
        ).all()
    for association in cut:
        received(node, association)
    for row in rows:
        if row.id == node.id:
            left = node.audit.refusals.left().items()
            told = [_refused(node, address, reason, "", count) for (address, reason), count in left]
            record(node, *told, messages.activity(False, node.now(), node.audit.process))
            node.audit.flush()
            continue
        host, title = row.host.partition(" ")[0], node.settings.listener.ae_title
        process = who.process(row.role, title, pid=row.pid, host=host)
        why = "it died: no heartbeat, or no such process; told by another process"
        stop = messages.activity(False, node.now(), process, None, Outcome.SERIOUS, why)
        record(node, stop)


@_guarded
def accepted(node: Node, calling: str, address: str) -> None:
    """An association is let in; recorded where ``audit.accepted`` says so."""
    if node.audit.accepted_too:
        told = _authentication(node, Outcome.SUCCESS, calling, address, "association accepted")
        record(node, told)


@_guarded
def refused(node: Node, address: str, reason: str, calling: str = "") -> None:
    """A peer is turned away: an association rejected, a certificate or an identity not accepted.

    The same from the same address is told once a minute, with the number of the others.

    Args:
        reason: in words; names no patient.
        calling: AE title that it claims; empty where it did not come so far.
    """
    # Not by the title: who guesses titles would write one message for each.
    held_back = node.audit.refusals.passes((address, reason))
    if held_back is not None:
        record(node, _refused(node, address, reason, calling, held_back))


@_guarded
def received(node: Node, association: int) -> None:
    """What one inbound association brought, by study; called before it is marked closed."""
    with node.database.reading() as session:
        row = session.get(Association, association)
        taken = _studies(session, Instance.association_id == association)
        put_aside = _studies(session, Quarantined.association_id == association, True)
    if row is None:
        return
    source = replace(who.peer(row.calling_ae, row.address), requestor=True)
    told: list[Message] = []
    for study, began in taken:
        told.append(messages.begin_transfer(began, source, node.audit.process, study))
        told.append(messages.transferred(node.now(), source, node.audit.process, study))
    for study, _ in put_aside:
        why = "held with other content: the newcomers are in quarantine"
        told.append(
            messages.transferred(
                node.now(),
                source,
                node.audit.process,
                study,
                action=Action.UPDATE,
                outcome=Outcome.MINOR,
                why=why,
            )
        )
    if told:
        record(node, *told)


@_guarded
def delivered(
    node: Node, place: Participant, began: datetime, study: messages.Study, lost: str = ""
) -> None:
    """What a destination took for good, or was given up; called before that is recorded.

    Attempts that will be repeated are in `dicom-node deliveries show`, not here.

    Args:
        place: the destination.
        began: when the attempt did.
        study: with what was sent of it.
        lost: why it was given up; empty: it arrived.
    """
    source = replace(node.audit.process, requestor=True)
    outcome = Outcome.SERIOUS if lost else Outcome.SUCCESS
    told = [] if lost else [messages.begin_transfer(began, source, place, study)]
    moved = messages.transferred(node.now(), source, place, study, outcome=outcome, why=lost)
    record(node, *told, moved)


@_guarded
def accessed(node: Node, action: Action, uid: str, by: Sequence[Participant]) -> None:
    """Somebody looked at a study or altered it.

    Args:
        uid: Study Instance UID.
        by: one or two, a person and a process.
    """
    with node.database.reading() as session:
        studies = _studies(session, Study.study_instance_uid == uid)
    record(node, *(messages.accessed(node.now(), action, by, study) for study, _ in studies))


@_guarded
def deleted(node: Node, rows: Sequence[Instance | Quarantined | Result]) -> None:
    """Files are about to be removed; who is cut off tells it again when he goes on.

    A study of which every image goes is told as deleted, else as accessed to delete.

    Args:
        rows: those that are marked, of one kind.
    """
    by = (who.person(), node.audit.process) if node.role == "cli" else (node.audit.process,)
    held: dict[str, int] = {}
    which: ColumnElement[bool]
    with node.database.reading() as session:
        if isinstance(rows[0], Result):
            going = _results(session, [row.id for row in rows])
        elif isinstance(rows[0], Quarantined):
            which = Quarantined.id.in_([row.id for row in rows])
            going = [study for study, _ in _studies(session, which, True)]
        else:
            there = Instance.purged_at.is_(None)
            of = {row.study_id for row in cast(Sequence[Instance], rows)}  # not by a thousand ids
            which = Instance.study_id.in_(of) & Instance.purging_at.is_not(None) & there
            going = [study for study, _ in _studies(session, which)]
            counted = select(Study.study_instance_uid, func.count(Instance.id)).join(Instance)
            counted = counted.where(Study.id.in_(of), there).group_by(Study.study_instance_uid)
            held = dict(session.execute(counted).all())
    leaving: Counter[str] = Counter()
    for study in going:
        leaving[study.uid] += sum(study.sop_classes.values())
    told = (
        messages.study_deleted(node.now(), by, study)
        if leaving[study.uid] == held.get(study.uid)
        else messages.accessed(node.now(), Action.DELETE, by, study)
        for study in going
    )
    record(node, *told)


def _results(session: Any, results: Sequence[int]) -> list[messages.Study]:
    """Results by study, counted by SOP class."""
    query = (
        select(Study, Result.sop_class_uid)
        .join(Revision, Revision.study_id == Study.id)
        .join(Job, Job.revision_id == Revision.id)
        .join(Result, Result.job_id == Job.id)
        .where(Result.id.in_(results))
    )
    counts: defaultdict[Study, Counter[str]] = defaultdict(Counter)
    for study, sop_class in session.execute(query):
        counts[study][sop_class] += 1
    return [
        messages.Study(of.study_instance_uid, Patient(of.patient_id, of.patient_issuer), classes)
        for of, classes in counts.items()
    ]


def _studies(
    session: Any, which: ColumnElement[bool], quarantined: bool = False
) -> list[tuple[messages.Study, datetime]]:
    """Instances by study and patient, counted by SOP class, and when the first of them came."""
    came = Quarantined.received_at if quarantined else Instance.received_at
    keys = (Study.study_instance_uid, Instance.patient_id, Instance.patient_issuer)
    query = (
        select(*keys, Instance.sop_class_uid, func.count(), func.min(came))
        .join(Study, Instance.study_id == Study.id)
        .where(which)
        .group_by(*keys, Instance.sop_class_uid)
        .order_by(func.min(came))
    )
    if quarantined:
        query = query.join(Quarantined, Quarantined.instance_id == Instance.id)
    counts: defaultdict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    first: dict[tuple[str, str, str], datetime] = {}
    for uid, patient_id, issuer, sop_class, count, at in session.execute(query):
        key = (uid, patient_id, issuer)
        counts[key][sop_class] = count
        first.setdefault(key, at)
    return [
        (messages.Study(key[0], Patient(key[1], key[2]), classes), first[key])
        for key, classes in counts.items()
    ]


def _refused(node: Node, address: str, reason: str, calling: str = "", others: int = 0) -> Message:
    text = f"{reason}; {others} more like it before" if others else reason
    return _authentication(node, Outcome.MINOR, calling, address, text)


def _authentication(node: Node, outcome: Outcome, calling: str, address: str, text: str) -> Message:
    return messages.security_alert(
        node.now(),
        messages.NODE_AUTHENTICATION,
        (node.audit.process,),
        text,
        subject=address,
        subject_kind=messages.NODE_ID,
        performer=who.peer(calling, address) if calling else Participant(address, address=address),
        outcome=outcome,
    )


@contextmanager
def shipping(node: Node) -> Iterator[None]:
    """Keep the log on disk and ship it, in a thread, while the block runs."""
    stop, receiver = threading.Event(), node.settings.audit.receiver[:64]  # of an alert's subject
    failing_since: list[float] = []

    @_guarded
    def report(fault: str) -> None:
        if not fault:
            failing_since.clear()
            _resolve(node, UNSHIPPED, receiver)
            return
        failing_since[1:] = [time.monotonic()]
        if failing_since[-1] - failing_since[0] > LONG:
            _alert(node, f"{fault}; the records wait here", UNSHIPPED, receiver)

    shipper = Shipper(node.audit.trail, node.settings.audit)
    thread = threading.Thread(target=shipper.run, args=(stop, report), name="audit", daemon=True)
    if node.settings.audit.enabled:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(node.settings.audit.timeout)


def standing(node: Node) -> dict[str, Any]:
    """How the trail stands: its last record, and what of it the receiver has.

    Raises:
        Unavailable: it cannot be read.
    """
    shipper = Shipper(node.audit.trail, node.settings.audit)
    done, receiver = shipper.shipped(), node.settings.audit.receiver
    return {
        "records": node.audit.trail.head().sequence,
        "receiver": receiver or None,
        "waiting": shipper.waiting() if receiver else 0,
        "shipped_at": datetime.fromisoformat(done.at) if done.at else None,
        "fault": done.fault,
    }


def _alert(node: Node, text: str, kind: str = ALERT, subject: str = "") -> None:
    try:
        with node.database.transaction() as session:
            alert_once(session, node.now(), kind, subject or node.role, text)
    except NodeError as error:  # a full disk takes no alert either; the log line stands
        log.error("no alert", kind=kind, reason=str(error))


def _resolve(node: Node, kind: str = ALERT, subject: str = "") -> None:
    try:
        with node.database.transaction() as session:
            resolve_alerts(session, node.now(), kind, subject or node.role)
    except NodeError as error:
        log.error("alert not resolved", kind=kind, reason=str(error))
