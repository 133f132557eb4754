"""Owns nudges: "work is ready in this queue", said to Celery; the database keeps the work itself.

A nudge may be lost, doubled or late without harm. Refuses to know what the work is.
"""

from __future__ import annotations

import math
import time

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from dicom_node.settings import Settings

INFER, DELIVER, CANARY = "infer", "deliver", "canary"
QUEUES = ("any", "gpu", "deliver")

log = structlog.get_logger(__name__)


def make_app(settings: Settings) -> Celery:
    """The Celery application, the same for those who nudge and those who work.

    No result backend, no ETA; a message that is lost is nudged again from the database.
    """
    app = Celery("dicom_node", broker=settings.broker_url)
    timeout = settings.broker.socket_timeout
    app.conf.update(
        task_ignore_result=True,
        task_default_queue="any",
        # Unacknowledged, a nudge is gone once it is taken. Acknowledged, one whose answer a Redis
        # in trouble swallowed counts as held, and a worker holds one: it would take no other.
        task_queues={name: {"no_ack": True} for name in QUEUES},
        task_serializer="json",
        accept_content=["json"],
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=timeout,
        broker_transport_options={
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
        },
        task_publish_retry=False,
    )
    return app


class Nudger:
    """Sends nudges; a broker that is away costs half of its caller's time at most.

    Each of its addresses is tried once, and after a wait in vain it is left alone for as long.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)
        hosts = settings.broker_url.split(";")
        # Or kombu sleeps between attempts until ``broker_connection_timeout`` is over.
        self._app.conf.broker_transport_options["max_retries"] = len(hosts) - 1
        self._rests_until = -math.inf

    def nudge(self, task: str, queue: str) -> bool:
        """Say that ``queue`` has work; False when the broker could not be told."""
        begun = time.monotonic()
        if begun < self._rests_until:
            return False
        try:
            self._app.send_task(task, queue=queue, kwargs={"queue": queue}, expires=3600)
        except (OperationalError, OSError) as error:
            log.warning("broker away, will nudge again", queue=queue, reason=type(error).__name__)
            self._app.close()
            now = time.monotonic()
            self._rests_until = now + (now - begun)
            return False
        return True

    def waiting(self) -> dict[str, int]:
        """How many nudges each queue holds.

        Raises:
            OperationalError: the broker is away.
        """
        with self._app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            channel = connection.default_channel
            return {queue: channel.client.llen(queue) for queue in QUEUES}
