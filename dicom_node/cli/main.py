"""Owns the command ``dicom-node``: its subcommands, its options for all, its exit codes.

The exit codes stand in ``dicom-node --help``; each error of ``dicom_node.errors`` names its own.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import dicom_node
from dicom_node import faults
from dicom_node.cli.output import clean, console, errors
from dicom_node.cli.state import choose
from dicom_node.errors import NodeError

PARTS = {
    "setup": {"init", "doctor", "status", "db"},
    "run": {"up", "listen", "worker", "scheduler"},
    "send": {"send", "echo"},
    "purge": {"purge"},
    "demo": {"demo"},
    "studies": {"studies", "instances"},
    "jobs": {"jobs", "deliveries"},
    "registry": {"modalities", "destinations", "routes"},
    "models": {"models"},
    "audit": {"audit"},
}
"""The module of each subcommand, and its words: one is loaded sooner than all."""


def command(words: Sequence[str] = ()) -> typer.Typer:
    """The command, with the subcommands that its words name; all, where they name none."""
    app = typer.Typer(
        name="dicom-node",
        help="A clinical decision-support node: studies in by C-STORE, SEG and SR results out.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        epilog="Exit codes: 0 done; 1 the node says no, with the reason; 2 a setting, rule or "
        "argument is wrong; 3 nothing stored by that name; 4 its state forbids it; 5 database, "
        "broker, disk or peer is away; 130 interrupted.",
    )
    app.callback(invoke_without_command=True)(options)
    named = set(takewhile(lambda word: word != "--help", words))
    for part in [part for part, own in PARTS.items() if named & own] or PARTS:
        import_module(f"dicom_node.cli.{part}").register(app)
    for extension in entry_points(group="dicom_node.commands"):
        extension.load()(app)  # loads no torch to be asked for its help; a test sees to that
    return app


def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="The TOML file; default: $DICOM_NODE_CONFIG, then ./dicom-node.toml.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    choose(config)
    if version:
        console.print(f"dicom-node {dicom_node.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.print(context.get_help())


def main() -> None:
    """Run the command; our errors become one line and an exit code, never a traceback."""
    app = command(sys.argv[1:])
    warnings.filterwarnings("ignore", module="pydicom")  # they quote values of headers
    if told := faults.arm(os.environ):
        errors.print(f"dicom-node: {told}", style="bold red")
    try:
        app()  # answers usage errors with 2 and an interrupt with 130
    except NodeError as error:
        reason = (clean(str(error)), "")
        errors.print(Text.assemble(("dicom-node: ", "bold red"), reason))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
