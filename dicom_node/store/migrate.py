"""Owns the schema's revision: where the database stands and how it moves on.

Alembic without an ini file; the scripts are the package ``migrations``, wherever it is installed,
each named after its revision. Every command asks for the revision, so that is done without Alembic,
which takes a quarter of a second to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text

import migrations
from dicom_node.errors import Unavailable
from dicom_node.store.database import Database, without_bound

if TYPE_CHECKING:
    from alembic.config import Config

_SCRIPTS = Path(migrations.__file__).parent


def head() -> str:
    """The revision that this code needs."""
    return max(path.name.partition("_")[0] for path in _SCRIPTS.glob("versions/0*.py"))


def current(database: Database) -> str | None:
    """The revision that the database has; None when it is empty."""
    with database.reading() as session:
        if not inspect(session.connection()).has_table("alembic_version"):
            return None
        revision: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def upgrade(database: Database) -> str:
    """Bring the database to ``head``; each revision in a transaction of its own.

    Returns:
        The revision that it now has.
    """
    from alembic import command

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
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["database"] = database
    return config
