"""Owns the two Celery tasks and what a worker process holds from its start to its end."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from celery import shared_task, signals

from dicom_node import telemetry
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.dispatch import DELIVER, INFER, Nudger
from dicom_node.services.processes import registered
from dicom_node.settings import Settings, load

if TYPE_CHECKING:
    from dicom_node.worker.engines import WarmEngines


@shared_task(name=INFER)
def infer(queue: str) -> None:
    """Run the most urgent ready job of a queue and up to a batch of its kind."""
    from dicom_node.services.infer import run_jobs

    held = _held[0]
    with _deadline(held.node.settings.worker.job_deadline):
        ran = run_jobs(held.node, held.engines, queues_of(queue))
    if ran:
        held.nudger.nudge(DELIVER, "deliver")
        held.nudger.nudge(INFER, queue)  # there may be more; a nudge for nothing costs nothing


@shared_task(name=DELIVER)
def deliver_due(queue: str) -> None:  # noqa: ARG001 - every nudge names its queue
    """Send what is due to its destinations."""
    deliver(_held[0].node)


def queues_of(queue: str) -> tuple[str, ...]:
    """A nudge for the GPU queue may as well find work that runs anywhere."""
    return ("gpu", "any") if queue == "gpu" else (queue,)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer; whoever supervises it starts another.

    faulthandler's watchdog is a thread that needs no interpreter lock: it also ends a process that
    hangs inside CUDA. The job is taken back when its heartbeat stands still.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Held:
    """The adapters of this process; torch only once a model is asked for."""

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
