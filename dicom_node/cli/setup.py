"""``dicom-node init``, ``doctor``, ``status``, and ``db``: to set the node up and see how it is."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.cli.output import Json, ago, coloured, console, many, print_json, print_rows, say
from dicom_node.cli.state import node, settings
from dicom_node.errors import ConfigurationError
from dicom_node.services import configuration
from dicom_node.services.models import SHIPPED
from dicom_node.store import migrate
from dicom_node.store.database import Database

db = typer.Typer(help="The database's schema.", no_args_is_help=True)
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "fault": ("✗", "bold red")}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (init, doctor, status):
        app.command()(command)
    app.add_typer(db, name="db")


def init(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="the file to write; default: --config, dicom-node.toml")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace the file; its node_salt stays")
    ] = False,
    json: Json = False,
) -> None:
    """Write a configuration with every setting explained, and example rules beside it."""
    named = context.find_root().params.get("config")
    written = configuration.write_configuration(path or named or Path("dicom-node.toml"), force)
    if json:
        print_json(written)
        return
    kept = " (the salt of the old file is kept)" if written["kept_salt"] else ""
    say("wrote ", (str(written["configuration"]), "bold"), f", readable by you only{kept}")
    rules = str(written["rules"])
    if written["kept_rules"]:
        say("left ", (rules, "bold"), " as it is")
    else:
        say("wrote ", (rules, "bold"), ", an example")
    say("Next:")
    for command, why in (
        ("dicom-node db upgrade", "make the database"),
        ("dicom-node modalities add AE --address 10.0.0.0/8", "say who may send"),
        ("dicom-node destinations add pacs --ae-title AE --host HOST --port PORT", "and where to"),
        (f"dicom-node models add {SHIPPED / 'cxr-lungs'} --activate", "a model that is shipped"),
        (f"dicom-node routes apply {rules}", "what goes where"),
        ("dicom-node up", "run it; `dicom-node doctor` looks at everything"),
    ):
        say((command, "cyan"), (f"   # {why}", "bright_black"), indent=2)


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="run every model's golden example, too")
    ] = False,
    json: Json = False,
) -> None:
    """Look at everything that the node needs, and say what to do; exit code 1 at a fault."""
    from dicom_node.services.health import Check, Level, examine

    checks: list[Check] = []
    try:
        found = examine(settings(), lambda: datetime.now(UTC), deep)
    except ConfigurationError as error:
        remedy = "mend it, or let `dicom-node init --force` write a new one"
        found = iter([Check("configuration", Level.FAULT, str(error), remedy)])
    for check in found:
        checks.append(check)
        if not json:
            say(_MARKS[check.level], f" {check.name:15}", check.found)
            if check.remedy:
                say(("→ ", "bright_black"), check.remedy, indent=18)
    faults = sum(check.level is Level.FAULT for check in checks)
    if json:
        print_json([asdict(check) for check in checks])
    else:
        warnings = sum(check.level is Level.WARNING for check in checks)
        say(f"{many(faults, 'fault')}, {many(warnings, 'warning')}")
    if faults:
        raise typer.Exit(1)


def status(json: Json = False) -> None:
    """Show on one screen how the node stands."""
    from dicom_node.services.health import status as ask

    told = ask(node())
    if json:
        print_json(told)
        return
    _heading("processes")
    for process in told["processes"]:
        state = ("beating", "green") if process["beating"] else ("SILENT", "bold red")
        place = f"{process['role']:10} {process['host']} {process['pid']}  "
        say(place, state, f"  since {ago(process['started_at'])}", indent=2)
    if not told["processes"]:
        say(("none is running: `dicom-node up`", "yellow"), indent=2)
    for queue in told["queues"]:
        if queue["late"]:
            say((f"queue {queue['queue']}: nobody takes tasks from it", "bold red"), indent=2)
    say(("associations ", "bold"), f" {told['associations']} open")
    _line("studies", told["studies"])
    _line("jobs", told["jobs"], "the oldest ready one came", told["oldest_ready_job"])
    waits = told["oldest_pending_delivery"]
    _line("deliveries", told["deliveries"], "the oldest pending one came", waits)
    models = [part for m in told["models"] for part in (coloured(m["state"]), f" {m['model']}  ")]
    say(("models       ", "bold"), " ", *(models or [("none active", "yellow")]))
    _audit(told["audit"])
    for file in told["certificates"]:
        if file["renew"]:
            until = f" ends on {file['ends']:%Y-%m-%d}" if file["ends"] else ""
            say((f"{file['setting']}{until}: ", "bold red"), file["what"])
    if told["alerts"]:
        _heading(f"alerts ({len(told['alerts'])})", "bold red")
        print_rows(told["alerts"][:10], ("at", "kind", "subject", "text"), False, indent=2)
    else:
        say(("alerts       ", "bold"), " none")


@db.command()
def upgrade(json: Json = False) -> None:
    """Bring the database to the revision that this version needs; makes it where there is none."""
    database = Database(settings().database_url)
    before = migrate.current(database)
    after = migrate.upgrade(database)
    if json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"already at revision {after}")
    else:
        say(f"from revision {before or 'none'} to {after}")


@db.command()
def current(json: Json = False) -> None:
    """Show the database's revision and the one needed; exit code 1 where they differ."""
    found, needed = migrate.current(Database(settings().database_url)), migrate.head()
    if json:
        print_json({"current": found, "needed": needed})
    else:
        say(f"at revision {found or 'none'}, this version needs {needed}")
        if found != needed:
            say("run ", ("dicom-node db upgrade", "cyan"))
    if found != needed:
        raise typer.Exit(1)


def _audit(told: dict[str, Any]) -> None:
    shipped = ago(told["shipped_at"]) if told["shipped_at"] else "never"
    waits = f", {told['waiting']} wait for {told['receiver']}, last shipped {shipped}"
    fault = [(f": {told['fault']}", "yellow")] if told["fault"] else []
    text = many(told["records"], "record") + (waits if told["receiver"] else ", kept here only")
    say(("audit        ", "bold"), f" {text}", *fault)


def _heading(text: str, style: str = "bold") -> None:
    console.print(text, style=style)


def _line(name: str, counts: dict[str, int], words: str = "", since: Any = None) -> None:
    parts = [p for state, n in counts.items() for p in (f" {n} ", coloured(state), " ")]
    waits = [(f" {words} {ago(since)}", "bright_black")] if since else []
    say((f"{name:13}", "bold"), *(parts or [" none"]), *waits)
