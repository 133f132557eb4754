"""``dicom-node send`` and ``echo``: to play the modality, and to see whether a peer answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicom_node.audit.messages import RESTRICTED_FUNCTION
from dicom_node.cli.audit import changed
from dicom_node.cli.output import Json, errors, many, print_json, print_rows, say
from dicom_node.cli.state import node, settings
from dicom_node.errors import DeliveryFailed, NotFound

if TYPE_CHECKING:
    from dicom_node.destinations.types import Destination, Item, Sent

Calling = Annotated[
    str | None, typer.Option("--calling", "--as", help="AE title to speak as", metavar="AE")
]

Tls = Annotated[bool, typer.Option("--tls", help="speak TLS where no destination's entry tells")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(send)
    app.command()(echo)


def send(
    paths: Annotated[
        list[Path], typer.Argument(help="DICOM files, or folders of them", exists=True)
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="a destination's name, or host:port/AE; default: the node's own listener"
        ),
    ] = None,
    calling: Calling = None,
    tls: Tls = False,
    json: Json = False,
) -> None:
    """Send files over one association and count the answers; exit code 1 if any was not taken."""
    from dicom_node.services.peers import explained
    from dicom_node.services.send import gather

    destination = _peer(to, calling, tls)
    items, skipped = gather(paths)
    if not items:
        raise NotFound("DICOM file in", ", ".join(map(str, paths)))
    answers: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, str]] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=json or not errors.is_terminal,
        transient=True,
    ) as progress:
        bar = progress.add_task("sending", total=len(items))

        def record(item: Item, outcome: Sent | DeliveryFailed) -> None:
            status = "" if outcome.status is None else f"0x{outcome.status:04X}"
            if isinstance(outcome, DeliveryFailed):
                words = outcome.reason
                if outcome.status is None:
                    words = explained(words, destination)
                comment = getattr(outcome, "comment", "")
                words += f" ({comment})" if comment else ""
                failures.append({"file": str(item.path), "status": status, "answer": words})
            else:
                words = "stored" if outcome.status == 0 else "stored with a warning"
            answers[status, words] += 1
            progress.advance(bar)

        destination.send(items, record)
    changed(RESTRICTED_FUNCTION, f"send/{to or 'listener'}", f"{many(len(items), 'file')} sent")
    told = [{"count": n, "status": s, "answer": words} for (s, words), n in answers.most_common()]
    if json:
        print_json({"answers": told, "failures": failures, "skipped": skipped})
    else:
        print_rows(told, ("count", "status", "answer"), False)
        if skipped:
            say((f"left out: {many(len(skipped), 'file')} without a DICOM instance", "yellow"))
    if failures:
        raise typer.Exit(1)


def echo(
    to: Annotated[
        str | None,
        typer.Argument(
            metavar="[DESTINATION]",
            help="a destination's name, or host:port/AE; default: the node's own listener",
        ),
    ] = None,
    calling: Calling = None,
    tls: Tls = False,
    json: Json = False,
) -> None:
    """Ask a peer whether it is there (C-ECHO), and how fast it answers."""
    from dicom_node.services import peers

    seconds = peers.echo(_peer(to, calling, tls))
    if json:
        print_json({"peer": to, "seconds": seconds})
    else:
        say(f"{to or 'the listener'} answers in {seconds * 1000:.0f} ms")


def _peer(to: str | None, calling: str | None, tls: bool) -> Destination:
    from dicom_node.services import peers

    if to is None:
        return peers.own_listener(node(), calling, tls)
    return peers.at_address(to, settings(), calling, tls) or peers.named(node(), to, calling)
