"""Owns how the command prints: tables for people, JSON for scripts, never both at once.

Text from headers and peers is shown, never obeyed: no markup, no control characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Part = str | tuple[str, str]

_COLOURS = {
    "done": "green",
    "sent": "green",
    "committed": "green",
    "confirmed": "green",
    "unconfirmed": "yellow",
    "closed": "green",
    "active": "green",
    "running": "cyan",
    "sending": "cyan",
    "open": "cyan",
    "ready": "yellow",
    "pending": "yellow",
    "staged": "yellow",
    "shadow": "yellow",
    "dead": "red",
    "held": "red",
    "cancelled": "bright_black",
    "retired": "bright_black",
}


def print_json(value: Any) -> None:
    """One JSON document on stdout; times in ISO 8601."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, indent: int = 0
) -> None:
    """A listing: the named columns as a table, or every field as JSON.

    Args:
        rows: what to list.
        columns: keys of the rows that a person wants to see.
        as_json: the user's ``--json``.
        indent: columns to leave empty on the left.
    """
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        say("none", indent=indent)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        title = column.replace("_", " ")
        table.add_column(" " * indent * (not number) + title, overflow="fold")
    for row in rows:
        first, *rest = (cell(row.get(column)) for column in columns)
        table.add_row(Text(" " * indent) + first, *rest)
    # A pipe has no width to fold at, and a folded UID cannot be searched for.
    wide = Console(file=console.file, highlight=False, width=1000)
    (console if console.is_terminal else wide).print(table)


def say(*parts: Part, indent: int = 0) -> None:
    """One line: texts, and (text, style) pairs; what they hold is shown as it is."""
    pieces = [(clean(p), "") if isinstance(p, str) else (clean(p[0]), p[1]) for p in parts]
    console.print(Text.assemble(" " * indent, *pieces))


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}{'s' * (count != 1)}"


def coloured(state: str) -> tuple[str, str]:
    """A state with its colour, for ``say``."""
    return state, _COLOURS.get(state, "")


def clean(text: str) -> str:
    """Without control characters: a header must not steer the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def cell(value: Any) -> Text:
    """A value as a person reads it."""
    if value is None or value in ("", [], ()):
        return Text("-", style="bright_black")
    if isinstance(value, datetime):
        return Text(ago(value))
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return Text(clean(text), style=_COLOURS.get(text, ""))


def ago(then: datetime) -> str:
    """How long ago, or how far ahead, in the largest unit that makes sense."""
    seconds = (datetime.now(UTC) - then).total_seconds()
    size, unit = next(
        ((s, u) for s, u in ((86400, "d"), (3600, "h"), (60, "min")) if abs(seconds) >= s), (1, "s")
    )
    if round(seconds) < 0:
        return f"in {-seconds / size:.0f} {unit}"
    return f"{abs(seconds) / size:.0f} {unit} ago"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
