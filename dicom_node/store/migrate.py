"""Owns the schema's revision: where the database stands and how it moves on.

Alembic without an ini file; the scripts are the package ``migrations``, wherever it is installed.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from dicom_node.errors import Unavailable
from dicom_node.store.database import Database, without_bound


def head() -> str:
    """The revision that this code needs."""
    return ScriptDirectory.from_config(_config(None)).get_current_head() or ""


def current(database: Database) -> str | None:
    """The revision that the database has; None when it is empty."""
    with database.reading() as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(database: Database) -> str:
    """Bring the database to ``head``; each revision in a transaction of its own.

    Returns:
        The revision that it now has.
    """
    with without_bound():
        command.upgrade(_config(database), "head")
    return head()


def require_head(database: Database) -> None:
    """Refuse to work on another schema.

    Raises:
        Unavailable: says what the database has, what is needed, and the command that mends it.
    """
    found = current(database)
    if found != head():
        raise Unavailable(
            f"the database is at revision {found or 'none'}, this version needs {head()}: "
            "run `dicom-node db upgrade`"
        )


def _config(database: Database | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database"] = database
    return config
