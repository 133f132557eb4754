"""``dicom-node modalities``, ``destinations``, ``routes``: who sends, where to, what goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.cli.decisions import labels_of, print_choices, print_rules
from dicom_node.cli.output import Json, Part, coloured, many, print_json, print_rows, say
from dicom_node.cli.state import node
from dicom_node.domain.profile import (
    Capture,
    Compression,
    Document,
    Encoding,
    Identifiers,
    describe,
    first_layout,
)
from dicom_node.services import registry as service

modalities = typer.Typer(help="Who may send to the node.", no_args_is_help=True)
destinations = typer.Typer(help="Where results may go.", no_args_is_help=True)
routes = typer.Typer(help="Which studies go to which models.", no_args_is_help=True)
Title = Annotated[str, typer.Argument(metavar="AE", help="its AE title")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="what rules call it")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="its TCP port")]


@modalities.command("list")
def list_modalities(json: Json = False) -> None:
    """List who may send."""
    rows = service.list_modalities(node())
    told = [{**row, "addresses": row["addresses"] or ["any"]} for row in rows]
    print_rows(rows if json else told, ("ae_title", "addresses", "host", "port"), json)


@modalities.command("add")
def add_modality(
    ae_title: Title,
    address: Annotated[
        list[str] | None,
        typer.Option(help="network that it may come from, as 10.1.2.0/24; repeatable; none: any"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="where it takes storage commitment answers")
    ] = None,
    port: Port = None,
) -> None:
    """Let an AE title send to us; adding it again replaces what was told before."""
    if (host is None) != (port is None):
        raise typer.BadParameter("--host and --port go together")
    service.add_modality(node(), ae_title, address or (), host, port)
    say(f"{ae_title} may send from {', '.join(address or ()) or 'any address'}")


@modalities.command("remove")
def remove_modality(ae_title: Title) -> None:
    """No longer let it send; what it sent stays."""
    service.remove_modality(node(), ae_title)
    say(f"{ae_title} is rejected from now on")


@destinations.command("list")
def list_destinations(json: Json = False) -> None:
    """List where results may go."""
    rows = service.list_destinations(node())
    columns = ("name", "kind", "ae_title", "host", "port", "path", "gets")
    told = [{**row, "gets": describe(first_layout(row["profile"]))} for row in rows]
    print_rows(rows if json else told, columns, json)


@destinations.command("add")
def add_destination(
    name: Name,
    ae_title: Annotated[str | None, typer.Option(help="its AE title")] = None,
    host: Annotated[str | None, typer.Option(help="its address")] = None,
    port: Port = None,
    folder: Annotated[Path | None, typer.Option(help="a folder instead of a PACS")] = None,
    segmentation: Annotated[
        Encoding,
        typer.Option(help="binary shows everywhere; beside fractional goes a binary one"),
    ] = Encoding.BINARY,
    compression: Annotated[
        Compression, typer.Option(help="of segmentations, without loss; rle not for binary")
    ] = Compression.NONE,
    report: Annotated[
        Document, typer.Option(help="enhanced for a PACS that takes no Comprehensive 3D SR")
    ] = Document.COMPREHENSIVE_3D,
    identifiers: Annotated[
        Identifiers, typer.Option(help="viewer: OHIF makes annotations of what is drawn")
    ] = Identifiers.VIEWER,
    capture: Annotated[
        Capture,
        typer.Option(
            help="pictures with the findings burned in; fallback: where SEG or SR is refused"
        ),
    ] = Capture.FALLBACK,
) -> None:
    """Name a place for results, a PACS or a folder; adding it again replaces its entry.

    What a PACS refuses in the association is replaced by what it takes: a compressed
    segmentation by a plain one, others by binary, Comprehensive 3D SR by Enhanced SR, and in the
    end by secondary captures.
    """
    profile = {
        "segmentation": segmentation,
        "compression": compression,
        "report": report,
        "identifiers": identifiers,
        "capture": capture,
    }
    config: dict[str, Any] = {"ae_title": ae_title, "host": host, "port": port}
    given = [value is not None for value in config.values()]
    if folder is not None and not any(given):
        service.add_destination(node(), name, "folder", {"path": str(folder.absolute())}, profile)
    elif folder is None and all(given):
        service.add_destination(node(), name, "dimse", config, profile)
    else:
        raise typer.BadParameter("give --ae-title, --host and --port, or --folder")
    say(f"added; `dicom-node destinations echo {name}` sees whether it answers")


@destinations.command("remove")
def remove_destination(name: Name) -> None:
    """Forget a destination; refused while rules name it or deliveries remember it."""
    service.remove_destination(node(), name)
    say(f"{name} is forgotten")


@destinations.command("echo")
def echo_destination(name: Name, json: Json = False) -> None:
    """See whether a destination answers, how fast, and in which forms it takes results."""
    from dicom_node.services import peers

    destination = peers.named(node(), name)
    seconds, taken = peers.echo(destination), peers.takes(destination)
    if json:
        print_json({"destination": name, "seconds": seconds, "takes": taken})
        return
    say(f"{name} answers in {seconds * 1000:.0f} ms")
    for words, yes in (taken or {}).items():
        say(("takes     ", "green") if yes else ("refuses   ", "yellow"), words, indent=2)


@routes.command("list")
def list_routes(json: Json = False) -> None:
    """List the rules in force."""
    from dicom_node.services.routes import list_rules

    rules = list_rules(node())
    if json:
        print_json(rules)
        return
    for rule in rules:
        off = [] if rule["enabled"] else [("  switched off", "yellow")]
        say((rule["name"], "bold"), f"  {rule['priority']}", *off)
        for key, value in rule["when"].items():
            say(f"{key} = {_written(value)}", indent=4)
        say(f"→ {', '.join(rule['models'])} → {', '.join(rule['destinations'])}", indent=4)
        if rule["expect_instances"]:
            say(f"complete with {rule['expect_instances']} matching instances", indent=4)
    if not rules:
        say("none in force; `dicom-node routes apply FILE`")


@routes.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="rules, as TOML")],
    json: Json = False,
) -> None:
    """Put a file's rules in force, in place of those before; all of them or none."""
    rules = service.read_rules(file)
    service.apply_rules(node(), rules)
    if json:
        print_json({"rules": [rule.name for rule in rules]})
    else:
        say(f"in force: {many(len(rules), 'rule')}")


@routes.command("test")
def test(
    target: Annotated[
        str, typer.Argument(metavar="PATH|UID", help="a file, a folder, or a Study Instance UID")
    ],
    rules: Annotated[
        Path | None, typer.Option(help="rules to try; default: those in force", exists=True)
    ] = None,
    calling: Annotated[str, typer.Option(help="AE title that files count as sent by")] = "",
    called: Annotated[str, typer.Option(help="AE title that files count as sent to")] = "",
    json: Json = False,
) -> None:
    """Try the rules on images, and tell which jobs would follow and why; nothing is run."""
    from dicom_node.services.routes import try_rules

    tried = service.read_rules(rules) if rules else None
    told = try_rules(node(), target, tried, calling, called)
    if json:
        print_json(told)
        return
    for study in told:
        _print_trial(study)


def _print_trial(study: dict[str, Any]) -> None:
    say(("Study ", "bold"), (study["study"], "bold"))
    labels = labels_of(study["series"])
    for label in labels.values():
        say(label, indent=2)
    for reason in dict.fromkeys(row["why"] for row in study["passed_over"]):
        count = sum(row["why"] == reason for row in study["passed_over"])
        say(("passed over: ", "yellow"), f"{count} × {reason}", indent=2)
    if study["held"]:
        text = "it names two patients or issuers: it would be held, and nothing would run"
        say((text, "bold red"), indent=2)
    print_rules(study["rules"], labels, indent=2)
    print_choices(study["choices"], labels, indent=2)
    for job in study["jobs"]:
        where = ", ".join(job["destinations"]) or "nowhere"
        images = many(job["images"], "image")
        shadow: list[Part] = [" ", coloured(job["state"])] if job["state"] == "shadow" else []
        text = f" of {job['model']} on {images}, {job['priority']}, to {where}"
        say(("would make a job", "green"), text, *shadow, indent=2)
    if not study["jobs"]:
        say(("no job would follow", "yellow"), indent=2)


def _written(value: Any) -> str:
    """A condition's value much as the rules file has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_written(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
