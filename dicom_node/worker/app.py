"""Owns the Celery application as workers run it; Celery finds it here by its name.

One process a worker, its task in its main thread (the pool "solo"): nothing forks beside torch and
CUDA, and no semaphore of the system is needed. Only nudges travel: what a message holds is the name
of a queue.
"""

from __future__ import annotations

import warnings

from celery import Celery

from dicom_node.services.dispatch import make_app
from dicom_node.settings import Settings, load


def make_worker_app(settings: Settings) -> Celery:
    """The application with its tasks."""
    app = make_app(settings)
    app.conf.update(
        include=["dicom_node.worker.tasks"],
        worker_pool="solo",
        worker_redirect_stdouts=False,  # our log lines go to stderr as they are
    )
    return app


# Root is discouraged in production (deploy/ runs as a user of its own), and works.
warnings.filterwarnings("ignore", "You're running the worker with superuser privileges")
app = make_worker_app(load())  # the one module that acts at import: `celery -A` asks for it
