"""Owns the question whether a moment that stands in a row has come, though clocks jump.

Forward, what waits is due once, early. Back, it would wait until the clock is there again, for a
day perhaps: so what lies further ahead than anybody puts it off counts as come. Refuses to know
what waits, and for how long.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_


def has_come(moment: Any, now: datetime, longest: timedelta) -> ColumnElement[bool]:
    """For queries.

    Args:
        moment: a column; never come where it is null.
        now: by the wall clock.
        longest: the furthest that it is ever set ahead.
    """
    return or_(moment <= now, moment > now + longest)
