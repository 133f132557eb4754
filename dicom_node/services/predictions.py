"""Owns what a model said of a job's input, kept so that it can be told again in another form.

Refuses to know forms: what is kept is the prediction, and what of the job's circumstances went
into the identity of its objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import select

from dicom_node.domain.profile import SrForm
from dicom_node.errors import ResultError
from dicom_node.results.types import BuildContext, ModelIdentity, ReferencedSOP
from dicom_node.services.context import Node
from dicom_node.store.files import Stored
from dicom_node.store.tables import Job, Result
from inference import stored
from inference.types import FrameRef, Prediction


@dataclass(frozen=True)
class Told:
    """What a model said of a job's input, with all that its objects are made of beside the input.

    Attributes:
        prediction: what the model says.
        frames: where its masks lie; empty where the input could not be read.
        context: of the job.
    """

    prediction: Prediction
    frames: tuple[FrameRef, ...]
    context: BuildContext


def new_context(node: Node, job: Job) -> BuildContext:
    """What a job's row says of it when its result is first built."""
    revision = job.revision
    return BuildContext(
        node_salt=node.settings.node_salt,
        job_created_at=job.created_at,
        generation=job.generation,
        predecessors=_predecessors(node, job),
        incomplete_reason=None if revision.complete else revision.evidence,
    )


def keep(node: Node, told: Told) -> Stored:
    """Make a prediction durable.

    Raises:
        Unavailable: the disk cannot take it.
    """
    context = {
        "builder": told.context.builder,
        "predecessors": {
            form: [
                sr.sop_class_uid,
                sr.sop_instance_uid,
                sr.series_instance_uid,
                sr.study_instance_uid,
            ]
            for form, sr in told.context.predecessors.items()
        },
        "incomplete_reason": told.context.incomplete_reason,
    }
    data = stored.dumps(told.prediction, told.frames, context)
    return node.results.write(".prediction", b"", data)


def recall(node: Node, job: Job) -> Told:
    """What was kept.

    Raises:
        ResultError: nothing was, or it was altered since.
    """
    if job.prediction is None:
        raise ResultError(f"job {job.id}: its prediction was not kept; `dicom-node studies rerun`")
    try:
        data = node.results.path(job.prediction).read_bytes()
    except OSError as error:
        raise ResultError(f"job {job.id}: its prediction: {error.strerror}") from error
    if sha256(data).hexdigest() != job.prediction_sha256:
        raise ResultError(f"job {job.id}: its prediction was altered")
    prediction, frames, told = stored.loads(data)
    context = BuildContext(
        node_salt=node.settings.node_salt,
        job_created_at=job.created_at,
        generation=job.generation,
        predecessors={form: ReferencedSOP(*uids) for form, uids in told["predecessors"].items()},
        incomplete_reason=told["incomplete_reason"],
        builder=told["builder"],
    )
    return Told(prediction, frames, context)


def model_identity(job: Job) -> ModelIdentity:
    """What the objects say of the model; thresholds are its parameters (TID 4019)."""
    manifest = job.model.manifest
    return ModelIdentity(
        name=job.model.name,
        version=job.model.version,
        title=manifest["title"],
        manufacturer=manifest["manufacturer"],
        bundle_digest=job.model.digest,
        research_only=manifest["research_only"],
        parameters={
            f"threshold {label['label']}": f"{label['threshold']:g}" for label in manifest["labels"]
        },
    )


def _predecessors(node: Node, job: Job) -> dict[str, ReferencedSOP]:
    """The reports that this job's supersede, where any were made."""
    if job.predecessor_id is None:
        return {}
    with node.database.reading() as session:
        reports = session.scalars(
            select(Result).where(Result.job_id == job.predecessor_id, Result.kind == SrForm.kind)
        ).all()
    return {
        sr.form: ReferencedSOP(
            sop_class_uid=sr.sop_class_uid,
            sop_instance_uid=sr.sop_instance_uid,
            series_instance_uid=sr.series_instance_uid,
            study_instance_uid=job.revision.study.study_instance_uid,
        )
        for sr in reports
    }
