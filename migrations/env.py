"""Alembic's entry: runs the revisions on the database that ``store.migrate`` hands over."""

from alembic import context

from dicom_node.store.tables import Base, UtcDateTime


def _render(kind: str, item: object, _autogen: object) -> str | bool:
    """Write our time type by its plain name: revisions must not import the code of the day."""
    return (
        "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False
    )


database = context.config.attributes["database"]
with database.engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=_render,
        render_as_batch=True,  # SQLite alters tables by copying them
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
