"""Owns the forms of a result: which of them a destination gets, and when each is built.

A form is built once and kept. What was not built with the job is built of the kept prediction
when a destination refuses another form, or joins later. Refuses to know sockets and models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from pydicom import dcmread
from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session, selectinload

from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.domain.profile import (
    Encoding,
    Form,
    Layout,
    Profile,
    SrForm,
    after_refusal,
    describe,
    form_of,
)
from dicom_node.errors import NodeError, ResultError
from dicom_node.results.encode import encode
from dicom_node.results.types import BuiltObject, Picture, Source
from dicom_node.services.alerts import alert_once, fault, resolve_alerts
from dicom_node.services.context import Node
from dicom_node.services.pictures import pictures, window
from dicom_node.services.predictions import Told, model_identity, recall
from dicom_node.services.registry import profile_of
from dicom_node.store.database import CommitUnknown
from dicom_node.store.files import Stored
from dicom_node.store.tables import (
    Alert,
    Delivery,
    Destination,
    Job,
    JobDestination,
    JobInput,
    Result,
    Revision,
)
from inference.display import shown
from inference.types import ImageStack, Prediction

log = structlog.get_logger(__name__)

NOT_BUILT = "results not built"
"""Kind of the alert on a job of which a destination that joined later gets nothing yet."""

Objects = Sequence[tuple[BuiltObject, Stored]]
"""Built, and on disk; no row names them yet."""


def profiles(session: Session, names: Collection[str]) -> dict[str, Profile]:
    """Those of the destinations that exist."""
    rows = session.scalars(select(Destination).where(Destination.name.in_(names)))
    return {row.name: profile_of(row.config) for row in rows}


def choose(
    profile: Profile, prediction: Prediction, refused: Collection[str] = ()
) -> Layout | None:
    """The best layout for a destination, None where it refused them all."""
    from dicom_node.results.build import cannot  # as in `write`

    special = profile.segmentation in (Encoding.LABELMAP, Encoding.FRACTIONAL)
    return after_refusal(profile, refused, cannot(prediction) if special else ())


def write(
    node: Node,
    job: Job,
    told: Told,
    forms: Iterable[Form],
    read: Callable[[], ImageStack] | None = None,
) -> Objects:
    """Build objects and make them durable; on any error nothing stays.

    Args:
        node: whose files these are.
        job: with its model, inputs and their instances loaded.
        told: what is to be said.
        forms: how.
        read: gives the input, for pictures; default: its files are read again, in a child.

    Raises:
        ResultError: the prediction cannot be told in one of the forms.
        Unavailable: the disk cannot take them, or the child did not survive the images.
    """
    from dicom_node.results.build import build_results  # loads highdicom, which few processes need

    if any(i.instance.purging_at for i in job.inputs):
        raise ResultError("its images were purged: no other form can be built of it")
    files = input_files(node, job)
    headers = tuple(dcmread(path, stop_before_pixels=True) for path in files)
    digests = tuple(i.instance.sha256 for i in job.inputs)
    source = Source(headers, digests, told.frames)
    again = pictures(node.settings.worker, source, files)
    seen = nullcontext(_pictures(source, read)) if read else again
    made: list[tuple[BuiltObject, Stored]] = []
    try:
        with seen as picture:
            objects = build_results(
                told.prediction, source, model_identity(job), told.context, forms, picture
            )
        for built in objects:
            made.append((built, node.results.write(".dcm", b"", encode(built.dataset))))
    except BaseException:
        discard(node, made)
        raise
    return made


def discard(node: Node, objects: Objects) -> None:
    """Remove files that no row will name."""
    for _, file in objects:
        node.results.remove(file.name)


def add_rows(session: Session, node: Node, job: Job, objects: Objects) -> None:
    """Rows for objects; one that another worker entered meanwhile stays as it is."""
    known = {result.sop_instance_uid for result in job.results}
    for built, file in objects:
        if built.sop_instance_uid in known:
            continue
        job.results.append(
            Result(
                position=int(isinstance(built.form, SrForm)),  # only reports cite
                kind=built.kind,
                form=str(built.form),
                sop_class_uid=built.sop_class_uid,
                sop_instance_uid=built.sop_instance_uid,
                series_instance_uid=built.series_instance_uid,
                transfer_syntax=str(built.dataset.file_meta.TransferSyntaxUID),
                path=file.name,
                sha256=file.sha256,
                size=file.size,
                created_at=node.now(),
            )
        )
    session.flush()


def input_files(node: Node, job: Job) -> tuple[Path, ...]:
    """The files of a job's inputs."""
    return tuple(node.instances.path(i.instance.path) for i in job.inputs)


@dataclass(frozen=True)
class Relaid:
    """Another layout for one job at one destination, with what had to be built for it."""

    layout: Layout
    objects: Objects


def prepare(
    node: Node, job_id: int, destination: str, refused: Collection[str] = ()
) -> Relaid | None:
    """The best layout that a destination has not refused, everything of it on disk.

    Args:
        node: whose job it is.
        job_id: a finished job.
        destination: by name.
        refused: forms beside those that it refused before, as text.

    Returns:
        None where it refused all there is.

    Raises:
        ResultError: what is not built yet cannot be built.
        Unavailable: the disk cannot take it.
    """
    with node.database.reading() as session:
        job = session.get_one(
            Job,
            job_id,
            options=(
                selectinload(Job.model),
                selectinload(Job.results),
                selectinload(Job.inputs).selectinload(JobInput.instance),
                selectinload(Job.revision).selectinload(Revision.study),
            ),
        )
        (profile,) = profiles(session, [destination]).values()
        replaced = session.scalars(
            select(Result.form)
            .join(Delivery, Delivery.result_id == Result.id)
            .join(Destination)
            .where(
                Result.job_id == job_id,
                Destination.name == destination,
                Delivery.state == DeliveryState.REPLACED,
            )
        ).all()
    built = {result.form for result in job.results}
    if job.prediction is None:  # from before predictions were kept: what was built is all there is
        layout: Layout | None = tuple(form_of(form) for form in sorted(built))
        return None if refused or replaced else Relaid(layout or (), ())
    told = recall(node, job)
    layout = choose(profile, told.prediction, {*refused, *replaced})
    if layout is None:
        return None
    missing = [form for form in layout if str(form) not in built]
    return Relaid(layout, write(node, job, told, missing) if missing else ())


def enter(session: Session, node: Node, job_id: int, destination: str, relaid: Relaid) -> None:
    """Rows for a layout: what of the old one was not sent is replaced, what is new is queued."""
    job = session.get_one(Job, job_id)
    add_rows(session, node, job, relaid.objects)
    forms = [str(form) for form in relaid.layout]
    row = session.get_one(JobDestination, (job_id, destination))
    row.layout = forms
    waiting = session.scalars(
        select(Delivery)
        .join(Result)
        .join(Destination)
        .where(
            Result.job_id == job_id,
            Destination.name == destination,
            Result.form.not_in(forms),
            Delivery.state == DeliveryState.PENDING,
        )
    )
    for delivery in waiting:
        delivery.state = DeliveryState.REPLACED
        delivery.last_answer = f"not sent: {describe(relaid.layout)} goes instead"
    queue(session, job, node)


def queue(session: Session, job: Job, node: Node) -> None:
    """Make the delivery rows of a finished job that do not exist yet, by each layout."""
    rows = session.execute(
        select(Delivery.result_id, Delivery.destination_id)
        .join(Result)
        .where(Result.job_id == job.id)
    )
    known = {(result, destination) for result, destination in rows}
    now = node.now()
    for row in job.destinations:
        place = session.scalar(select(Destination.id).where(Destination.name == row.destination))
        if place is None:  # removed by hand since; the rule's name stays with the job
            continue
        for result in job.results:
            if (result.id, place) not in known and result.form in (row.layout or ()):
                session.add(
                    Delivery(
                        result_id=result.id,
                        destination_id=place,
                        state=DeliveryState.PENDING,
                        created_at=now,
                        next_at=now,
                    )
                )
    session.flush()


def without_layout() -> Select[int, str]:
    """(job, destination) of finished jobs whose results a destination joined afterwards."""
    return (
        select(JobDestination.job_id, JobDestination.destination)
        .join(Job, Job.id == JobDestination.job_id)
        .join(Destination, Destination.name == JobDestination.destination)
        .where(Job.state == JobState.DONE, JobDestination.layout.is_(None))
    )


def lay_out_waiting(node: Node) -> None:
    """Choose and build what goes to destinations that joined a finished job.

    A job of which that failed rests for ``delivery.backoff_max``.
    """
    now = node.now()
    with node.database.reading() as session:
        waiting = session.execute(without_layout().order_by(JobDestination.job_id)).all()
        tried = session.scalars(
            select(Alert.subject).where(
                Alert.kind == NOT_BUILT,
                Alert.resolved_at.is_(None),
                Alert.at > now - timedelta(seconds=node.settings.delivery.backoff_max),
                Alert.at <= now,
            )
        ).all()
    for job_id, destination in waiting:
        subject, relaid = f"job {job_id}", None
        if subject in tried:
            continue
        try:
            relaid = prepare(node, job_id, destination)
            if relaid is None:  # it refused everything already
                continue
            with node.database.transaction() as session:
                enter(session, node, job_id, destination, relaid)
                others = without_layout().where(Job.id == job_id).limit(1)
                if session.execute(others).first() is None:
                    resolve_alerts(session, node.now(), NOT_BUILT, subject)
        except CommitUnknown:
            raise
        except Exception as error:  # one job that cannot be told must not hold up the others
            discard(node, relaid.objects if relaid else ())
            reason = str(error) if isinstance(error, NodeError) else fault(error)
            log.error("not laid out", job=job_id, destination=destination, reason=reason)
            with suppress(NodeError), node.database.transaction() as session:
                alert_once(session, node.now(), NOT_BUILT, subject, reason)
                standing = Alert.kind == NOT_BUILT, Alert.subject == subject
                session.execute(
                    update(Alert)
                    .where(*standing, Alert.resolved_at.is_(None))
                    .values(at=node.now(), text=reason)
                )


def _pictures(source: Source, read: Callable[[], ImageStack]) -> Picture:
    """Frames of the input as people see them, of what was read already."""
    return lambda frame: shown(read(), frame, window(source, frame))
