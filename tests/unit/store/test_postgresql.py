from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from dicom_node.errors import Unavailable
from dicom_node.store import postgresql
from dicom_node.store.database import Database, without_bound


@pytest.fixture
def database(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    made = Database(postgresql_url)
    made.ping()
    monkeypatch.setattr(postgresql, "SILENT_SECONDS", 0.5)
    yield made
    made.engine.dispose()


def test_a_statement_that_is_not_answered_in_time_is_given_up(database: Database) -> None:
    with (
        pytest.raises(Unavailable, match="the server answered nothing for"),
        database.reading() as session,
    ):
        session.execute(text("SELECT pg_sleep(5)"))
    database.ping()  # on another connection


def test_what_may_take_its_time_is_waited_for(database: Database) -> None:
    with without_bound(), database.reading() as session:
        session.execute(text("SELECT pg_sleep(1)"))
    with pytest.raises(Unavailable), database.reading() as session:
        session.execute(text("SELECT pg_sleep(5)"))


def test_an_answer_that_keeps_coming_is_no_silence(database: Database) -> None:
    with database.reading() as session:
        rows = session.execute(
            text("SELECT pg_sleep(0.1), repeat('x', 20000) FROM generate_series(1, 10)")
        )
        assert len(rows.all()) == 10


def test_what_the_url_says_holds_beside_our_own(postgresql_url: str) -> None:
    database = Database(f"{postgresql_url}&options=-csearch_path%3Dpg_catalog&keepalives_idle=77")
    with database.reading() as session:
        shown = [session.scalar(text(f"SHOW {name}")) for name in ("lock_timeout", "search_path")]
        raw = session.connection().connection.driver_connection
        assert raw is not None
        assert shown == ["10s", "pg_catalog"]
        assert raw.info.get_parameters()["keepalives_idle"] == "77"
        assert raw.info.get_parameters()["tcp_user_timeout"] == "30000"
    database.engine.dispose()
