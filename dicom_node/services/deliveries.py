"""Owns what administrators see of deliveries; sending is ``services.deliver``'s."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session, joinedload

from dicom_node.destinations.answers import LONGEST_WAIT
from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.profile import form_of
from dicom_node.errors import NotFound
from dicom_node.services.context import Node
from dicom_node.services.moments import has_come
from dicom_node.store.tables import Commitment, CommitmentItem, Delivery, Job, Result, Revision


def is_due(node: Node) -> ColumnElement[bool]:
    """For queries: it is to be sent, and now."""
    longest = timedelta(seconds=max(node.settings.delivery.backoff_max, LONGEST_WAIT))
    pending = Delivery.state == DeliveryState.PENDING
    return pending & has_come(Delivery.next_at, node.now(), longest)


def list_deliveries(node: Node, state: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest deliveries first."""
    query = (
        select(Delivery)
        .order_by(Delivery.id.desc())
        .limit(limit)
        .options(
            joinedload(Delivery.destination),
            joinedload(Delivery.result)
            .joinedload(Result.job)
            .joinedload(Job.revision)
            .joinedload(Revision.study),
        )
    )
    if state:
        query = query.where(Delivery.state == state)
    with node.database.reading() as session:
        return [delivery_row(row) for row in session.scalars(query)]


def show_delivery(node: Node, delivery_id: int) -> dict[str, Any]:
    """One delivery with every attempt: when, which status, what was answered.

    Raises:
        NotFound: there is none by that number.
    """
    with node.database.reading() as session:
        row = session.get(Delivery, delivery_id)
        if row is None:
            raise NotFound("delivery", str(delivery_id))
        return {
            **delivery_row(row),
            "file": node.results.path(row.result.path),
            "sha256": row.result.sha256,
            "commitments": _asked_for(session, delivery_id),
            "log": [
                {
                    "at": attempt.at,
                    "status": None if attempt.status is None else f"0x{attempt.status:04X}",
                    "answer": attempt.answer,
                }
                for attempt in row.log
            ],
        }


def subject_of(row: Delivery) -> str:
    """What alerts call it: one of its results may have gone to others without a word."""
    return f"delivery {row.id}"


def delivery_row(row: Delivery) -> dict[str, Any]:
    """A delivery as a listing shows it."""
    job = row.result.job
    return {
        "delivery": row.id,
        "state": row.state,
        "destination": row.destination.name,
        "kind": row.result.kind,
        "form": form_of(row.result.form).words,
        "job": job.id,
        "study": job.revision.study.study_instance_uid,
        "sop_instance_uid": row.result.sop_instance_uid,
        "attempts": row.attempts,
        "created_at": row.created_at,
        "next_at": row.next_at if row.state == "pending" else None,
        "sent_at": row.sent_at,
        "purged_at": row.result.purging_at,
        "confirm_at": row.confirm_at,
        "confirmed_at": row.confirmed_at,
        "answer": row.last_answer,
    }


def _asked_for(session: Session, delivery_id: int) -> list[dict[str, Any]]:
    """The requests for storage commitment that named a delivery."""
    rows = session.scalars(
        select(Commitment)
        .where(
            exists().where(
                CommitmentItem.commitment_id == Commitment.id,
                CommitmentItem.delivery_id == delivery_id,
            )
        )
        .order_by(Commitment.id)
    )
    return [
        {
            "transaction": row.transaction_uid,
            "asked_at": row.asked_at,
            "answered_at": row.answered_at,
            "answer": row.answer,
        }
        for row in rows
    ]
