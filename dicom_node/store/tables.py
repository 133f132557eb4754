"""Owns the rows: what the node knows, one class a table; refuses to decide anything.

The same on SQLite and PostgreSQL. Times are aware UTC. Enumerated states are text that the tables
of ``dicom_node.domain`` define; the migrations follow this module, and a test holds them to it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

UID = String(64)
AE = String(16)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out; SQLite keeps no time zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Refuse naive times: they are always a mistake."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime was about to be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Put UTC back where the database does not keep it."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables; constraint names follow one convention so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[Any]: JSON,
    }


class Modality(Base):
    """Who may send to us."""

    __tablename__ = "modalities"

    id: Mapped[int] = mapped_column(primary_key=True)
    ae_title: Mapped[str] = mapped_column(AE, unique=True)
    addresses: Mapped[list[str]]  # CIDR networks; empty: any address
    host: Mapped[str | None] = mapped_column(String(255))  # where commitment answers go
    port: Mapped[int | None]
    certificates: Mapped[list[str]] = mapped_column(default=list)  # SHA-256, hex; empty: any
    tls_only: Mapped[bool] = mapped_column(default=False)
    user_name: Mapped[str | None] = mapped_column(String(255))  # user identity that it must show
    passcode: Mapped[str | None] = mapped_column(String(255))  # its salted scrypt hash
    maximum_associations: Mapped[int | None]  # per listener process


class Destination(Base):
    """Where results may go."""

    __tablename__ = "destinations"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    kind: Mapped[str] = mapped_column(String(16))  # dimse, folder
    config: Mapped[dict[str, Any]]
    failures: Mapped[int] = mapped_column(default=0)  # to reach it, one after the other
    closed_until: Mapped[datetime | None]  # nothing is sent; then a probe; None: it is open


class RuleSet(Base):
    """The routing rules, as applied; the newest row is in force, the others explain the past."""

    __tablename__ = "rule_sets"

    id: Mapped[int] = mapped_column(primary_key=True)
    applied_at: Mapped[datetime]
    document: Mapped[dict[str, Any]]


class Process(Base):
    """A listener or worker that is alive while its ``beat`` grows."""

    __tablename__ = "processes"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    started_at: Mapped[datetime]
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    beat_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Association(Base):
    """One inbound association; open while ``closed_at`` is empty and its process lives."""

    __tablename__ = "associations"

    id: Mapped[int] = mapped_column(primary_key=True)
    process_id: Mapped[str | None] = mapped_column(ForeignKey("processes.id"), index=True)
    calling_ae: Mapped[str] = mapped_column(AE)
    called_ae: Mapped[str] = mapped_column(AE)
    address: Mapped[str] = mapped_column(String(64))
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    aborted: Mapped[bool] = mapped_column(default=False)


class Study(Base):
    """One study, as the modalities sent it."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    patient_id: Mapped[str] = mapped_column(String(64))
    patient_issuer: Mapped[str] = mapped_column(String(64))
    first_at: Mapped[datetime]
    # of the open revision:
    opened_at: Mapped[datetime]
    last_at: Mapped[datetime]
    waiting_for: Mapped[str] = mapped_column(Text, default="")
    check_at: Mapped[datetime | None] = mapped_column(index=True)  # None: new evidence will set it

    instances: Mapped[list[Instance]] = relationship(back_populates="study", order_by="Instance.id")
    revisions: Mapped[list[Revision]] = relationship(back_populates="study", order_by="Revision.id")


class Instance(Base):
    """One stored instance; ``facts`` is ``domain.study.InstanceFacts``."""

    __tablename__ = "instances"
    __table_args__ = (Index("ix_instances_study_id_series", "study_id", "series_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"), index=True)
    association_id: Mapped[int | None] = mapped_column(ForeignKey("associations.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax: Mapped[str] = mapped_column(UID)
    path: Mapped[str] = mapped_column(String(255), unique=True)  # below the instance folder
    sha256: Mapped[str] = mapped_column(String(64))  # of the data set's bytes as received
    size: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[datetime]
    counts: Mapped[bool]  # an image that models may want; else kept and passed over
    note: Mapped[str] = mapped_column(Text, default="")  # why it does not count
    patient_id: Mapped[str] = mapped_column(String(64))
    patient_issuer: Mapped[str] = mapped_column(String(64))
    facts: Mapped[dict[str, Any]]
    committed_at: Mapped[datetime | None]  # toward a modality, as SCP of storage commitment
    archived_at: Mapped[datetime | None]  # when an archive told that it holds it
    purging_at: Mapped[datetime | None]  # from here on nobody relies on the file
    purged_at: Mapped[datetime | None]  # it is gone; the row stays

    study: Mapped[Study] = relationship(back_populates="instances")


class Quarantined(Base):
    """An instance whose UID is held with other content; an administrator decides."""

    __tablename__ = "quarantine"
    __table_args__ = (UniqueConstraint("instance_id", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)
    association_id: Mapped[int | None] = mapped_column(ForeignKey("associations.id"))
    transfer_syntax: Mapped[str] = mapped_column(UID)
    path: Mapped[str] = mapped_column(String(255), unique=True)
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[datetime]
    resolution: Mapped[str | None] = mapped_column(String(16))  # keep-old, keep-new
    resolved_at: Mapped[datetime | None]
    purging_at: Mapped[datetime | None]  # as an instance's
    purged_at: Mapped[datetime | None]

    instance: Mapped[Instance] = relationship()


class Expectation(Base):
    """What a modality told that belongs to a study (MPPS, storage commitment)."""

    __tablename__ = "expectations"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    source: Mapped[str] = mapped_column(String(32))
    sop_instance_uids: Mapped[list[str]]
    told_at: Mapped[datetime]


class Alert(Base):
    """Something that an administrator must look at."""

    __tablename__ = "alerts"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64), index=True)  # a UID or a name, never a patient
    text: Mapped[str] = mapped_column(Text)
    resolved_at: Mapped[datetime | None]


class Revision(Base):
    """A state of a study that was called complete; never altered afterwards."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("study_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    number: Mapped[int]
    closed_at: Mapped[datetime]
    complete: Mapped[bool]  # False: closed by the hard cap
    evidence: Mapped[str] = mapped_column(Text)
    instances: Mapped[int]
    decisions: Mapped[dict[str, Any]]  # rules and choices, for `studies why`

    study: Mapped[Study] = relationship(back_populates="revisions")


class Model(Base):
    """One version of a model."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(32))
    version: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 of manifest.json
    manifest: Mapped[dict[str, Any]]
    added_at: Mapped[datetime]


class Job(Base):
    """One model on chosen inputs; exactly one row per model, inputs, parameters, generation."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("model_id", "inputs_digest", "generation"),
        Index("ix_jobs_claim", "state", "queue", "due_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"), index=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    inputs_digest: Mapped[str] = mapped_column(String(64))
    generation: Mapped[int] = mapped_column(default=1)
    predecessor_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    queue: Mapped[str] = mapped_column(String(8))  # hardware that it needs: any, gpu
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]  # domain.job.due_at: the earliest is claimed first
    not_before: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    token: Mapped[int] = mapped_column(default=0)  # fencing: grows with every claim
    owner: Mapped[str | None] = mapped_column(String(36))
    beat: Mapped[int] = mapped_column(BigInteger, default=0)  # heartbeat of the lease
    nudged_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error: Mapped[str] = mapped_column(Text, default="")
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # what the model found, timings
    prediction: Mapped[str | None] = mapped_column(String(255))  # a file below the result folder
    prediction_sha256: Mapped[str | None] = mapped_column(String(64))

    revision: Mapped[Revision] = relationship()
    model: Mapped[Model] = relationship()
    inputs: Mapped[list[JobInput]] = relationship(order_by="JobInput.position")
    destinations: Mapped[list[JobDestination]] = relationship()
    results: Mapped[list[Result]] = relationship(back_populates="job", order_by="Result.position")


class JobInput(Base):
    """One instance that a job reads; role "current" ("prior" is reserved)."""

    __tablename__ = "job_inputs"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instances.id"), index=True)
    role: Mapped[str] = mapped_column(String(16), default="current")

    instance: Mapped[Instance] = relationship()


class JobDestination(Base):
    """Where a job's results shall go, by which rule, and in which forms.

    ``layout`` is ``domain.profile.Layout`` as texts; None until it is chosen.
    """

    __tablename__ = "job_destinations"
    __table_args__ = (
        # Asked in every round, and empty but for what is under way: never a scan.
        Index(
            "ix_job_destinations_without_layout",
            "job_id",
            sqlite_where=text("layout IS NULL"),
            postgresql_where=text("layout IS NULL"),
        ),
    )

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    destination: Mapped[str] = mapped_column(String(64), primary_key=True)
    rules: Mapped[list[str]]
    layout: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))


class Result(Base):
    """One DICOM object that a job made; built once, never rebuilt."""

    __tablename__ = "results"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    position: Mapped[int]  # the order of sending: what is cited goes first; equal: in any order
    kind: Mapped[str] = mapped_column(String(16))
    form: Mapped[str] = mapped_column(String(64))  # domain.profile.Form as text
    sop_class_uid: Mapped[str] = mapped_column(UID)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    series_instance_uid: Mapped[str] = mapped_column(UID, index=True)
    transfer_syntax: Mapped[str] = mapped_column(UID)
    path: Mapped[str] = mapped_column(String(255), unique=True)  # below the result folder
    sha256: Mapped[str] = mapped_column(String(64))  # of the whole file
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    purging_at: Mapped[datetime | None]  # as an instance's
    purged_at: Mapped[datetime | None]

    job: Mapped[Job] = relationship(back_populates="results")


class Delivery(Base):
    """One result on its way to one destination."""

    __tablename__ = "deliveries"
    __table_args__ = (
        UniqueConstraint("result_id", "destination_id"),
        Index("ix_deliveries_claim", "state", "next_at"),
        Index(
            "ix_deliveries_confirm_at",
            "confirm_at",
            sqlite_where=text("confirm_at IS NOT NULL"),
            postgresql_where=text("confirm_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("results.id"))
    destination_id: Mapped[int] = mapped_column(ForeignKey("destinations.id"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    next_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    token: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(String(36))
    beat: Mapped[int] = mapped_column(BigInteger, default=0)
    sent_at: Mapped[datetime | None]
    confirm_at: Mapped[datetime | None]  # when the destination is asked next; None: it is not
    confirmed_at: Mapped[datetime | None]  # committed or found
    asked: Mapped[int] = mapped_column(default=0)  # questions without the answer hoped for
    last_answer: Mapped[str] = mapped_column(Text, default="")

    result: Mapped[Result] = relationship()
    destination: Mapped[Destination] = relationship()
    log: Mapped[list[DeliveryAttempt]] = relationship(order_by="DeliveryAttempt.id")


class DeliveryAttempt(Base):
    """What a destination answered, every time."""

    __tablename__ = "delivery_attempts"

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("deliveries.id"), index=True)
    at: Mapped[datetime]
    status: Mapped[int | None] = mapped_column(Integer)
    answer: Mapped[str] = mapped_column(Text)


class Commitment(Base):
    """One request for storage commitment: one job's results at one destination."""

    __tablename__ = "commitments"

    id: Mapped[int] = mapped_column(primary_key=True)
    transaction_uid: Mapped[str] = mapped_column(UID, unique=True)
    destination_id: Mapped[int] = mapped_column(ForeignKey("destinations.id"))
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), index=True)
    asked_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]  # None: no report came
    answer: Mapped[str] = mapped_column(Text, default="")

    items: Mapped[list[CommitmentItem]] = relationship()


class CommitmentItem(Base):
    """One delivery that a request for storage commitment names."""

    __tablename__ = "commitment_items"

    commitment_id: Mapped[int] = mapped_column(ForeignKey("commitments.id"), primary_key=True)
    delivery_id: Mapped[int] = mapped_column(
        ForeignKey("deliveries.id"), primary_key=True, index=True
    )


class Lease(Base):
    """A named right that one process holds at a time: who schedules."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(36))
    beat: Mapped[int] = mapped_column(BigInteger, default=0)


class Canary(Base):
    """The last question to a queue, whether anybody takes what lies in it, and the last answer."""

    __tablename__ = "canaries"

    queue: Mapped[str] = mapped_column(String(8), primary_key=True)
    asked: Mapped[int] = mapped_column(BigInteger)  # counts questions
    asked_at: Mapped[datetime]
    answered: Mapped[int] = mapped_column(BigInteger)  # the last question that was answered
    answered_at: Mapped[datetime | None]
    answered_by: Mapped[str | None] = mapped_column(String(36))
