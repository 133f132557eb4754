"""Owns what an administrator must look at: raised once, listed until resolved."""

from __future__ import annotations

import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.services.context import Node
from dicom_node.store.tables import Alert


def fault(error: Exception) -> str:
    """An unexpected error by its kind and place; its own words may quote a header."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {at.name}, {Path(at.filename).name} line {at.lineno}"


def alert_once(session: Session, at: datetime, kind: str, subject: str, text: str) -> None:
    """Raise an alert unless the same one stands unresolved.

    Args:
        subject: a UID or a name, never a patient.
    """
    known = select(Alert.id).where(
        Alert.kind == kind, Alert.subject == subject, Alert.resolved_at.is_(None)
    )
    if session.scalar(known.limit(1)) is None:
        session.add(Alert(at=at, kind=kind, subject=subject, text=text))


def resolve_alerts(session: Session, at: datetime, kind: str, subject: str) -> None:
    """Mark an alert as dealt with."""
    for alert in session.scalars(
        select(Alert).where(
            Alert.kind == kind, Alert.subject == subject, Alert.resolved_at.is_(None)
        )
    ):
        alert.resolved_at = at


def list_alerts(node: Node) -> list[dict[str, Any]]:
    """Unresolved alerts, the newest first."""
    query = select(Alert).where(Alert.resolved_at.is_(None)).order_by(Alert.id.desc())
    with node.database.reading() as session:
        rows = session.scalars(query).all()
    return [{"at": r.at, "kind": r.kind, "subject": r.subject, "text": r.text} for r in rows]
