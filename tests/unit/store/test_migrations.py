from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, create_engine, inspect, select
from sqlalchemy.orm import Session

import migrations
from dicom_node.domain.profile import DEFAULT
from dicom_node.errors import Unavailable
from dicom_node.store import database as module
from dicom_node.store import migrate, postgresql
from dicom_node.store.database import Database
from dicom_node.store.tables import Base, JobDestination, Result
from tests.servers import Postgres

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without a table."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    else:
        database = Database(request.getfixturevalue("postgres_server").new_database())
    yield database
    database.engine.dispose()


def tables(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def test_an_upgrade_from_nothing_makes_what_the_tables_say(empty: Database) -> None:
    assert migrate.current(empty) is None
    assert migrate.upgrade(empty) == migrate.current(empty) == migrate.head()
    migrate.require_head(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    assert tables(empty) == {*Base.metadata.tables, "alembic_version"}


def test_an_upgrade_of_what_is_up_to_date_does_nothing(empty: Database) -> None:
    migrate.upgrade(empty)
    before = tables(empty)
    migrate.upgrade(empty)
    assert tables(empty) == before


def test_each_revision_can_be_taken_back(empty: Database) -> None:
    migrate.upgrade(empty)
    command.downgrade(migrate._config(empty), "base")
    assert tables(empty) == {"alembic_version"}
    migrate.upgrade(empty)
    migrate.require_head(empty)


def test_another_schema_is_refused_with_the_command_that_mends_it(empty: Database) -> None:
    with pytest.raises(Unavailable, match=r"at revision none.*dicom-node db upgrade"):
        migrate.require_head(empty)


def test_revisions_form_one_line() -> None:
    scripts = ScriptDirectory.from_config(migrate._config(None))
    assert scripts.get_heads() == [migrate.head()]


def test_an_upgrade_that_is_killed_half_way_leaves_the_old_schema(
    empty: Database, tmp_path: Path
) -> None:
    """Killed as its tables are made: nothing of them is to be seen, and it can begin again."""
    script = (
        "import os, sys\n"
        "from sqlalchemy import event\n"
        "from dicom_node.store.database import Database\n"
        "from dicom_node.store.migrate import upgrade\n"
        "database = Database(sys.argv[1])\n"
        "@event.listens_for(database.engine, 'before_cursor_execute')\n"
        "def die(_c, _cursor, statement, *_):\n"
        "    if 'CREATE TABLE jobs' in statement: os._exit(9)\n"
        "upgrade(database)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, empty.url], env=os.environ, check=False, timeout=60
    )
    assert done.returncode == 9
    assert tables(empty) <= {"alembic_version"}
    migrate.upgrade(empty)
    migrate.require_head(empty)


def test_an_upgrade_waits_for_another_longer_than_work_does(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(postgresql, "SILENT_SECONDS", 0.2)
    database = Database(postgres_server.new_database())
    with psycopg.connect(
        host=str(postgres_server.folder), user="postgres", dbname=database.engine.url.database
    ) as other:
        other.execute("SELECT pg_advisory_lock(11112)")
        threading.Timer(1, other.close).start()
        migrate.upgrade(database)
    monkeypatch.undo()
    migrate.require_head(database)
    database.engine.dispose()


def enter(connection: Connection, table: str, **values: object) -> None:
    """A row of whatever schema there is now; what is not told and must be gets a filler."""
    reflected = Table(table, MetaData(), autoload_with=connection)
    fillers: dict[type, object] = {int: 0, str: "x", bool: False, object: {}, datetime: NOW}
    for column in reflected.columns:
        if column.name not in values and not column.nullable and not column.primary_key:
            values[column.name] = fillers[column.type.python_type]
    connection.execute(reflected.insert().values(**values))


def test_results_of_the_first_schema_keep_the_forms_that_they_had(empty: Database) -> None:
    command.upgrade(migrate._config(empty), "0001")
    with empty.engine.begin() as connection:
        enter(connection, "studies", id=1)
        enter(connection, "revisions", id=1, study_id=1)
        enter(connection, "models", id=1)
        for number, state in ((1, "done"), (2, "ready")):
            job = {"revision_id": 1, "model_id": 1, "inputs_digest": str(number), "state": state}
            enter(connection, "jobs", id=number, **job)
            enter(connection, "job_destinations", job_id=number, destination="p")
        for kind in ("seg", "sr"):
            enter(connection, "results", job_id=1, kind=kind, sop_instance_uid=kind, path=kind)
    migrate.upgrade(empty)
    with Session(empty.engine) as session:
        forms = [row.form for row in session.scalars(select(Result).order_by(Result.kind))]
        layouts = {row.job_id: row.layout for row in session.scalars(select(JobDestination))}
    assert forms == [str(form) for form in DEFAULT]
    assert layouts == {1: forms, 2: None}


def test_no_revision_imports_the_code_of_the_day() -> None:
    paths = list((Path(migrations.__file__ or "").parent / "versions").glob("0*.py"))
    assert paths
    for path in paths:
        assert "dicom_node" not in path.read_text(encoding="utf-8")


def test_the_schema_is_the_same_without_migrations(tmp_path: Path) -> None:
    """The tables themselves can be made: no name is too long, no cycle of keys."""
    engine = create_engine(f"sqlite:///{tmp_path / 'plain.sqlite'}")
    Base.metadata.create_all(engine)
    assert set(inspect(engine).get_table_names()) == set(Base.metadata.tables)
