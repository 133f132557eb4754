"""``dicom-node modalities``, ``destinations``, ``routes``: who sends, where to, what goes where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dicom_node.audit import messages
from dicom_node.cli.audit import changed
from dicom_node.cli.decisions import labels_of, print_choices, print_rules
from dicom_node.cli.output import Json, Part, ago, coloured, many, print_json, print_rows, say
from dicom_node.cli.state import node, settings
from dicom_node.domain.delivery import MAXIMUM_ASSOCIATIONS, Confirmation, Terms
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
from dicom_node.services.admission import Identity

modalities = typer.Typer(help="Who may send to the node.", no_args_is_help=True)
destinations = typer.Typer(help="Where results may go.", no_args_is_help=True)
routes = typer.Typer(help="Which studies go to which models.", no_args_is_help=True)
Title = Annotated[str, typer.Argument(metavar="AE", help="its AE title")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="what rules call it")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="its TCP port")]


def register(command: typer.Typer) -> None:
    """Add the commands."""
    command.add_typer(modalities, name="modalities")
    command.add_typer(destinations, name="destinations")
    command.add_typer(routes, name="routes")


@modalities.command("list")
def list_modalities(json: Json = False) -> None:
    """List who may send."""
    rows = service.list_modalities(node())
    told = [
        {**row, "addresses": row["addresses"] or ["any"], "proves": ", ".join(_proofs(row))}
        for row in rows
    ]
    columns = ("ae_title", "addresses", "host", "port", "proves", "maximum_associations")
    print_rows(rows if json else told, columns, json)


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
    certificate: Annotated[
        list[str] | None,
        typer.Option(
            help="one that it must show over TLS: a file, or its SHA-256 fingerprint; repeatable, "
            "as for a renewal; none: any of the CA"
        ),
    ] = None,
    tls_only: Annotated[
        bool, typer.Option("--tls-only", help="not without TLS; --certificate implies it")
    ] = False,
    user: Annotated[
        str | None,
        typer.Option(help="user identity that it must give; its passcode is asked for, or read"),
    ] = None,
    maximum_associations: Annotated[
        int | None, typer.Option(min=1, help="at once, in each listener process")
    ] = None,
) -> None:
    """Let an AE title send to us; adding it again replaces what was told before."""
    if (host is None) != (port is None):
        raise typer.BadParameter("--host and --port go together")
    service.add_modality(
        node(),
        ae_title,
        address or (),
        host,
        port,
        certificates=certificate or (),
        tls_only=tls_only,
        identity=Identity(user, _passcode()) if user is not None else None,
        maximum_associations=maximum_associations,
    )
    changed(messages.SECURITY_CONFIGURATION, f"modalities/{ae_title}", "added or replaced")
    say(f"{ae_title} may send from {', '.join(address or ()) or 'any address'}")
    if (certificate or tls_only) and "tls" not in settings().tls.ports:
        say(("but only over TLS, for which the listener has no port: see [tls]", "yellow"))


@modalities.command("remove")
def remove_modality(ae_title: Title) -> None:
    """No longer let it send; what it sent stays."""
    service.remove_modality(node(), ae_title)
    changed(messages.SECURITY_CONFIGURATION, f"modalities/{ae_title}", "removed")
    say(f"{ae_title} is rejected from now on")


@destinations.command("list")
def list_destinations(json: Json = False) -> None:
    """List where results may go."""
    rows = service.list_destinations(node())
    columns = (
        "name",
        "kind",
        "state",
        "ae_title",
        "host",
        "port",
        "url",
        "path",
        "gets",
        "asked by",
    )
    told = [
        {
            **row,
            "state": f"closed, probed {ago(row['closed_until'])}"
            if row["closed_until"]
            else "open",
            "gets": describe(first_layout(row["profile"])),
            "asked by": str(row["delivery"]["commitment"]),
        }
        for row in rows
    ]
    print_rows(rows if json else told, columns, json)


@destinations.command("add")
def add_destination(
    name: Name,
    ae_title: Annotated[str | None, typer.Option(help="its AE title")] = None,
    host: Annotated[str | None, typer.Option(help="its address")] = None,
    port: Port = None,
    url: Annotated[
        str | None, typer.Option(help="root of a DICOMweb service, as https://pacs/dicom-web")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="for Basic authentication there; without: a bearer token")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="file with the password or token, read at each sending")
    ] = None,
    secret_variable: Annotated[
        str | None, typer.Option(help="environment variable with it, instead of a file")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="authorities to trust (PEM); default: the system's")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="our certificate (PEM), where it asks for one")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="its key (PEM), where not in the same file")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="seconds for each answer; default: delivery.timeout")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="a folder instead of a PACS")] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="speak TLS, with the certificate of the settings")
    ] = False,
    tls_name: Annotated[
        str | None,
        typer.Option(help="whom its certificate is made out to, where that is not --host"),
    ] = None,
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
    archive: Annotated[
        bool,
        typer.Option(
            "--archive", help="it keeps the images too: asked before committed ones are purged"
        ),
    ] = False,
    commitment: Annotated[
        Confirmation,
        typer.Option(
            help="how it tells that it holds what it took; auto: storage commitment, else a query"
        ),
    ] = Confirmation.AUTO,
    associations: Annotated[
        int, typer.Option(min=1, max=MAXIMUM_ASSOCIATIONS, help="at a time, of each process")
    ] = Terms.associations,
) -> None:
    """Name a PACS, a DICOMweb service or a folder; adding it again replaces its entry.

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
    terms = {"commitment": commitment, "associations": associations}
    web = {
        "url": url,
        "user": user,
        "secret_file": secret_file,
        "secret_variable": secret_variable,
        "ca_file": ca_file,
        "certificate": certificate,
        "key": key,
        "timeout": timeout,
    }
    kinds: dict[str, dict[str, Any]] = {
        "dimse": {
            "ae_title": ae_title,
            "host": host,
            "port": port,
            "tls": tls or None,
            "tls_name": tls_name,
        },
        "dicomweb": web,
        "folder": {"path": folder},
    }
    if tls_name and not tls:
        raise typer.BadParameter("--tls-name goes with --tls")
    given = {kind: told for kind, config in kinds.items() if (told := _given(config))}
    needed = {"dimse": {"ae_title", "host", "port"}, "dicomweb": {"url"}, "folder": {"path"}}
    if len(given) != 1 or any(needed[kind] - set(config) for kind, config in given.items()):
        raise typer.BadParameter("give --ae-title, --host and --port, or --url, or --folder")
    for kind, config in given.items():
        service.add_destination(node(), name, kind, config, profile, terms, archive)
    changed(messages.NETWORK_CONFIGURATION, f"destinations/{name}", "added or replaced")
    say(f"added; `dicom-node destinations echo {name}` sees whether it answers")


def _given(config: dict[str, Any]) -> dict[str, Any]:
    """What was told, paths absolute: workers run elsewhere."""
    return {
        key: str(value.absolute()) if isinstance(value, Path) else value
        for key, value in config.items()
        if value is not None
    }


@destinations.command("remove")
def remove_destination(name: Name) -> None:
    """Forget a destination; refused while rules name it or deliveries remember it."""
    service.remove_destination(node(), name)
    changed(messages.NETWORK_CONFIGURATION, f"destinations/{name}", "removed")
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
    changed(messages.SOFTWARE_CONFIGURATION, "routes", "rules put in force")
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


def _passcode() -> str:
    """Asked for, or the first line of the input: on the command line all could see it."""
    if sys.stdin.isatty():
        return str(typer.prompt("passcode", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _proofs(row: dict[str, Any]) -> list[str]:
    """What a modality must show beside its AE title."""
    proofs = [f"certificate {value[:16]}…" for value in row["certificates"]]
    if row["tls_only"] and not proofs:
        proofs.append("any certificate of the CA")
    return proofs + ([f"user {row['user']}"] if row["user"] is not None else [])


def _written(value: Any) -> str:
    """A condition's value much as the rules file has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_written(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
