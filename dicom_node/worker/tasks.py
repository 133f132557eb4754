"""Owns the Celery tasks and what a worker process holds from its start to its end.

This process loads no torch and runs no model: it answers Celery, beats, and has a child run jobs.
"""

from __future__ import annotations

from contextlib import ExitStack

from celery import shared_task, signals

from dicom_node import telemetry
from dicom_node.services.canaries import answer
from dicom_node.services.children import limit_memory
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.dispatch import CANARY, DELIVER, INFER, Nudger
from dicom_node.services.processes import registered
from dicom_node.settings import Settings, load
from dicom_node.worker.confined import Confined


@shared_task(name=INFER)
def infer(queue: str) -> None:
    """Run the most urgent ready job of a queue and up to a batch of its kind."""
    held = _held[0]
    if held.confined.run(queues_of(queue)):
        held.nudger.nudge(DELIVER, "deliver")
        held.nudger.nudge(INFER, queue)  # there may be more; a nudge for nothing costs nothing


@shared_task(name=DELIVER)
def deliver_due(queue: str) -> None:  # noqa: ARG001 - every nudge names its queue
    """Send what is due to its destinations."""
    deliver(_held[0].node)


@shared_task(name=CANARY)
def canary(queue: str) -> None:
    """Show that this queue is served."""
    answer(_held[0].node, queue)


def queues_of(queue: str) -> tuple[str, ...]:
    """A nudge for the GPU queue may as well find work that runs anywhere."""
    return ("gpu", "any") if queue == "gpu" else (queue,)


class _Held:
    """The adapters of this process."""

    def __init__(self, settings: Settings) -> None:
        telemetry.configure(settings.log, "worker")
        self.node = Node.open(settings, "worker")
        limit_memory(self.node.settings.worker.memory_mb << 20)
        self.nudger = Nudger(settings)
        self.confined = Confined(self.node)
        self.exit = ExitStack()
        self.exit.enter_context(registered(self.node))
        self.exit.callback(self.confined.close)


_held: list[_Held] = []  # one, in a worker; none where the module is only imported


@signals.worker_process_init.connect
def _start(**_: object) -> None:
    _held.append(_Held(load()))


@signals.worker_shutdown.connect
def _end(**_: object) -> None:
    for held in _held:
        held.exit.close()


@signals.worker_ready.connect
def _warm(sender: object = None, **_: object) -> None:
    """Let a new worker look for work, and so load its models, before the first study comes."""
    queues = {q.name for q in sender.task_consumer.queues}  # type: ignore[attr-defined] # Celery's Consumer
    for queue in sorted(queues - {"deliver"}):
        _held[0].nudger.nudge(INFER, queue)
