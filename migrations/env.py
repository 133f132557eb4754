"""Alembic's entry: runs the revisions on the database that ``store.migrate`` hands over."""

from alembic import context
from sqlalchemy import event, text

from dicom_node import faults
from dicom_node.store.tables import Base, UtcDateTime


def _render(kind: str, item: object, _autogen: object) -> str | bool:
    """Write our time type by its plain name: revisions must not import the code of the day."""
    return (
        "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False
    )


database = context.config.attributes["database"]
LOCK = 11112
"""Names this node's migrations among a PostgreSQL server's advisory locks."""

with database.engine.connect() as connection:
    if database.is_postgresql:
        # Two that start together would both make the first table. On SQLite BEGIN IMMEDIATE lets
        # one in at a time. The lock ends with its connection, which goes back to no pool.
        connection.detach()
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=_render,
        render_as_batch=True,  # SQLite alters tables by copying them
        transaction_per_migration=True,
        on_version_apply=lambda **_: faults.step("commit", "migration"),
    )
    event.listen(connection, "after_execute", lambda *_: faults.step("statement", "migration"))
    with context.begin_transaction():
        context.run_migrations()
