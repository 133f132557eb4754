"""Owns the two Celery tasks and what a worker's child process holds from its start to its end."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

import structlog
from celery import shared_task, signals

from dicom_node import telemetry
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.dispatch import DELIVER, INFER, Nudger
from dicom_node.services.processes import registered
from dicom_node.settings import Settings, load

if TYPE_CHECKING:
    from dicom_node.worker.engines import WarmEngines

log = structlog.get_logger(__name__)


@shared_task(name=INFER)
def infer(queue: str) -> None:
    """Run the most urgent ready job of a queue and up to a batch of its kind."""
    from dicom_node.services.infer import run_jobs

    child = _children[0]
    if run_jobs(child.node, child.engines, queues_of(queue)):
        child.nudger.nudge(DELIVER, "deliver")
        child.nudger.nudge(INFER, queue)  # there may be more; a nudge for nothing costs nothing


@shared_task(name=DELIVER)
def deliver_due(queue: str) -> None:  # noqa: ARG001 - every nudge names its queue
    """Send what is due to its destinations."""
    deliver(_children[0].node)


def queues_of(queue: str) -> tuple[str, ...]:
    """A nudge for the GPU queue may as well find work that runs anywhere."""
    return ("gpu", "any") if queue == "gpu" else (queue,)


class _Child:
    """The adapters of the one child process; torch only once a model is asked for."""

    def __init__(self, settings: Settings) -> None:
        telemetry.configure(settings.log, "worker")
        self.node = Node.open(settings, "worker")
        self.nudger = Nudger(settings)
        self.exit = ExitStack()
        self.exit.enter_context(registered(self.node))

    @cached_property
    def engines(self) -> WarmEngines:
        """The warm models, the active ones loaded at once so that no patient waits for it."""
        from dicom_node.worker.engines import WarmEngines

        engines = WarmEngines(self.node)
        engines.warm_up()
        return engines


_children: list[_Child] = []  # one, in the child process; none in the parent


@signals.worker_process_init.connect
def _start(**_: object) -> None:
    _children.append(_Child(load()))


@signals.worker_process_shutdown.connect
def _end(**_: object) -> None:
    for child in _children:
        child.exit.close()


@signals.worker_ready.connect
def _warm(sender: object = None, **_: object) -> None:
    """Let a new worker look for work, and so load its models, before the first study comes."""
    queues = {q.name for q in sender.task_consumer.queues}  # type: ignore[attr-defined] # Celery's Consumer
    nudger = Nudger(load())
    for queue in sorted(queues - {"deliver"}):
        nudger.nudge(INFER, queue)
