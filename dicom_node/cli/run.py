"""``dicom-node up``, ``listen``, ``worker``, ``scheduler``: the roles, together or apart."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated

import structlog
import typer

from dicom_node import telemetry
from dicom_node.cli import redis
from dicom_node.cli.state import settings
from dicom_node.cli.supervise import Child, on_signals, supervise
from dicom_node.services.context import Node
from dicom_node.services.processes import registered
from dicom_node.settings import Settings
from dicom_node.store.database import Database
from dicom_node.store.migrate import require_head
from dicom_node.store.migrate import upgrade as upgrade_database

log = structlog.get_logger(__name__)


def register(app: typer.Typer) -> None:
    """Add the roles to the command."""
    for role in (up, listen, worker, scheduler):
        app.command()(role)


def up() -> None:
    """Run the whole node on this machine; restart what dies; drain on SIGTERM or Ctrl-C."""
    chosen = settings()
    telemetry.configure(chosen.log, "up")
    chosen.storage.folder.mkdir(parents=True, exist_ok=True)
    if chosen.tls.configured:
        from dicom_node.dimse.tls import server_context

        server_context(chosen.tls)  # told once here, rather than by each child that dies of it
    log.info("database ready", revision=upgrade_database(Database(chosen.database_url)))
    stop = threading.Event()
    on_signals(stop.set)
    supervise(_children(chosen), stop)


def listen(
    fd: Annotated[int | None, typer.Option(hidden=True, help="inherited listening socket")] = None,
    tls_fd: Annotated[int | None, typer.Option(hidden=True, help="the same, for TLS")] = None,
) -> None:
    """Take associations from modalities."""
    from dicom_node.listener.heap import keep_few_heaps
    from dicom_node.listener.node import NodeInbox
    from dicom_node.listener.server import open_doors, serve

    keep_few_heaps()
    chosen = settings()
    telemetry.configure(chosen.log, "listener")
    stop = threading.Event()
    on_signals(stop.set)
    listening = chosen.listener
    doors = open_doors(listening, chosen.tls, plain=fd, secure=tls_fd)
    if fd is None and tls_fd is None and listening.processes > 1:
        with ExitStack() as stack:
            inherited = {
                "--tls-fd" if door.secure else "--fd": stack.enter_context(door.listening).fileno()
                for door in doors
            }
            supervise(_listeners(chosen, inherited), stop)
        return
    node = _open(chosen, "listener")

    def ready(_port: int) -> None:
        for door in doors:
            port, secure = door.listening.getsockname()[1], door.secure is not None
            log.info(
                "listening",
                ae_title=listening.ae_title,
                host=listening.host,
                port=port,
                tls=secure,
            )

    with registered(node):
        serve(listening, NodeInbox(node), stop=stop, ready=ready, doors=doors)


def worker(
    queues: Annotated[
        str, typer.Option(help="any, gpu (takes any too), deliver; several by comma")
    ] = "any,deliver",
) -> None:
    """Run models, or deliveries, as nudges come."""
    from dicom_node.worker.app import app

    _open(settings(), "worker")  # refuse a database of another revision before Celery starts
    name = f"{queues.replace(',', '-')}-{os.getpid()}@%h"
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    app.worker_main(["--quiet", "worker", "--queues", queues, "--hostname", name, *quiet])


def scheduler() -> None:
    """Close complete studies, take back what the dead held, nudge what waits."""
    from dicom_node.errors import Unavailable
    from dicom_node.services import audit
    from dicom_node.services.dispatch import Nudger
    from dicom_node.services.schedule import Scheduler

    chosen = settings()
    telemetry.configure(chosen.log, "scheduler")
    node = _open(chosen, "scheduler")
    stop = threading.Event()
    on_signals(stop.set)
    with registered(node), audit.shipping(node):
        rounds = Scheduler(node, Nudger(chosen))
        rounds.reconcile()
        while not stop.wait(chosen.scheduler.interval):
            try:
                rounds.round()
            except Unavailable as error:  # the database comes back, or somebody is called
                log.error("round skipped", reason=str(error))
                stop.wait(1)


def _open(chosen: Settings, role: str) -> Node:
    node = Node.open(chosen, role)
    require_head(node.database)
    return node


def _children(chosen: Settings) -> list[Child]:
    """In the order in which they drain: first nothing new comes in, Redis goes last."""
    command = _command()
    children = [
        Child("listener", [*command, "listen"]),
        Child("scheduler", [*command, "scheduler"]),
        *(
            Child(f"worker {n}", [*command, "worker", "--queues", "gpu,any"])
            for n in range(1, chosen.worker.processes + 1)
        ),
        Child("delivery", [*command, "worker", "--queues", "deliver"]),
    ]
    if not chosen.broker.url:
        children.append(Child("redis", redis.command(chosen)))
    return children


def _listeners(chosen: Settings, inherited: Mapping[str, int]) -> list[Child]:
    words = [word for name, fd in inherited.items() for word in (name, str(fd))]
    command = [*_command(), "listen", *words]
    return [
        Child(f"listener {n}", command, inherit=tuple(inherited.values()))
        for n in range(1, chosen.listener.processes + 1)
    ]


def _command() -> list[str]:
    return [sys.executable, "-m", "dicom_node.cli.main"]
