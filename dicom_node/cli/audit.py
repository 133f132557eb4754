"""``dicom-node audit``: show, verify, ship; and how other commands tell the trail what they do."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from dicom_node.audit import messages, who
from dicom_node.audit.messages import Action, Code
from dicom_node.audit.recorder import Recorder
from dicom_node.cli.output import Json, many, print_json, print_rows, say
from dicom_node.cli.state import node, settings

app = typer.Typer(help="Who did what: the audit trail.", no_args_is_help=True)


def register(command: typer.Typer) -> None:
    """Add the commands."""
    command.add_typer(app, name="audit")


def changed(kind: Code, what: str, text: str) -> None:
    """Tell the trail what this command has changed.

    Args:
        kind: of CID 401, as `messages.SECURITY_CONFIGURATION`.
        what: the thing, as `modalities/CT1`.
        text: what was done to it; names no patient.
    """
    from dicom_node.services.audit import record

    by = (who.person(), node().audit.process)
    subject = f"dicom-node:{what}"
    record(node(), messages.security_alert(node().now(), kind, by, text, subject=subject))


def accessed(uid: str, action: Action = Action.READ) -> None:
    """Tell the trail that this command has shown or altered a study."""
    from dicom_node.services.audit import accessed as tell

    tell(node(), action, uid, (who.person(), node().audit.process))


@app.command()
def show(
    study: Annotated[str | None, typer.Option(help="only of this Study Instance UID")] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many, at most")] = 50,
    json: Json = False,
) -> None:
    """Show what was audited, the newest last; the trail tells that it was read."""
    from dicom_node.audit.report import told

    recorder = _read()
    rows = (told(record) for record in recorder.trail.read())
    last = deque((row for row in rows if study in (None, row.get("study"))), limit)
    columns = ("sequence", "at", "event", "type", "outcome", "who", "study", "instances", "text")
    print_rows(last, columns, json)


@app.command()
def verify(json: Json = False) -> None:
    """See whether records were altered or removed since they were written; exit code 1 if so."""
    trail = _read().trail
    found = trail.verify()
    if json:
        print_json(asdict(found))
    else:
        since = "" if found.first <= 1 else f", from {found.first} on: older files are not here"
        say(f"{many(found.records, 'record')}{since}")
        for fault in found.faults:
            say(("✗ ", "bold red"), fault)
        if not found.faults:
            say(("✓ ", "green"), "the chain is whole")
    if found.faults:
        raise typer.Exit(1)


@app.command()
def ship(json: Json = False) -> None:
    """Ship now what waits for the audit repository; the scheduler does so by itself."""
    from dicom_node.audit.syslog import Shipper

    shipper = Shipper(Recorder(settings(), "cli").trail, settings().audit)
    shipped = shipper.ship()
    waiting = shipper.waiting()
    if json:
        print_json({"shipped": shipped, "waiting": waiting})
    else:
        say(f"shipped {many(shipped, 'record')}, {waiting} wait")


def _read() -> Recorder:
    """The recorder of this run, once the trail knows that it is read; needs no database."""
    recorder = Recorder(settings(), "cli")
    by, log = (who.person(), recorder.process), recorder.trail.folder.as_uri()
    recorder.record(messages.log_used(datetime.now(UTC), by, log))
    return recorder
