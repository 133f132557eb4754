"""Row 29 of the matrix: a kill in a migration leaves the old schema or the new."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import MetaData, inspect, text

from dicom_node.settings import CONFIG_VARIABLE
from dicom_node.store.database import Database
from dicom_node.store.migrate import _config, current, head, upgrade
from tests.node import COMMAND, toml
from tests.servers import Postgres

FIRST = "0001"
DIES_AT = ("statement:3", "statement:9", "commit:1")


@pytest.fixture(params=["sqlite", "postgresql"])
def old_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Of the first revision, with a study in it."""
    url = f"sqlite:///{tmp_path}/node.sqlite"
    server: Postgres | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        assert server
        url = server.new_database()
    database = Database(url)
    command.upgrade(_config(database), FIRST)
    _enter_a_study(database)
    yield database
    database.engine.dispose()
    if server:
        server.drop(url)


def _enter_a_study(database: Database) -> None:
    """As that revision had it; by name, for today's tables know columns that it had not."""
    tables = MetaData()
    with database.engine.connect() as connection:
        tables.reflect(connection)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    moments = dict.fromkeys(("first_at", "opened_at", "last_at"), now)
    who = {"patient_id": "TEST-1", "patient_issuer": ""}
    with database.engine.begin() as connection:
        connection.execute(
            tables.tables["studies"].insert(),
            {"id": 1, "study_instance_uid": "1.2.3", "state": "closed", "waiting_for": ""}
            | moments
            | who,
        )
        uids = ("sop_instance_uid", "sop_class_uid", "series_instance_uid", "transfer_syntax")
        connection.execute(
            tables.tables["instances"].insert(),
            {"id": 1, "study_id": 1, "path": "00/a.dcm", "sha256": "0" * 64, "size": 1}
            | {"received_at": now, "counts": True, "note": "", "facts": {}}
            | dict.fromkeys(uids, "1.2.3.4")
            | who,
        )


def shape(database: Database) -> dict[str, Any]:
    """Tables with their columns and indices."""
    found = inspect(database.engine)
    return {
        table: (
            sorted(column["name"] for column in found.get_columns(table)),
            sorted(
                str(index["name"])
                for index in found.get_indexes(table)
                if not index.get("duplicates_constraint")  # PostgreSQL tells those too
            ),
        )
        for table in found.get_table_names()
    }


def _shape_at(revision: str | None, folder: Path) -> dict[str, Any]:
    """Of a database that was brought there undisturbed."""
    fresh = Database(f"sqlite:///{folder}/{revision}.sqlite")
    if revision:
        command.upgrade(_config(fresh), revision)
    found = shape(fresh)
    fresh.engine.dispose()
    return found


def _upgrade(database: Database, folder: Path, fault: str = "") -> int:
    """The installed command; its exit status."""
    config = folder / "dicom-node.toml"
    config.write_text(toml({"storage": {"folder": str(folder), "database": database.url}}))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")}
    given = {"FAULT_TESTING": "yes", "FAULT": fault} if fault else {}
    return subprocess.run(
        [COMMAND, "db", "upgrade"],
        env={**kept, CONFIG_VARIABLE: str(config), **given},
        capture_output=True,
        check=False,
        timeout=120,
    ).returncode


def test_row_29_a_kill_in_a_migration_leaves_the_old_schema_or_the_new(
    old_database: Database, tmp_path: Path
) -> None:
    """At one step after another; each time it is one revision and no other, and goes on from it."""
    died = 0
    for where in DIES_AT:
        code = _upgrade(old_database, tmp_path, f"migration/{where}:kill")
        died += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        revision = current(old_database)
        assert revision is not None
        assert shape(old_database) == _shape_at(revision, tmp_path), f"half of {revision}: {where}"
        (tmp_path / f"{revision}.sqlite").unlink()
        with old_database.reading() as session:
            rows = session.execute(text("SELECT sop_instance_uid, path FROM instances")).all()
        assert [tuple(row) for row in rows] == [("1.2.3.4", "00/a.dcm")]
    assert died, "nothing was killed: the steps are not met"
    assert _upgrade(old_database, tmp_path) == 0
    assert current(old_database) == head()
    upgrade(old_database)  # and once more does no harm
    assert shape(old_database) == _shape_at(head(), tmp_path)


def test_row_29_migrations_that_start_together_happen_once(
    old_database: Database, tmp_path: Path
) -> None:
    """As when two machines start after an upgrade."""
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(3) as together:
        codes = list(together.map(lambda folder: _upgrade(old_database, folder), folders))
    assert codes == [0, 0, 0]
    assert shape(old_database) == _shape_at(head(), tmp_path)
