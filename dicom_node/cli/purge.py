"""``dicom-node purge``: remove the files that nothing needs any more, or tell which."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress

from dicom_node.cli.output import Json, errors, many, print_json, say
from dicom_node.cli.state import node, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(purge)


def purge(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only tell what would go; nothing is written")
    ] = False,
    json: Json = False,
) -> None:
    """Remove files past their retention time that nothing needs; rows stay, and say when."""
    from dicom_node.services.purge import purge as run
    from dicom_node.store.database import without_bound

    with without_bound(), Progress(console=errors, transient=True, disable=json) as bar:
        task = bar.add_task("looking at studies and results", total=None)
        told = run(node(), dry_run, lambda done, all_: bar.update(task, completed=done, total=all_))
    if json:
        print_json(told.as_dict())
        return
    if not settings().retention.anything:
        say("everything is kept: `retention` in the configuration names no time")
        return
    would = "would go" if dry_run else "went"
    for kind, count in sorted(told.files.items()):
        if count:
            say(f"{would}: {many(count, 'file')} of {kind}")
    say(f"{told.size / 1e6:.1f} MB in all")
    for reason, count in told.kept.most_common():
        say(f"kept, {count}: {reason}")
