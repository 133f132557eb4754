"""Owns the compare-and-set by which one worker gets a row, and proves later that it still holds it.

A claim raises the row's fencing token. Every later write names the token; a worker that was frozen
past its lease finds that its token is stale and its write does nothing. Refuses to know what the
rows mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from dicom_node.domain.job import JobState
from dicom_node.services.context import Node
from dicom_node.store.tables import Delivery, Job


def claim(
    session: Session, node: Node, row: Job | Delivery, before: str, after: str, **values: Any
) -> bool:
    """Take one row if it is still as it was read; True when it is ours now."""
    table = type(row)
    result = session.execute(
        update(table)
        .where(table.id == row.id, table.state == before, table.token == row.token)
        .values(
            state=after,
            token=table.token + 1,
            attempts=table.attempts + 1,
            owner=node.id,
            beat=0,
            **values,
        )
        .execution_options(synchronize_session=False)
    )
    if not _changed(result):
        return False
    session.refresh(row)
    return True


def still_ours(session: Session, row: Job | Delivery, during: str, **values: Any) -> bool:
    """Write to a row that we claimed; False, and nothing written, when the claim is stale."""
    table = type(row)
    result = session.execute(
        update(table)
        .where(table.id == row.id, table.state == during, table.token == row.token)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    return _changed(result)


def beat(node: Node, rows: Sequence[Job | Delivery]) -> None:
    """Show that we are alive and at work on these rows."""
    with node.database.transaction() as session:
        for row in rows:
            table = type(row)
            session.execute(
                update(table)
                .where(table.id == row.id, table.token == row.token, table.owner == node.id)
                .values(beat=table.beat + 1)
                .execution_options(synchronize_session=False)
            )


def beat_owned(node: Node) -> None:
    """Show that we are alive and see to every job that was claimed in our name."""
    with node.database.transaction() as session:
        session.execute(
            update(Job)
            .where(Job.state == JobState.RUNNING, Job.owner == node.id)
            .values(beat=Job.beat + 1)
            .execution_options(synchronize_session=False)
        )


def _changed(result: Any) -> bool:
    return isinstance(result, CursorResult) and result.rowcount == 1
