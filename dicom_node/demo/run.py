"""Owns the demo: a whole node on this machine, a stand-in PACS, two patients, and what came back.

Everything is the real thing: the installed command as child processes, DICOM associations, files.
Whatever ends it, all that it started is stopped. Refuses to know how results are printed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydicom import dcmread
from sqlalchemy import func, select

from dicom_node.demo import patients
from dicom_node.demo.pacs import AE_TITLE as PACS
from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.domain.model import ModelState
from dicom_node.domain.study import StudyState
from dicom_node.errors import NodeError, Unavailable
from dicom_node.services import models, registry
from dicom_node.services.children import die_with_parent
from dicom_node.services.context import Node
from dicom_node.services.send import send_files
from dicom_node.settings import CONFIG_VARIABLE, load
from dicom_node.store.migrate import upgrade
from dicom_node.store.tables import Delivery, Instance, Job, Process, Result, Revision, Study

MODALITY = "DEMOSCANNER"
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What became of one study.

    Attributes:
        study: its Study Instance UID.
        sources: the files that were sent.
        reports: SR files that the PACS received.
        segmentations: SEG files that the PACS received.
        captures: secondary captures that the PACS received.
        state: in words, where nothing was made of it.
        seconds: from the end of the association to the last object at the PACS.
    """

    study: str
    sources: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    segmentations: list[Path] = field(default_factory=list)
    captures: list[Path] = field(default_factory=list)
    state: str = ""
    seconds: float | None = None


def run(
    output: Path,
    folder: Path | None,
    drawing: patients.Drawing,
    say: Say,
    patience: float = 300.0,
) -> list[Outcome]:
    """Push studies through a node of their own and wait for their results.

    Args:
        output: where everything goes; what an earlier demo left there is removed.
        folder: DICOM files of one's own instead of the generated patients.
        drawing: how the generated ones are drawn.
        say: is told each step, for the progress display.
        patience: seconds to wait for the results.

    Raises:
        NodeError: a step failed, with the reason.
    """
    for name in ("node", "pacs", "sent"):
        shutil.rmtree(output / name, ignore_errors=True)
    for picture in output.glob("*.png"):
        picture.unlink()
    output.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        say(f"reading {folder}")
    own = {} if folder is None else _read(folder)
    with ExitStack() as stack:
        pacs_port = stack.enter_context(_pacs(output / "pacs"))
        node = _configure(output)
        say("starting the node: listener, scheduler, workers, Redis")
        stack.enter_context(_up(output / "node"))
        say("verifying and activating the models that come with it")
        _fill(node, pacs_port)
        if not own:
            say("drawing two patients")
        studies = own or _draw(output / "sent", drawing)
        _wait_ready(node)
        closed: dict[str, float] = {}
        for uid, files in studies.items():
            modality = dcmread(files[0], specific_tags=["Modality"]).get("Modality", "a")
            say(f"sending a {modality} study by C-STORE, instances: {len(files)}")
            _send(node, files)
            closed[uid] = time.time()
        outcomes = _wait(node, studies, say, patience)
        for outcome in outcomes:
            _collect(node, output / "pacs", outcome, closed[outcome.study])
        say("stopping everything that was started")
    return outcomes


def _configure(output: Path) -> Node:
    """Write the demo's own configuration; the environment's is not touched."""
    config = output / "dicom-node.toml"
    config.write_text(
        f'node_salt = "{secrets.token_hex(16)}"\n'
        f"[listener]\nport = {_free_port()}\nreserve_mb = 64\n"
        f"[storage]\nfolder = {str((output / 'node').absolute())!r}\n"
        "[completion]\ndefault_quiet = 2\n"
        'quiet = [{ modality = "CT", seconds = 2 }, { modality = "MR", seconds = 2 }]\n',
        encoding="utf-8",
    )
    config.chmod(0o600)
    node = Node.open(load(config), "demo")
    upgrade(node.database)
    return node


def _fill(node: Node, pacs_port: int) -> None:
    registry.add_modality(node, MODALITY, ["127.0.0.1"])
    registry.add_destination(
        node, "demo-pacs", "dimse", {"ae_title": PACS, "host": "127.0.0.1", "port": pacs_port}
    )
    for added in models.add_models(node, sorted(models.SHIPPED.iterdir())):
        models.set_state(node, f"{added['name']}@{added['version']}", ModelState.ACTIVE)
    registry.apply_rules(node, registry.read_rules(Path(__file__).with_name("demo.toml")))


@contextmanager
def _pacs(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "dicom_node.demo.pacs", str(folder)]
    with _child(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        line = process.stdout.readline()
        if not line:
            raise Unavailable("the stand-in PACS did not start")
        yield int(line)


@contextmanager
def _up(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("wb") as log:
        command = [sys.executable, "-m", "dicom_node.cli.main", "up"]
        with _child(command, stderr=log, stdout=log):
            yield


@contextmanager
def _child(command: Sequence[str], **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own process group, terminated and waited for whatever happens."""
    process = subprocess.Popen(  # type: ignore[call-overload] # streams are Popen's own
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that can lock
        **streams,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(folder: Path) -> dict[str, list[Path]]:
    """The files to send, by study.

    Raises:
        NodeError: there are none.
    """
    studies: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
            studies.setdefault(str(header.StudyInstanceUID), []).append(path)
        except Exception:  # noqa: S112 - anything may lie in a folder; only DICOM is sent
            continue
    if not studies:
        raise NodeError(f"no DICOM files in {folder}")
    return studies


def _draw(folder: Path, drawing: patients.Drawing) -> dict[str, list[Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now().astimezone()
    studies: dict[str, list[Path]] = {}
    for ds in (patients.radiograph(drawing, at), *patients.ct(drawing, at)):
        path = folder / f"{ds.Modality}-{ds.InstanceNumber:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        studies.setdefault(str(ds.StudyInstanceUID), []).append(path)
    return studies


def _send(node: Node, files: Sequence[Path]) -> None:
    listener = node.settings.listener
    failed = send_files(
        files,
        host="127.0.0.1",
        port=listener.port,
        called=listener.ae_title,
        calling=MODALITY,
    )
    if failed:
        raise NodeError(f"{len(failed)} of {len(files)} instances were refused: {failed[0].reason}")


def _wait_ready(node: Node, patience: float = 60.0) -> None:
    """Until the listener takes connections and both kinds of worker are there."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with node.database.reading() as session:
            roles = session.execute(
                select(Process.role, func.count())
                .where(Process.ended_at.is_(None))
                .group_by(Process.role)
            )
            counts: dict[str, int] = dict(roles.tuples().all())
        if counts.get("listener") and counts.get("worker", 0) >= 2 and counts.get("scheduler"):
            return
        time.sleep(0.2)
    log = node.settings.storage.folder / "log.jsonl"
    raise Unavailable(f"the node did not start in {patience:g} s; see {log}")


def _wait(node: Node, studies: dict[str, list[Path]], say: Say, patience: float) -> list[Outcome]:
    """Until every study is closed, its jobs have ended and their results have arrived."""
    end = time.monotonic() + patience
    told = ""
    while time.monotonic() < end:
        text, settled = _progress(node, studies)
        if text != told:
            say(text)
            told = text
        if settled:
            return [Outcome(uid, list(files)) for uid, files in studies.items()]
        time.sleep(0.1)
    raise Unavailable(f"no results after {patience:g} s ({told}); the log says why")


def _progress(node: Node, studies: dict[str, list[Path]]) -> tuple[str, bool]:
    uids = list(studies)
    with node.database.reading() as session:
        states = session.scalars(
            select(Study.state).where(Study.study_instance_uid.in_(uids))
        ).all()
        of_study = (
            select(Job.id).join(Revision).join(Study).where(Study.study_instance_uid.in_(uids))
        )
        jobs = session.scalars(select(Job.state).where(Job.id.in_(of_study))).all()
        deliveries = session.scalars(
            select(Delivery.state).join(Result).where(Result.job_id.in_(of_study))
        ).all()
    closed = sum(state != StudyState.OPEN for state in states)
    done = sum(state not in (JobState.READY, JobState.RUNNING) for state in jobs)
    waits = (DeliveryState.PENDING, DeliveryState.SENDING)
    sent = sum(state not in waits for state in deliveries)
    text = (
        f"studies complete {closed}/{len(uids)}, jobs done {done}/{len(jobs)}, "
        f"objects delivered {sent}/{len(deliveries)}"
    )
    settled = closed == len(uids) and done == len(jobs) and sent == len(deliveries)
    return text, settled


def _collect(node: Node, pacs: Path, outcome: Outcome, closed: float) -> None:
    """The files that the PACS holds for a study, and why there are none."""
    with node.database.reading() as session:
        study = session.scalar(select(Study).where(Study.study_instance_uid == outcome.study))
        if study is None:
            outcome.state = "nothing of it was accepted"
            return
        rows = session.execute(
            select(Result.kind, Result.sop_instance_uid, Delivery.state, Delivery.sent_at)
            .join(Job, Job.id == Result.job_id)
            .join(Revision, Revision.id == Job.revision_id)
            .join(Delivery, Delivery.result_id == Result.id)
            .where(Revision.study_id == study.id)
            .order_by(Result.id)
        ).all()
        kept = session.scalar(select(func.count(Instance.id)).where(Instance.study_id == study.id))
    kinds = {"sr": outcome.reports, "seg": outcome.segmentations, "sc": outcome.captures}
    for kind, uid, _, sent_at in rows:
        for path in pacs.glob(f"*.{uid}.dcm"):
            kinds[kind].append(path)
            if sent_at is not None:
                outcome.seconds = max(outcome.seconds or 0.0, sent_at.timestamp() - closed)
    if not rows:
        outcome.state = (
            f"kept ({kept} received), and nothing wanted it; "
            f"`dicom-node -c {node.settings.storage.folder.parent / 'dicom-node.toml'} "
            f"studies why {outcome.study}` says why"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forget_environment() -> None:
    """The demo is not to be steered by, nor to touch, a node configured in this shell."""
    for name in [n for n in os.environ if n.startswith("DICOM_NODE_") and n != "DICOM_NODE_DATA"]:
        del os.environ[name]
    os.environ.pop(CONFIG_VARIABLE, None)
