"""Owns the purge: files that nothing needs any more go, their rows stay and say when.

By state first and by age second (``domain.retention``). A row is marked in a transaction that has
seen all that could forbid it; its file goes after the commit; then the row says so. A crash in
between leaves a marked row, which `finish` completes, at start and before each purge. From the mark
on nobody relies on the file, and what comes again is written under a name of its own: so no order
of events removes the wrong one.

What goes is told to the audit trail. Refuses to know sockets, and never removes a result that
was sent nowhere: it is the only copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, aliased

from dicom_node.destinations.build import build
from dicom_node.domain.job import JobState
from dicom_node.domain.retention import StudyFacts, asks_commitment, why_kept, why_undelivered
from dicom_node.errors import NodeError
from dicom_node.services import audit
from dicom_node.services.context import Node
from dicom_node.services.forms import without_layout
from dicom_node.services.send import item_of
from dicom_node.store.files import Folder
from dicom_node.store.tables import (
    Delivery,
    Destination,
    Instance,
    Job,
    Quarantined,
    Result,
    Revision,
    Study,
)

log = structlog.get_logger(__name__)

NOT_ARCHIVED = "committed to a modality, and no archive says that it holds it"
WHICH = "committed to a modality, and came with other content: no archive says which it holds"
FOR_EVER = "nothing else holds it"
Row = Instance | Result | Quarantined

_TWO_CONTENTS = select(Quarantined.id).where(Quarantined.instance_id == Instance.id).exists()


@dataclass
class Told:
    """What a purge did, or would do.

    Attributes:
        dry_run: nothing was removed.
        files: by kind: instances, results, predictions, quarantine.
        size: bytes of them; predictions not counted.
        kept: studies, results of a job or instances in quarantine that stay, by reason.
    """

    dry_run: bool
    files: Counter[str] = field(default_factory=Counter)
    size: int = 0
    kept: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, rows: Sequence[Row]) -> None:
        """Files of one kind, with their sizes."""
        self.files += Counter({kind: len(rows)})
        self.size += sum(row.size for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "dry_run": self.dry_run,
            "files": dict(self.files),
            "bytes": self.size,
            "kept": dict(self.kept),
        }


def purge(
    node: Node,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Told:
    """Remove the files that may go by the settings' ``retention``.

    Args:
        node: whose files.
        dry_run: only tell what would go; archives are asked, nothing is written.
        progress: told how many studies and jobs of how many were looked at.
    """
    told, settings, now = Told(dry_run), node.settings.retention, node.now()
    if not dry_run:
        finish(node)
    steps: list[Callable[[], None]] = []
    if settings.instances:
        keep = timedelta(days=settings.instances)
        studies = _old_studies(node, now - keep)
        steps += [lambda s=s: _purge_study(node, s, keep, told) for s in studies]  # type: ignore[misc] # a default binds the loop's value
    if settings.results:
        jobs = _old_jobs(node, now - timedelta(days=settings.results))
        steps += [lambda j=j: _purge_job(node, j, told) for j in jobs]  # type: ignore[misc] # as above
    if settings.quarantine:
        before = now - timedelta(days=settings.quarantine)
        steps.append(lambda: _purge_quarantine(node, before, told))
    for number, step in enumerate(steps):
        progress(number, len(steps))
        step()
    progress(len(steps), len(steps))
    if told.files:
        log.info("purge", **told.as_dict())
    return told


def finish(node: Node) -> int:
    """Remove what is marked and still has its file, as after a crash; how many rows there were."""
    done = 0
    for table, folder in _tables(node):
        with node.database.reading() as session:
            marked = select(table).where(table.purging_at.is_not(None), table.purged_at.is_(None))
            rows: list[Any] = list(session.scalars(marked))
        _remove(node, folder, rows)
        done += len(rows)
    return done


def _tables(node: Node) -> tuple[tuple[type[Row], Folder], ...]:
    return ((Instance, node.instances), (Quarantined, node.instances), (Result, node.results))


def _remove(node: Node, folder: Folder, rows: Sequence[Row]) -> None:
    """The files of marked rows, then the rows' last word; one that came again has another file."""
    if not rows:
        return
    audit.deleted(node, rows)
    for row in rows:
        folder.remove(row.path)
    table = type(rows[0])
    with node.database.transaction() as session:
        for row in rows:
            if folder.path(row.path).exists():  # the disk did not let go: next time
                continue
            session.execute(
                update(table)
                .where(table.id == row.id, table.path == row.path, table.purging_at.is_not(None))
                .values(purged_at=node.now())
                .execution_options(synchronize_session=False)
            )


# Images


def _old_studies(node: Node, before: datetime) -> list[int]:
    """Studies with images that are there, the youngest of which came before this time."""
    there = (
        select(Instance.study_id)
        .group_by(Instance.study_id)
        .having(func.max(Instance.received_at) <= before)
        .having(func.count() > func.count(Instance.purging_at))
        .order_by(Instance.study_id)
    )
    with node.database.reading() as session:
        return list(session.scalars(there))


def _purge_study(node: Node, study_id: int, keep: timedelta, told: Told) -> None:
    with node.database.reading() as session:
        study = session.get_one(Study, study_id)
        reason = why_kept(_facts(session, study), node.now(), keep)
        rows = [row for row in study.instances if row.purging_at is None]
        twice = select(Instance.id).where(Instance.study_id == study_id, _TWO_CONTENTS)
        unclear = {row.id for row in rows if row.committed_at} & set(session.scalars(twice))
    if reason:
        told.kept[reason] += 1
        return
    rows = [row for row in rows if row.id not in unclear]
    owed = [row for row in rows if row.committed_at and not row.archived_at]
    archived = _archived(node, owed)
    unsafe = {row.id for row in owed if row.sop_instance_uid not in archived}
    told.kept += Counter({WHICH: bool(unclear), NOT_ARCHIVED: bool(unsafe)})
    rows = [row for row in rows if row.id not in unsafe]
    if not told.dry_run:
        with node.database.transaction() as session:
            _note_archived(session, node, [row for row in owed if row.id not in unsafe])
            rows = _mark_images(session, node, study_id, {row.id for row in rows}, keep)
        _remove(node, node.instances, rows)
    told.count("instances", rows)
    if rows and not told.dry_run:
        log.info("images purged", study=study.study_instance_uid, instances=len(rows))


def _mark_images(
    session: Session, node: Node, study_id: int, ids: set[int], keep: timedelta
) -> list[Instance]:
    """Mark, unless something has changed: the study's lock keeps new images and reruns out."""
    study = session.scalars(select(Study).where(Study.id == study_id).with_for_update()).one()
    if why_kept(_facts(session, study), node.now(), keep):
        return []
    rows = session.scalars(
        select(Instance)
        .where(
            Instance.study_id == study_id,
            Instance.purging_at.is_(None),
            # Committed a moment ago: its row changes under the same lock of the row.
            Instance.committed_at.is_(None) | Instance.archived_at.is_not(None) & ~_TWO_CONTENTS,
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    chosen = [row for row in rows if row.id in ids]
    for row in chosen:
        row.purging_at = node.now()
    return chosen


def _facts(session: Session, study: Study) -> StudyFacts:
    youngest = session.scalar(
        select(func.max(Instance.received_at)).where(Instance.study_id == study.id)
    )
    successor = aliased(Job)
    again = select(successor.id).where(
        successor.predecessor_id == Job.id, successor.state != JobState.CANCELLED
    )
    of_study = Job.revision_id.in_(select(Revision.id).where(Revision.study_id == study.id))
    jobs = session.scalars(
        select(Job.state).where(of_study, (Job.state != JobState.DEAD) | ~again.exists())
    ).all()
    unsent = without_layout().where(of_study).limit(1)
    waiting = (
        select(func.count(Quarantined.id))
        .join(Instance)
        .where(Instance.study_id == study.id, Quarantined.resolved_at.is_(None))
    )
    return StudyFacts(
        state=study.state,
        youngest=youngest or study.last_at,
        jobs=jobs,
        deliveries=_deliveries(session, of_study),
        unsent=len(session.execute(unsent).all()),
        quarantined=session.scalar(waiting) or 0,
    )


def _deliveries(session: Session, of_jobs: Any) -> set[tuple[str, bool]]:
    rows = session.execute(
        select(Delivery.state, Destination.config)
        .join(Destination)
        .join(Result, Result.id == Delivery.result_id)
        .join(Job)
        .where(of_jobs)
    )
    return {(state, asks_commitment(config)) for state, config in rows}


def _archived(node: Node, owed: Sequence[Instance]) -> set[str]:
    """Those that a destination flagged as archive tells that it holds."""
    if not owed:
        return set()
    items = [item_of(node.instances, row) for row in owed]
    found: set[str] = set()
    with node.database.reading() as session:
        archives = [d for d in session.scalars(select(Destination)) if d.config.get("archive")]
    for archive in archives:
        try:
            found |= build(archive.kind, archive.config, node.settings).confirm(items)
        except NodeError as error:
            log.warning("archive not asked", destination=archive.name, reason=str(error))
    return found


def _note_archived(session: Session, node: Node, rows: Iterable[Instance]) -> None:
    for row in rows:
        session.get_one(Instance, row.id).archived_at = node.now()
    session.flush()


# Results


def _old_jobs(node: Node, before: datetime) -> list[int]:
    """Jobs with results that are there, the youngest of which was made before this time."""
    there = (
        select(Result.job_id)
        .group_by(Result.job_id)
        .having(func.max(Result.created_at) <= before)
        .having(func.count() > func.count(Result.purging_at))
        .order_by(Result.job_id)
    )
    with node.database.reading() as session:
        return list(session.scalars(there))


def _purge_job(node: Node, job_id: int, told: Told) -> None:
    """All results of a job at once, and the prediction that they were built of."""
    with node.database.transaction() as session:
        job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one()
        deliveries = _deliveries(session, Job.id == job_id)
        unsent = session.execute(without_layout().where(Job.id == job_id).limit(1)).first()
        reason = (
            f"a job is {job.state}"
            if job.state in (JobState.READY, JobState.RUNNING)
            else "results are still to be built for a destination"
            if unsent
            else why_undelivered(deliveries)
            if deliveries
            else FOR_EVER
        )
        rows = [row for row in job.results if row.purging_at is None]
        prediction = job.prediction
        if not reason and not told.dry_run:
            for row in rows:
                row.purging_at = node.now()
            job.prediction = job.prediction_sha256 = None  # its file is then no row's
    if reason:
        told.kept[reason] += 1
        return
    if not told.dry_run:
        if prediction:
            node.results.remove(prediction)
        _remove(node, node.results, rows)
        log.info("results purged", job=job_id, results=len(rows))
    told.count("results", rows)
    told.files += Counter({"predictions": int(bool(prediction))})


# Quarantine


def _purge_quarantine(node: Node, before: datetime, told: Told) -> None:
    """What was settled long enough ago; the rest waits for a decision.

    Where its UID was committed it stays: it may have been the held one then.
    """
    settled = (
        select(Quarantined)
        .join(Instance)
        .where(Quarantined.resolved_at <= before, Quarantined.purging_at.is_(None))
    )
    with node.database.transaction() as session:
        promised = settled.where(Instance.committed_at.is_not(None))
        told.kept += Counter({WHICH: len(session.scalars(promised).all())})
        free = settled.where(Instance.committed_at.is_(None))
        rows = list(session.scalars(free.with_for_update(of=Quarantined)))
        if not told.dry_run:
            for row in rows:
                row.purging_at = node.now()
    if not told.dry_run:
        _remove(node, node.instances, rows)
    told.count("quarantine", rows)
