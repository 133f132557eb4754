from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update
from sqlalchemy.exc import StatementError

from dicom_node.errors import Unavailable
from dicom_node.store import database as module
from dicom_node.store.database import CommitUnknown, Database
from dicom_node.store.tables import Alert, Lease
from tests.servers import Postgres

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Any:
    made = Database(database_url)
    yield made
    made.engine.dispose()


@pytest.fixture
def sqlite(sqlite_url: str) -> Any:
    made = Database(sqlite_url)
    yield made
    made.engine.dispose()


def count(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count(Alert.id))) or 0


def alert(subject: str = "1.2") -> Alert:
    return Alert(at=NOW, kind="test", subject=subject, text="")


def test_a_transaction_is_committed_at_its_end(database: Database) -> None:
    with database.transaction() as session:
        session.add(alert())
    assert count(database) == 1


def test_any_error_rolls_it_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        session.add(alert())
        session.flush()
        raise ZeroDivisionError
    assert count(database) == 0


def test_writers_of_many_threads_lose_no_update(database: Database) -> None:
    with database.transaction() as session:
        session.add(Lease(name="n", owner="o"))

    def write() -> None:
        for _ in range(10):
            with database.transaction() as session:
                row = session.scalars(select(Lease).with_for_update()).one()
                row.beat += 1

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.scalars(select(Lease.beat)).one() == 80


def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    cest = timezone(timedelta(hours=2))
    with database.transaction() as session:
        row = alert()
        row.at = datetime(2026, 7, 1, 12, tzinfo=cest)
        session.add(row)
    with database.reading() as session:
        assert session.scalars(select(Alert.at)).one() == datetime(2026, 7, 1, 10, tzinfo=UTC)
        assert session.scalars(select(Alert.at)).one().tzinfo is UTC


def test_a_naive_time_is_refused(database: Database) -> None:
    row = alert()
    row.at = datetime(2026, 1, 1)  # what is refused
    with pytest.raises(StatementError, match="naive"), database.transaction() as session:
        session.add(row)


# -- SQLite ------------------------------------------------------------------------------------


def test_sqlite_keeps_every_commit_through_a_power_cut(sqlite: Database) -> None:
    with sqlite.reading() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_sqlite_writers_begin_at_once_and_readers_lock_nobody_out(sqlite: Database) -> None:
    said: list[str] = []

    @event.listens_for(sqlite.engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    with sqlite.transaction() as session:
        session.execute(select(Alert))
        # Another process can read, and begins to write only after us.
        other = sqlite3.connect(sqlite.url.removeprefix("sqlite:///"), timeout=0)
        assert other.execute("SELECT count(*) FROM alerts").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    with sqlite.reading() as session:
        session.execute(select(Alert))
    assert [s for s in said if s.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN"]


def test_a_lock_that_is_not_given_up_is_unavailable(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    database = Database(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    other.execute("BEGIN IMMEDIATE")
    with (
        pytest.raises(Unavailable, match="database is locked"),
        database.transaction() as session,
    ):
        session.add(alert())
    other.rollback()
    other.close()
    with database.transaction() as session:
        session.add(alert())
    assert count(database) == 1


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    path.write_bytes(b"not a database, for certain" * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Database(f"sqlite:///{path}").ping()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Database(f"sqlite:///{tmp_path / 'file' / 'a' / 'node.sqlite'}").ping()


# -- PostgreSQL --------------------------------------------------------------------------------


def test_a_server_that_is_away_is_unavailable_and_comes_back(
    postgresql_url: str, postgres_server: Postgres
) -> None:
    database = Database(postgresql_url)
    assert count(database) == 0
    postgres_server.stop()
    try:
        with pytest.raises(Unavailable, match="database: "), database.transaction() as session:
            session.add(alert())
    finally:
        postgres_server.start()
    with database.transaction() as session:  # pooled connections are dead: new ones are made
        session.add(alert())
    assert count(database) == 1
    database.engine.dispose()


def cut(database: Database, postgres_server: Postgres, session: Any) -> None:
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    postgres_server.execute(f"SELECT pg_terminate_backend({pid})")


def test_a_connection_that_breaks_in_the_commit_leaves_the_outcome_unknown(
    postgresql_url: str, postgres_server: Postgres
) -> None:
    database = Database(postgresql_url)
    with pytest.raises(CommitUnknown), database.transaction() as session:
        session.add(alert())
        session.flush()
        cut(database, postgres_server, session)
    database.engine.dispose()


def test_a_connection_that_breaks_before_the_commit_has_certainly_rolled_back(
    postgresql_url: str, postgres_server: Postgres
) -> None:
    database = Database(postgresql_url)
    with pytest.raises(Unavailable) as caught, database.transaction() as session:
        session.add(alert())
        session.flush()
        cut(database, postgres_server, session)
        session.execute(update(Alert).values(kind="x"))
    assert not isinstance(caught.value, CommitUnknown)
    assert count(database) == 0
    database.engine.dispose()


def test_an_error_never_repeats_the_values_of_a_statement(
    postgresql_url: str, postgres_server: Postgres
) -> None:
    database = Database(postgresql_url)
    with pytest.raises(Unavailable) as caught, database.transaction() as session:
        cut(database, postgres_server, session)
        session.add(alert("CANARY"))
        session.flush()
    assert "CANARY" not in str(caught.value)
    database.engine.dispose()
