"""Whether words are a command of ``dicom-node``: asked of the command itself; nothing is run.

resolve(["worker", "--queues", "any"])      # the command, its words parsed
known_options(["models", "add"])            # for prose, whose arguments are placeholders
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from dicom_node.cli.main import command as the_command


def find(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after them.

    Raises:
        LookupError: a word names no subcommand.
    """
    left = list(words)
    command: Any = typer.main.get_command(the_command(words))
    while hasattr(command, "commands"):
        while left and left[0].startswith("-"):  # --config FILE of the command itself
            del left[: 2 if left[0] in ("--config", "-c") else 1]
        if not left:
            return command, []
        name = left.pop(0)
        if name not in command.commands:
            raise LookupError(f"dicom-node {' '.join(words)}: no command {name!r}")
        command = command.commands[name]
    return command, left


def resolve(words: Sequence[str]) -> None:
    """Parse a whole command line as it would be run; raises what the command would answer."""
    command, left = find(words)
    command.make_context(command.name, left)


def known_options(words: Sequence[str]) -> set[str]:
    """Every option of the command that the words name."""
    command, _ = find(words)
    return {"--help"} | {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
