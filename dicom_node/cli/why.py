"""Owns how ``dicom-node studies why`` reads; what it tells is ``services.explain``'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dicom_node.cli.decisions import Labels, labels_of, print_choices, print_rules
from dicom_node.cli.output import ago, coloured, console, many, say


def print_explanation(told: Mapping[str, Any]) -> None:
    """From the short answer down to the details, in the order in which things happened."""
    say(("Study ", "bold"), (told["study"], "bold"), "  ", coloured(told["state"]))
    for sentence in told["summary"]:
        say(sentence)
    labels = labels_of(told["series"])
    _came(told, labels)
    for revision in told["revisions"]:
        _revision(revision, labels)
    if told["alerts"]:
        _heading("Alerts")
        for alert in told["alerts"]:
            say((alert["kind"], "red"), f", {ago(alert['at'])}: {alert['text']}", indent=2)


def print_job(job: Mapping[str, Any], indent: int) -> None:
    """A job in a few lines: its run, what it found, what was sent where and what was answered."""
    times = many(job["attempts"], "attempt")
    seconds = "" if job["seconds"] is None else f", {job['seconds']:.1f} s"
    images = f" on {many(job['images'], 'image')}"
    again = f", again after job {job['predecessor']}" if job["predecessor"] else ""
    head = f"job {job['job']}"
    say((head, "bold"), f" {job['model']}{images}  ", coloured(job["state"]), indent=indent)
    say(f"{job['priority']}, {times}{seconds}{again}", indent=indent + 4)
    if job["waits_for"]:
        say(f"waits for {job['waits_for']}", indent=indent + 4)
    if job["error"]:
        say((job["error"], "red"), indent=indent + 4)
    for sentence in job["found"]:
        say("found: ", sentence, indent=indent + 4)
    for row in job["deliveries"]:
        print_delivery(row, indent + 4)
    if job["state"] == "done" and not job["deliveries"]:
        say("nothing is sent: no destination was asked for", indent=indent + 4)


def print_delivery(row: Mapping[str, Any], indent: int) -> None:
    """One line: what, where, how it stands, and the last answer."""
    when = f" {ago(row['sent_at'])}" if row["sent_at"] else ""
    tries = f", {many(row['attempts'], 'attempt')}"
    following = f", next {ago(row['next_at'])}" if row["next_at"] and row["attempts"] else ""
    answer = f": {row['answer']}" if row["answer"] else ""
    what = f"{row['form']} to {row['destination']}: "
    tail = f"{when}{tries}{following}{answer}"
    say(what, coloured(row["state"]), tail, f" (delivery {row['delivery']})", indent=indent)


def _came(told: Mapping[str, Any], labels: Labels) -> None:
    _heading("What came")
    for row in told["series"]:
        whole = row["counting"] == row["instances"]
        counting = "" if whole else f", {row['counting']} of them count"
        times = f", {' to '.join(dict.fromkeys((ago(row['first_at']), ago(row['last_at']))))}"
        say(f"{labels[row['series']]}{counting} from {', '.join(row['from'])}{times}", indent=2)
        say((row["series"], "bright_black"), indent=4)
    for row in told["passed_over"]:
        say(("kept, passed over: ", "yellow"), f"{row['instances']} × {row['why']}", indent=2)
    for row in told["associations"]:
        if row["closed_at"] is None:
            say((f"{row['from']} ({row['address']}) is still sending", "cyan"), indent=2)
        elif row["aborted"]:
            text = f"{row['from']} broke off {ago(row['closed_at'])} after {row['instances']}"
            say((text, "yellow"), " instances of it", indent=2)
    for row in told["expectations"]:
        state = f"{row['missing']} missing" if row["missing"] else "all held"
        say(f"{row['source']} told {many(row['instances'], 'instance')}: {state}", indent=2)
    for row in told["quarantine"]:
        state = row["resolution"] or "to be settled"
        say(f"in quarantine: {row['sop_instance_uid']} (number {row['id']}), {state}", indent=2)


def _revision(revision: Mapping[str, Any], labels: Labels) -> None:
    how = "complete" if revision["complete"] else "incomplete"
    counted = many(revision["instances"], "instance")
    _heading(f"Revision {revision['revision']}, closed {ago(revision['closed_at'])}: {counted}")
    say(f"called {how}: {revision['evidence']}", indent=2)
    print_rules(revision["rules"], labels, indent=2)
    print_choices(revision["choices"], labels, indent=2)
    for covered in revision["covered"]:
        name = labels.get(covered["candidate"], f"image {covered['candidate']}")
        say(f"{name}: unchanged, job {covered['job']} stands for it", indent=2)
    for job in revision["jobs"]:
        print_job(job, indent=2)
    if not revision["jobs"] and not revision["covered"]:
        say("no job followed", indent=2)


def _heading(text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False)
