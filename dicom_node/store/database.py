"""Owns the engine and its transactions; refuses to know any table.

SQLite: WAL, synchronous FULL (a commit is on disk when it returns), BEGIN IMMEDIATE for writers
(a deferred transaction that upgrades fails at once, whatever the timeout). PostgreSQL: its own
defaults, but for how long it is waited for (``store.postgresql``). Errors that say "not now" leave
as ``Unavailable``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.errors import Unavailable
from dicom_node.store.group import Group, Item, Result

BUSY_SECONDS = 10
"""How long a writer waits for another before the database counts as away."""

unbounded: ContextVar[bool] = ContextVar("unbounded", default=False)
"""Whether answers are awaited as long as they take, in this thread."""


@contextmanager
def without_bound() -> Iterator[None]:
    """For statements that may run for minutes and that nobody waits for: purges, migrations."""
    before = unbounded.set(True)
    try:
        yield
    finally:
        unbounded.reset(before)


def connect(url: str) -> Engine:
    """Make the engine; nothing is opened yet.

    Args:
        url: a SQLAlchemy URL of SQLite or PostgreSQL.
    """
    if not url.startswith("sqlite"):
        from dicom_node.store import postgresql  # loads psycopg, which SQLite does without

        return postgresql.connect(url, BUSY_SECONDS)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=20)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


class Database:
    """Transactions on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        if url.startswith("sqlite:///"):
            folder = Path(url.removeprefix("sqlite:///")).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable(f"folder {folder}: {error.strerror}") from error
        self.engine = connect(url)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._groups: dict[Any, Group[Any, Any]] = {}
        self._look = self.engine.execution_options(read_only=True)
        self._read = sessionmaker(self._look, expire_on_commit=False)

    @property
    def is_postgresql(self) -> bool:
        """True where row locks and SKIP LOCKED exist."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction: committed at the end, rolled back on any error.

        Raises:
            Unavailable: the database cannot be reached, is locked or full. After a failed commit
                the outcome may be unknown: see ``CommitUnknown``.
        """
        with self._translated(), self._write() as session:
            yield session
            with _committing():
                session.commit()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """As `transaction`, without the ORM, for what is written often."""
        with self._translated(), self.engine.connect() as connection:
            yield connection
            with _committing():
                connection.commit()

    def group(
        self, perform: Callable[[Connection, Sequence[Item]], Sequence[Result]]
    ) -> Group[Item, Result]:
        """The group of this process's threads that write by ``perform``; the same at each call."""
        if perform not in self._groups:

            def carry(items: Sequence[Item]) -> Sequence[Result]:
                with self.writing() as connection:
                    results = perform(connection, items)
                return results

            self._groups.setdefault(perform, Group(carry))
        return self._groups[perform]

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """As `reading`, without the ORM."""
        with self._translated(), self._look.connect() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._translated(), self._read() as session:
            yield session

    def ping(self) -> None:
        """Raise Unavailable unless a query is answered."""
        with self.reading() as session:
            session.execute(text("SELECT 1"))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise Unavailable(f"database: {_reason(error)}") from error
        except DatabaseError as error:
            if type(error) is DatabaseError:  # SQLite: not a database, malformed
                raise Unavailable(f"database: {_reason(error)}") from error
            raise


class CommitUnknown(Unavailable):
    """The connection or the disk failed in a COMMIT: the transaction may or may not have happened.

    On SQLite it is rolled back, but where the sync failed it may stand in the log already, and
    whoever opens the database after a crash finds it there.
    """


@contextmanager
def _committing() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        failed_disk = getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_IOERR")
        if error.connection_invalidated or failed_disk:
            raise CommitUnknown(_reason(error)) from error
        raise


def _reason(error: Exception) -> str:
    """The driver's first line; never the statement, whose values may name a patient."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
