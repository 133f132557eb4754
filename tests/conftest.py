"""Fixtures that several test packages share: databases, nodes, bundles.

``database_url`` and ``node`` come once on SQLite and once on PostgreSQL; ``sqlite_node`` is for
tests to which the database does not matter. With ``--database postgresql`` it and the nodes of
``tests/node.py`` stand on PostgreSQL too, and what is marked ``sqlite`` is skipped. Under
pytest-xdist every worker has servers of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.servers import Postgres, postgresql

if TYPE_CHECKING:
    from dicom_node.services.context import Node
    from inference.bundle import Bundle
    from tests.nodes import Clock

TEMPLATE = "migrated"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="on which nodes stand whose test does not say so itself",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("sqlite") and item.config.getoption("database") != "sqlite":
        pytest.skip("is about SQLite itself")


@pytest.fixture(scope="session", autouse=True)
def _database_of_nodes(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("database") == "postgresql":
        from tests import node as processes

        server: Postgres = request.getfixturevalue("postgres_server")
        processes.own_database = lambda: server.new_database(TEMPLATE)


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> Iterator[None]:
    """A command run inside a test sends logs to a stderr that is gone afterwards."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A cluster with a database named ``migrated``, from which others are copied."""
    from dicom_node.store.database import Database
    from dicom_node.store.migrate import upgrade

    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        server.execute(f'CREATE DATABASE "{TEMPLATE}"')
        database = Database(server.url_of(TEMPLATE))
        upgrade(database)
        database.engine.dispose()  # nobody may be connected to what is copied
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file of the right revision, to be copied."""
    from dicom_node.store.database import Database
    from dicom_node.store.migrate import upgrade

    path = tmp_path_factory.mktemp("sqlite") / "node.sqlite"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.engine.dispose()  # writes the log back, so that the one file is all
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A database of the right revision, in a file."""
    path = tmp_path / "node.sqlite"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgres_server: Postgres) -> Iterator[str]:
    """A database of the right revision, on a server."""
    url = postgres_server.new_database(TEMPLATE)
    yield url
    postgres_server.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The same database on either."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def clock() -> Clock:
    """Stands still until the test moves it."""
    from tests.nodes import Clock

    return Clock()


@pytest.fixture
def node(database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Node]:
    """A node on either database."""
    yield from _node(database_url, tmp_path, clock)


@pytest.fixture
def sqlite_node(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Node]:
    """A node for tests to which the database does not matter."""
    url = request.getfixturevalue(f"{request.config.getoption('database')}_url")
    yield from _node(url, tmp_path, clock)


def _node(url: str, folder: Path, clock: Clock) -> Iterator[Node]:
    from tests.nodes import make_node

    made = make_node(
        folder / "data",
        clock,
        storage={"folder": folder / "data", "database": url},
        listener={"reserve_mb": 0},
        delivery={"timeout": 2, "backoff": 10, "backoff_max": 100, "attempts": 5},
        worker={"device": "cpu", "lease": 20},
        scheduler={"canary": 0},
    )
    yield made
    made.database.engine.dispose()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of radiographs, called ``tiny``."""
    from tests.bundles import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_ct_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of axial CT series, called ``tiny-ct``."""
    from tests.bundles import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny-ct", "tiny-ct", 1, ct=True)
