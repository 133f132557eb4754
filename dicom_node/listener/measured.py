"""Owns how much pydicom may make of a message's data set; knows nothing of what it means.

pynetdicom decodes it when a handler asks, and 16 MiB can be millions of items of a kilobyte each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from io import BytesIO
from typing import Any, TypeVar, cast

import structlog
from pynetdicom.events import Event

from dicom_node.dimse import status
from dicom_node.dimse.acceptor import GuardedAssociation
from dicom_node.errors import RefusedInstance
from dicom_node.services.headers import measure

log = structlog.get_logger(__name__)

LARGE = 20_000
"""Elements and items; references to 5,000 instances have as many."""

Answer = tuple[int, Any]
Owner = TypeVar("Owner")

_one_large = threading.Lock()
"""Senders of large messages get the memory for one between them."""


def measured(
    parameter: str,
) -> Callable[[Callable[[Owner, Event], Answer]], Callable[[Owner, Event], Answer]]:
    """Of a handler: it is called only where the data set can be walked, and is not endless.

    Args:
        parameter: of the request, where the data set is (PS3.7 10.1).
    """

    def decorate(handler: Callable[[Owner, Event], Answer]) -> Callable[[Owner, Event], Answer]:
        @wraps(handler)
        def handle(owner: Owner, event: Event) -> Answer:
            data: BytesIO | None = getattr(event.request, parameter)
            try:
                size = measure(data.getvalue() if data else b"", event.context.transfer_syntax)
            except RefusedInstance as refusal:
                names = cast(GuardedAssociation, event.assoc).names
                log.warning("message refused", reason=refusal.reason, **names)
                return status.PROCESSING_FAILURE, None
            with _one_large if size > LARGE else nullcontext():
                return handler(owner, event)

        return handle

    return decorate
