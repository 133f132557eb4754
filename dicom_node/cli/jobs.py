"""``dicom-node jobs``: list, show, retry, cancel; ``deliveries``: list, show, retry."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_node.audit.messages import RESTRICTED_FUNCTION
from dicom_node.cli.audit import accessed, changed
from dicom_node.cli.output import Json, ago, coloured, many, print_json, print_rows, say
from dicom_node.cli.state import node
from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.services import deliveries as sent
from dicom_node.services import jobs as service
from dicom_node.services.explain import found_in_words

app = typer.Typer(help="The models' runs.", no_args_is_help=True)
deliveries = typer.Typer(help="Results on their way to destinations.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(metavar="ID", help="as the listing shows it")]
Limit = Annotated[int, typer.Option(min=1, help="how many, at most")]


def register(command: typer.Typer) -> None:
    """Add the commands."""
    command.add_typer(app, name="jobs")
    command.add_typer(deliveries, name="deliveries")


@app.command("list")
def list_(
    state: Annotated[JobState | None, typer.Option(help="only those in this state")] = None,
    limit: Limit = 100,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    columns = ("job", "state", "model", "priority", "attempts", "created_at", "study", "error")
    print_rows(service.list_jobs(node(), state, limit), columns, json)


@app.command()
def show(job: Number, json: Json = False) -> None:
    """Show a job: its inputs, what it found, its results."""
    told = service.show_job(node(), job)
    accessed(told["study"])
    if json:
        print_json(told)
        return
    say((f"job {job}", "bold"), f"  {told['model']}  ", coloured(told["state"]))
    say(f"study {told['study']}, revision {told['revision']}, generation {told['generation']}")
    for name in ("created", "started", "finished"):
        if told[f"{name}_at"]:
            say(f"{name} {ago(told[f'{name}_at'])} ({told[f'{name}_at']:%Y-%m-%d %H:%M:%S} UTC)")
    say(f"{told['priority']}, {many(told['attempts'], 'attempt')}")
    if told["predecessor"]:
        say(f"supersedes job {told['predecessor']}")
    if told["error"]:
        say((told["error"], "red"))
    for sentence in found_in_words(told["summary"]):
        say("found: ", sentence)
    if told["summary"] and told["summary"]["timings"]:
        timings = told["summary"]["timings"].items()
        say("took ", ", ".join(f"{step} {seconds:.2f} s" for step, seconds in timings))
    for row in told["destinations"]:
        forms = f" as {row['forms']}" if row["forms"] else ""
        say(f"goes to {row['name']} by rule {', '.join(map(repr, row['rules']))}{forms}")
    say(f"reads {many(len(told['inputs']), 'instance')}")
    for row in told["results"]:
        say((row["form"], "bold"), f"  {row['sop_instance_uid']}  {row['file']}")


@app.command()
def retry(job: Number) -> None:
    """Let a dead or cancelled job run again."""
    service.retry_job(node(), job)
    changed(RESTRICTED_FUNCTION, f"jobs/{job}", "to run again")
    say(f"job {job} is ready")


@app.command()
def cancel(job: Number) -> None:
    """Stop a job that waits or runs; let a dead one be, so that its images may be purged."""
    service.cancel_job(node(), job)
    changed(RESTRICTED_FUNCTION, f"jobs/{job}", "cancelled")
    say(f"job {job} is cancelled")


@deliveries.command("list")
def list_deliveries(
    state: Annotated[DeliveryState | None, typer.Option(help="only those in this state")] = None,
    limit: Limit = 100,
    json: Json = False,
) -> None:
    """List deliveries, the newest first."""
    columns = ("delivery", "state", "form", "destination", "attempts", "next_at", "job", "answer")
    print_rows(sent.list_deliveries(node(), state, limit), columns, json)


@deliveries.command("show")
def show_delivery(delivery: Number, json: Json = False) -> None:
    """Show a delivery with every attempt: when, which status, what was answered."""
    told = sent.show_delivery(node(), delivery)
    if json:
        print_json(told)
        return
    what = f"  {told['form']} of job {told['job']} to {told['destination']}  "
    say((f"delivery {delivery}", "bold"), what, coloured(told["state"]))
    say(f"study {told['study']}")
    say(f"{told['sop_instance_uid']}  {told['file']}")
    if told["next_at"]:
        say(f"next attempt {ago(told['next_at'])}")
    if told["confirm_at"]:
        say(f"the destination is asked whether it holds it {ago(told['confirm_at'])}")
    for row in told["commitments"]:
        answer = row["answer"] if row["answered_at"] else "no report yet"
        say(f"commitment asked for {ago(row['asked_at'])}: {answer}  {row['transaction']}")
    rows = [{**row, "utc": f"{row['at']:%Y-%m-%d %H:%M:%S}"} for row in told["log"]]
    print_rows(rows, ("utc", "at", "status", "answer"), False)


@deliveries.command("retry")
def retry_delivery(delivery: Number) -> None:
    """Send a dead delivery, or one that arrived, again, the same bytes."""
    from dicom_node.services.deliver import retry_delivery as again

    again(node(), delivery)
    changed(RESTRICTED_FUNCTION, f"deliveries/{delivery}", "to be sent again")
    say(f"delivery {delivery} is pending")
