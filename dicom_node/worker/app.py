"""Owns the Celery application as workers run it: one child process, warm models, two tasks.

The parent never loads torch, for it starts its child by ``spawn``; the child opens its adapters
when it starts and is in the table of processes until it ends.
"""

from __future__ import annotations

from contextlib import ExitStack

import structlog
from celery import Celery, signals

from dicom_node import telemetry
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.dispatch import DELIVER, INFER, Nudger, make_app
from dicom_node.services.processes import registered
from dicom_node.settings import Settings, load

log = structlog.get_logger(__name__)


class _Child:
    """What the child process holds from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        from dicom_node.worker.engines import WarmEngines

        telemetry.configure(settings.log, "worker")
        self.node = Node.open(settings, "worker")
        self.nudger = Nudger(settings)
        self.engines = WarmEngines(self.node)
        self.exit = ExitStack()
        self.exit.enter_context(registered(self.node))


_children: list[_Child] = []  # one, in the child process; none in the parent


def make_worker_app(settings: Settings) -> Celery:
    """The application with its tasks; what travels names a queue and nothing else."""
    app = make_app(settings)
    app.conf.update(
        worker_pool="prefork",
        worker_concurrency=1,
        worker_max_tasks_per_child=10_000,
        task_time_limit=settings.worker.job_deadline,
        worker_proc_alive_timeout=60,
    )

    @app.task(name=INFER)
    def infer(queue: str) -> None:
        from dicom_node.services.infer import run_jobs

        child = _child()
        if run_jobs(child.node, child.engines, queues_of(queue)):
            child.nudger.nudge(INFER, queue)  # there may be more; an idle nudge costs nothing
            child.nudger.nudge(DELIVER, "deliver")

    @app.task(name=DELIVER)
    def deliver_due(queue: str) -> None:  # noqa: ARG001 - every nudge names its queue
        deliver(_child().node)

    return app


def queues_of(queue: str) -> tuple[str, ...]:
    """A GPU worker also takes work that runs anywhere."""
    return ("gpu", "any") if queue == "gpu" else (queue,)


def _child() -> _Child:
    return _children[0]


@signals.worker_process_init.connect
def _start(**_: object) -> None:
    _children.append(_Child(load()))


@signals.worker_process_shutdown.connect
def _end(**_: object) -> None:
    for child in _children:
        child.exit.close()
