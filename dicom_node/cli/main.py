"""Owns the command ``dicom-node``: its subcommands, its options for all, its exit codes.

The exit codes stand in ``dicom-node --help``; each error of ``dicom_node.errors`` names its own.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import dicom_node
from dicom_node import faults
from dicom_node.cli import audit, demo, jobs, models, purge, registry, run, send, setup, studies
from dicom_node.cli.output import clean, console, errors
from dicom_node.cli.state import choose
from dicom_node.errors import NodeError

app = typer.Typer(
    name="dicom-node",
    help="A clinical decision-support node: studies in by C-STORE, SEG and SR results out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done; 1 the node says no, with the reason; 2 a setting, rule or argument "
    "is wrong; 3 nothing stored by that name; 4 its state forbids it; 5 database, broker, disk or "
    "peer is away; 130 interrupted.",
)


@app.callback(invoke_without_command=True)
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


for part in (setup, run, send, purge, demo):
    part.register(app)
for name, group in (
    ("db", setup.db),
    ("studies", studies.app),
    ("instances", studies.instances),
    ("jobs", jobs.app),
    ("deliveries", jobs.deliveries),
    ("modalities", registry.modalities),
    ("destinations", registry.destinations),
    ("routes", registry.routes),
    ("models", models.app),
    ("audit", audit.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command; our errors become one line and an exit code, never a traceback."""
    for extension in entry_points(group="dicom_node.commands"):
        extension.load()(app)  # loads no torch to be asked for its help; a test sees to that
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
