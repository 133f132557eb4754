"""Redis is in trouble in the very moment in which a worker has taken a nudge."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from dicom_node.services.dispatch import Nudger
from dicom_node.settings import BrokerSettings, Settings
from tests.servers import eventually, redis_server

WORKER = """
import os, signal, sys
from celery import signals
from dicom_node.services.dispatch import make_app
from dicom_node.settings import load

app = make_app(load())
app.conf.update(worker_pool="solo", worker_redirect_stdouts=False)
frozen = []

@app.task(name="infer")
def infer(queue):
    print("ran", flush=True)

@signals.task_received.connect
def freeze(**_):  # between BRPOP and acknowledgement
    if not frozen:
        frozen.append(os.kill(int(sys.argv[1]), signal.SIGSTOP))

app.worker_main(
    ["--quiet", "worker", "--queues", "any", "--concurrency", "1", "--without-gossip",
     "--without-mingle", "--without-heartbeat", "--loglevel", "CRITICAL"]
)
"""


def test_row_15_a_worker_takes_the_next_nudge_though_redis_swallowed_its_acknowledgement(
    tmp_path: Path,
) -> None:
    """With messages that are acknowledged it would count one as held, and wait for minutes."""
    with redis_server(tmp_path) as broker, (tmp_path / "said").open("wb") as said:
        settings = Settings(broker=BrokerSettings(url=broker.url, socket_timeout=0.5))
        own = {
            "DICOM_NODE_BROKER__URL": broker.url,
            "DICOM_NODE_BROKER__SOCKET_TIMEOUT": "0.5",
        }
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(broker.pid)],
            stdout=said,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **own},
        )
        try:
            nudger = Nudger(settings)
            assert nudger.nudge("infer", "any")
            eventually(lambda: ran(tmp_path) == 1, 60, "the first task")
            eventually(lambda: not nudger.nudge("infer", "any"), 10, "Redis is frozen")
            time.sleep(2)  # the worker, too, waits half a second for Redis, and must do so in vain
            broker.server.thaw()
            eventually(lambda: nudger.nudge("infer", "any"), 10, "Redis is back")
            eventually(lambda: ran(tmp_path) > 1, 20, "the next task")
        finally:
            worker.kill()
            worker.wait()


def ran(folder: Path) -> int:
    return (folder / "said").read_text().count("ran")
