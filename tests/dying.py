"""A process that delivers, and is killed at a step:

    python -m tests.dying FOLDER DATABASE STEP PASSED

with ``PASSED`` seconds on its clock; ``nowhere`` lets it live. Prints ``alive`` at the end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from dicom_node.services import commitments, confirmations, deliver
from dicom_node.services.context import Node, utc_now
from dicom_node.services.processes import register
from dicom_node.settings import Settings


def before(module: Any, name: str) -> None:
    setattr(module, name, _die)


def after(module: Any, name: str) -> None:
    real = getattr(module, name)

    def run(*args: Any, **named: Any) -> None:
        real(*args, **named)
        _die()

    setattr(module, name, run)


STEPS: dict[str, Callable[[], None]] = {
    "claimed": lambda: after(deliver, "_claim"),
    "sent": lambda: before(deliver, "_record"),
    "recorded": lambda: after(deliver, "_record"),
    "question written": lambda: before(commitments, "_ask"),
    "asked": lambda: after(commitments, "_ask"),
    "reported": lambda: before(confirmations, "record"),
    "nowhere": lambda: None,
}


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, database: str, step: str, passed: str) -> None:
    settings = Settings(
        node_salt="tests",
        storage={"folder": Path(folder), "database": database},
        delivery={"timeout": 30},
        listener={"reserve_mb": 0},
    )
    node = Node.open(settings, "test", lambda: utc_now() + timedelta(seconds=float(passed)))
    register(node)
    STEPS[step]()
    deliver.deliver(node)
    print("alive")


if __name__ == "__main__":
    main(*sys.argv[1:])
