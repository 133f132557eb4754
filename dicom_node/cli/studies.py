"""``dicom-node studies``: list, show, why, rerun, reopen, resolve; ``instances``: list, resolve."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dicom_node.audit.messages import RESTRICTED_FUNCTION, Action
from dicom_node.cli.audit import accessed, changed
from dicom_node.cli.output import Json, ago, coloured, many, print_json, print_rows, say
from dicom_node.cli.state import node
from dicom_node.cli.why import print_explanation
from dicom_node.domain.study import StudyState
from dicom_node.services import explain, jobs
from dicom_node.services import studies as service

app = typer.Typer(help="The studies that modalities sent.", no_args_is_help=True)
instances = typer.Typer(
    help="Instances that came again with other content, in quarantine.", no_args_is_help=True
)
Uid = Annotated[str, typer.Argument(metavar="UID", help="Study Instance UID")]
Limit = Annotated[int, typer.Option(min=1, help="how many, at most")]
Number = Annotated[int, typer.Argument(metavar="ID", help="as `instances list` shows it")]


def register(command: typer.Typer) -> None:
    """Add the commands."""
    command.add_typer(app, name="studies")
    command.add_typer(instances, name="instances")


class Keep(StrEnum):
    """Which of two contents is the instance."""

    OLD = "old"
    NEW = "new"


@app.command("list")
def list_(
    state: Annotated[StudyState | None, typer.Option(help="only those in this state")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List studies; the one that was sent to last comes first."""
    columns = ("state", "modalities", "instances", "revision", "jobs", "last_at", "study")
    print_rows(service.list_studies(node(), state, limit), columns, json)


@app.command()
def show(uid: Uid, json: Json = False) -> None:
    """Show a study's series, revisions and jobs."""
    told = service.show_study(node(), uid)
    accessed(uid)
    if json:
        print_json(told)
        return
    came = f"  first {ago(told['first_at'])}, last {ago(told['last_at'])}"
    say((uid, "bold"), "  ", coloured(told["state"]), came)
    if told["waiting_for"]:
        say(told["waiting_for"])
    counts = (
        "number",
        "modality",
        "description",
        "instances",
        "counting",
        "purged",
        "megabytes",
        "from",
    )
    print_rows(told["series"], (*counts, "series"), False)
    if told["revisions"]:
        say("")
        columns = ("revision", "closed_at", "complete", "instances", "evidence")
        print_rows(told["revisions"], columns, False)
    if told["jobs"]:
        say("")
        print_rows(told["jobs"], ("job", "model", "revision", "state", "attempts", "error"), False)
    if told["identities"]:
        say("")
        say(("It names more than one patient; `dicom-node studies resolve` keeps one:", "red"))
        print_rows(told["identities"], ("patient_id", "issuer", "instances"), False)


@app.command()
def why(uid: Uid, json: Json = False) -> None:
    """Tell where a study is and why: what came, what was decided, what ran, what was sent."""
    told = explain.explain(node(), uid)
    accessed(uid)
    if json:
        print_json(told)
    else:
        print_explanation(told)


@app.command()
def rerun(
    uid: Uid,
    model: Annotated[str | None, typer.Option(help="only this model, by name")] = None,
    json: Json = False,
) -> None:
    """Run a study's models again; the new report names the one that it supersedes."""
    made = jobs.rerun_study(node(), uid, model)
    changed(RESTRICTED_FUNCTION, f"studies/{uid}", "models to run again")
    if json:
        print_json({"jobs": made})
    else:
        say(f"made job {', '.join(map(str, made))}" if made else "a newer generation runs already")


@app.command()
def reopen(uid: Uid) -> None:
    """Look at a closed study again, with the rules and models that are in force now."""
    service.reopen_study(node(), uid)
    changed(RESTRICTED_FUNCTION, f"studies/{uid}", "reopened")
    say(f"open again; `dicom-node studies why {uid}` tells what became of it")


@app.command()
def resolve(
    uid: Uid,
    patient_id: Annotated[str, typer.Option(help="whose instances to keep")],
    issuer: Annotated[str | None, typer.Option(help="of that id, where there are two")] = None,
    json: Json = False,
) -> None:
    """Settle an identity conflict: keep one patient's instances, pass over the others."""
    told = service.resolve_study(node(), uid, patient_id, issuer)
    accessed(uid, Action.UPDATE)
    if json:
        print_json(told)
        return
    kept, left = many(told["kept"], "instance"), told["passed_over"]
    say(f"{kept} kept, {left} passed over; the study is open")
    if told["cancelled"] or told["stopped"]:
        say(f"jobs cancelled: {told['cancelled']}, deliveries stopped: {told['stopped']}")
    if told["sent_before"]:
        text = f"sent before, on the images passed over: {many(told['sent_before'], 'result')}"
        say((text, "bold red"), "; see to them at the destination")


@instances.command("list")
def list_quarantine(
    everything: Annotated[bool, typer.Option("--all", help="those settled, too")] = False,
    json: Json = False,
) -> None:
    """List what is in quarantine, and in which attributes it differs from what is held."""
    from dicom_node.services.instances import list_quarantine as ask

    columns = ["id", "received_at", "from", "held_since", "differs_in", "sop_instance_uid", "study"]
    if everything:
        columns[1:1] = ["resolution", "purged_at"]
    rows = ask(node(), everything)
    for uid in dict.fromkeys(row["study"] for row in rows):
        accessed(uid)
    print_rows(rows, columns, json)


@instances.command("resolve")
def resolve_instance(
    number: Number,
    keep: Annotated[Keep, typer.Option(help="new: a new revision of the study follows")],
) -> None:
    """Settle which of the two is the instance; the other stays as a file."""
    from dicom_node.services.instances import resolve_instance as settle

    settle(node(), number, keep.value)
    changed(RESTRICTED_FUNCTION, f"instances/{number}", f"settled: the {keep.value} one is kept")
    say(
        "the newcomer is the instance; the study is open" if keep is Keep.NEW else "nothing changed"
    )
