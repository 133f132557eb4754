"""Owns how long PostgreSQL is waited for; refuses to know what it is asked.

A lock that somebody holds is the server's to give up (``lock_timeout``). A server that is frozen
gives up nothing, and the kernel still answers for it: so the client watches the time itself.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import Engine, create_engine, event

from dicom_node.store.database import unbounded

SILENT_SECONDS = 30
"""How long a server may say nothing to a statement before its connection is given up."""


class _Watched(psycopg.Connection[Any]):
    """Whatever it awaits of the server comes in time, or it is closed."""

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """The one place where psycopg awaits the server; it looks up every 0.1 s."""
        return super().wait(gen if unbounded.get() else self._in_time(gen), *args, **kwargs)

    def _in_time(self, gen: PQGen[RV]) -> PQGen[RV]:
        ready, heard = None, time.monotonic()
        while True:
            try:
                wanted = gen.send(ready)  # type: ignore[arg-type] # None starts it
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return] # what `gen` returned
            ready = yield wanted
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENT_SECONDS:
                self.close()
                words = f"the server answered nothing for {SILENT_SECONDS:g} s"
                raise psycopg.OperationalError(words)


def connect(url: str, busy: float) -> Engine:
    """Make the engine; nothing is opened yet.

    Args:
        url: of PostgreSQL by psycopg; its own parameters go before ours.
        busy: seconds that a lock or a free connection is waited for.
    """
    engine = create_engine(url, pool_pre_ping=True, pool_size=10, pool_timeout=busy)
    ours = {
        "connect_timeout": 5,
        # A host that vanished: TCP alone would wait for it for a quarter of an hour.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * SILENT_SECONDS,
    }

    @event.listens_for(engine, "do_connect")
    def open_one(_dialect: Any, _record: Any, args: list[Any], given: dict[str, Any]) -> _Watched:
        options = f"-c lock_timeout={round(1000 * busy)} {given.get('options', '')}"
        return _Watched.connect(*args, **{**ours, **given, "options": options})

    return engine
