"""Runs a node as its users do: the installed command, child processes, real sockets and files.

``tests/nodes.py`` calls the services in the test's own process; here they are called only to
register what an administrator would, and to look at the rows. Whatever a test did to the node,
nothing of it is left running.

with running(tmp_path, models=[bundle], destinations={"pacs": dimse(pacs)}) as node:
    assert node.send([file]) == [0x0000]
    node.settled(study_uid)
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
from sqlalchemy import func, inspect, select

from dicom_node.domain.delivery import ARRIVED, DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.domain.study import StudyState
from dicom_node.services import models as model_service
from dicom_node.services import registry
from dicom_node.services.context import Node
from dicom_node.settings import CONFIG_VARIABLE, load
from dicom_node.store.tables import Base, Delivery, Job, Process, Result, Revision, Study
from tests.bundles import TRUST
from tests.servers import answers_on, eventually, free_port, need

COMMAND = Path(sys.executable).with_name("dicom-node")
own_database: Callable[[], str] | None = None
"""Gives each node that names no database the URL of an empty one; None: SQLite in its folder.

``pytest --database postgresql`` sets it."""
PATIENCE = 120.0
"""Seconds for anything that waits for a model: torch takes its time on a busy machine."""

T = TypeVar("T")


class Peer(Protocol):
    """Any of the PACS that tests run."""

    ae_title: str

    @property
    def port(self) -> int: ...


def dimse(peer: Peer) -> dict[str, Any]:
    """The configuration of a destination on this machine."""
    return {"ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port}


def rule(
    name: str, models: Sequence[str], destinations: Sequence[str], **more: Any
) -> dict[str, Any]:
    """A routing rule as TOML would give it."""
    return {"name": name, "models": list(models), "destinations": list(destinations), **more}


def alone(**sections: dict[str, Any]) -> dict[str, Any]:
    """Settings for tests: quick to call a study complete, quick to try again; sections win."""
    given: dict[str, dict[str, Any]] = {
        "listener": {"port": free_port(), "reserve_mb": 16},
        "completion": {"quiet": [], "default_quiet": 1},
        "scheduler": {"nudge_after": 2},
        "delivery": {"backoff": 1, "backoff_max": 2},
        "models": TRUST,
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return given


@dataclass
class Running:
    """A node whose processes are children of the test.

    Attributes:
        folder: configuration, logs and ``node-data``.
        config: the configuration file.
        children: by role, in the order of their start.
        faults: variables of ``dicom_node.faults`` for what is started from now on.
    """

    folder: Path
    config: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @cached_property
    def node(self) -> Node:
        """The node's adapters, in this process."""
        try:
            return Node.open(load(self.config), "test")
        finally:  # `load` names the file to children; here it would leak into other tests
            os.environ.pop(CONFIG_VARIABLE, None)

    @property
    def port(self) -> int:
        return self.node.settings.listener.port

    @property
    def data(self) -> Path:
        return self.node.settings.storage.folder

    # Processes

    @property
    def environment(self) -> dict[str, str]:
        """Of the command: this node's and nothing else's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")}
        return {**kept, CONFIG_VARIABLE: str(self.config), **self.faults}

    def start(self, role: str, *options: str) -> subprocess.Popen[bytes]:
        """Run one role, or ``up``; its log lies beside the configuration."""
        with (self.folder / f"{role}.log").open("ab") as log:
            self.children[role] = subprocess.Popen(
                [COMMAND, role, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                process_group=0,
            )
        return self.children[role]

    def stop(self, role: str, number: int = signal.SIGTERM, patience: float = 90) -> int:
        """Signal a role and wait for it; fails when any process of it is left behind."""
        child = self.children.pop(role)
        family = tree(child.pid)
        with suppress(ProcessLookupError):
            child.send_signal(number)
        try:
            code = child.wait(patience)
        finally:
            left = psutil.wait_procs(family, timeout=patience)[1]
            told = [described(process) for process in left]
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            child.wait(10)
        assert not told, f"left behind by {role}: {told}"
        return code

    def ready(self) -> None:
        """Until every role that was started does its work."""
        wanted: Counter[str] = Counter()
        for role in self.children:
            settings = self.node.settings
            if role == "up":
                wanted.update(
                    listener=settings.listener.processes,
                    scheduler=1,
                    worker=settings.worker.processes + 1,
                )
            else:
                wanted[{"listen": "listener"}.get(role, role)] += 1

        def there() -> bool:
            for role, child in self.children.items():
                assert child.poll() is None, f"{role} ended: {self.log_text()[-2000:]}"
            with self.node.database.reading() as session:
                found = Counter(
                    session.scalars(select(Process.role).where(Process.ended_at.is_(None)))
                )
            return found >= wanted and (not wanted["listener"] or answers_on(self.port))

        eventually(there, PATIENCE, f"{dict(wanted)} are running")

    def processes(self, *words: str) -> list[psutil.Process]:
        """All processes of the node whose command line holds all ``words``."""
        family = [p for child in self.children.values() for p in tree(child.pid)]
        found = []
        for process in family:
            with suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and all(w in line for w in words):
                    found.append(process)
        return found

    def worker(self) -> psutil.Process:
        """The process that holds the models: the one that maps torch."""

        def found() -> psutil.Process | None:
            return next((p for p in self.processes() if maps_torch(p)), None)

        worker: psutil.Process = eventually(found, PATIENCE, "a process with torch")
        return worker

    # What a user does

    def command(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``dicom-node`` with these words."""
        return subprocess.run(
            [COMMAND, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**self.environment, "COLUMNS": "300"},
            cwd=self.folder,
        )

    def told(self, *words: str) -> Any:
        """What a command says with ``--json``."""
        done = self.command(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def why(self, uid: str) -> str:
        """What ``dicom-node studies why`` says."""
        done = self.command("studies", "why", uid)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(self, files: Sequence[Path], *options: str, calling: str = "STORESCU") -> list[int]:
        """Push files by DCMTK's storescu over one association; the statuses, in order."""
        return statuses(store(self.port, files, *options, calling=calling))

    # What is known of it

    def rows(self, table: type[T], *where: Any) -> list[T]:
        """Rows of a table, by their key."""
        assert issubclass(table, Base)
        with self.node.database.reading() as session:
            key = inspect(table).primary_key[0]
            return list(session.scalars(select(table).where(*where).order_by(key)))

    def jobs(self, *uids: str) -> list[Job]:
        """The jobs of studies."""
        of = select(Revision.id).join(Study).where(Study.study_instance_uid.in_(uids))
        return self.rows(Job, Job.revision_id.in_(of))

    def results(self, *uids: str) -> list[Result]:
        """What was made of studies."""
        return self.rows(Result, Result.job_id.in_([job.id for job in self.jobs(*uids)]))

    def closed(self, *uids: str, patience: float = PATIENCE) -> None:
        """Until the studies are called complete."""
        wanted = select(func.count(Study.id)).where(
            Study.study_instance_uid.in_(uids), Study.state == StudyState.CLOSED
        )

        def all_closed() -> bool:
            with self.node.database.reading() as session:
                return session.scalar(wanted) == len(uids)

        eventually(all_closed, patience, f"closed: {uids}")

    def settled(self, *uids: str, patience: float = PATIENCE) -> None:
        """Until the studies are closed, their jobs have ended and all results are delivered."""
        self.closed(*uids, patience=patience)
        ended = {JobState.DONE, JobState.DEAD, JobState.CANCELLED}
        over = ARRIVED | {DeliveryState.DEAD}

        def done() -> bool:
            if not all(job.state in ended for job in self.jobs(*uids)):
                return False
            ids = [result.id for result in self.results(*uids)]  # written with the job's last state
            return all(d.state in over for d in self.rows(Delivery, Delivery.result_id.in_(ids)))

        try:
            eventually(done, patience, f"settled: {uids}")
        except BaseException:
            print(self.log_text()[-4000:])
            raise

    def log_text(self) -> str:
        """All that the roles wrote."""
        return "".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))
        )

    def log(self) -> list[dict[str, Any]]:
        """The events among it, by time."""
        events = []
        for line in self.log_text().splitlines():
            with suppress(ValueError):
                events.append(json.loads(line))
        return sorted(
            (e for e in events if isinstance(e, dict)), key=lambda e: e.get("timestamp", "")
        )

    def logged(self, event: str, **values: Any) -> bool:
        """Whether such an event was logged."""
        return any(e.get("event") == event and values.items() <= e.items() for e in self.log())


@contextmanager
def running(
    folder: Path,
    *,
    roles: Sequence[str] = ("up",),
    models: Sequence[Path] = (),
    rules: Sequence[Mapping[str, Any]] = (),
    destinations: Mapping[str, Mapping[str, Any]] | None = None,
    modalities: Sequence[str] = ("STORESCU",),
    prepare: Callable[[Running], None] = lambda _: None,
    **sections: dict[str, Any],
) -> Iterator[Running]:
    """A configured node with its processes; stopped in order at the end, and nothing left of it.

    Args:
        folder: for everything that it writes.
        roles: ``up``, or some of ``listen``, ``scheduler`` and ``worker``.
        models: bundles, added and activated.
        rules: as `rule` makes them.
        destinations: configuration by name, ``dimse`` or (with ``path``) ``folder``.
        prepare: called when all is registered and nothing runs yet.
        sections: of the settings, on top of `alone`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "dicom-node.toml"
    settings = {"node_salt": "tests", "storage": {}, **alone(**sections)}
    settings["storage"] = {"folder": str(folder / "node-data"), **settings["storage"]}
    if own_database:
        settings["storage"].setdefault("database", own_database())
    config.write_text(toml(settings))
    node = Running(folder, config)
    upgraded = node.command("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    _register(node.node, models, rules, destinations or {}, modalities)
    prepare(node)
    try:
        for role in roles:
            node.start(role)
        node.ready()
        yield node
    finally:
        broken = sys.exc_info()[0] is not None
        for role in list(node.children):
            try:
                node.stop(role)
            except BaseException:
                if not broken:  # else the first failure is the one to be told
                    raise
        node.node.database.engine.dispose()


def _register(
    node: Node,
    models: Sequence[Path],
    rules: Sequence[Mapping[str, Any]],
    destinations: Mapping[str, Mapping[str, Any]],
    modalities: Sequence[str],
) -> None:
    for title in modalities:
        registry.add_modality(node, title, ["127.0.0.1"])
    for name, place in destinations.items():
        registry.add_destination(node, name, "folder" if "path" in place else "dimse", dict(place))
    for bundle in models:
        added = model_service.add_model(node, bundle)
        model_service.set_state(node, f"{added['name']}@{added['version']}", ModelState.ACTIVE)
    if rules:
        registry.apply_rules(node, parse_rules({"rule": [dict(r) for r in rules]}))


def toml(document: Mapping[str, Any]) -> str:
    """Tables of plain values, and lists of tables in them."""
    plain = {k: v for k, v in document.items() if not isinstance(v, Mapping)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, table in document.items():
        if isinstance(table, Mapping):
            lines += [f"[{key}]", *(f"{k} = {_value(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


# DCMTK as the modality

_STATUS = re.compile(r"^D: DIMSE Status +: 0x([0-9a-f]{4})", re.MULTILINE)


def store(
    port: int, files: Sequence[Path], *options: str, calling: str = "STORESCU", called: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run storescu to its end, over refusals; Nagle's algorithm would cost 40 ms an object."""
    return subprocess.run(
        [
            *(need("storescu"), "-d", "-nh", "-R", "-aet", calling),
            *("-aec", called or "DICOMNODE", *options, "127.0.0.1", str(port)),
            *map(str, files),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def statuses(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The status of each C-STORE response that storescu got."""
    return [int(found, 16) for found in _STATUS.findall(done.stdout + done.stderr)]


# Processes


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, as far as they live."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def described(process: psutil.Process) -> str:
    """For a failure: what it is."""
    with suppress(psutil.Error):
        return f"{process.pid} {process.status()}: {' '.join(process.cmdline())[:200]}"
    return str(process.pid)


def maps_torch(process: psutil.Process) -> bool:
    """Whether a process has loaded torch's libraries (Linux)."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
    return False


def in_parallel(*tasks: Callable[[], Any]) -> list[Any]:
    """Run functions at once, each in a thread; their values in order, or the first failure."""
    values: dict[int, Any] = {}
    failures: list[BaseException] = []

    def run(number: int, task: Callable[[], Any]) -> None:
        try:
            values[number] = task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n, t)) for n, t in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [values[n] for n in range(len(tasks))]


def seconds_since(started: float) -> float:
    """By the monotonic clock."""
    return time.monotonic() - started
