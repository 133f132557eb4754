"""Owns the process that reads and runs: ``python -m dicom_node.worker.child OWNER``.

Models run here and nowhere else in the service, and their pixels are decoded here, so that this
process may hang, crash or outgrow its memory and be ended. (Who decodes for another reason has a
child of its own: ``services.same``, ``services.pictures``.) Each line of stdin names queues; each
gets a line on stdout: how many jobs were claimed, or why their run broke off, with `LATER` before
it where that was no fault of theirs. Refuses to know Celery.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dicom_node import faults, telemetry
from dicom_node.errors import Unavailable
from dicom_node.services.alerts import fault
from dicom_node.services.context import Node
from dicom_node.services.infer import Engines, run_jobs
from dicom_node.settings import load

READY = "ready"
LATER = "later: "


def main(owner: str) -> None:
    """Load the active models and answer."""
    import dicom_node.results.build  # noqa: F401 - highdicom, so that no job waits for it
    from dicom_node.worker.engines import WarmEngines  # torch

    def warm(node: Node) -> WarmEngines:
        engines = WarmEngines(node)
        if engines.device.type != "cpu":  # CUDA maps far more than it uses
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        engines.warm_up()
        return engines

    serve(owner, warm)


def serve(owner: str, warm: Callable[[Node], Engines]) -> None:
    """Make the engines, say that we are ready, and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    _give_way()
    faults.arm(os.environ)
    settings = load()
    telemetry.configure(settings.log, "worker")
    node = Node.open(settings, "worker", own=owner)
    engines = warm(node)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = str(run_jobs(node, engines, line.split()))
        except Unavailable as error:  # the database is away, mostly
            answer = LATER + " ".join(str(error).split())
        except Exception as error:
            answer = fault(error)
        print(answer, file=answers, flush=True)


def _give_way() -> None:
    """End when told by the parent, and before anything else when memory is short."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a group is told to stop: first what runs
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold patients' images
    faulthandler.enable()
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    main(sys.argv[1])
