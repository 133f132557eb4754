"""Results that wait for destinations, in a node without processes; and a listener beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike
from sqlalchemy import select

from dicom_node.domain.routing import parse_rules
from dicom_node.listener.node import NodeInbox
from dicom_node.listener.server import serve
from dicom_node.services import registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.infer import run_jobs
from dicom_node.store.tables import Delivery, Destination
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from tests.arrivals import all_of, arrive
from tests.dicoms import dx_image
from tests.nodes import add_bundle
from tests.pacs import AE_TITLE


def enough() -> float:
    """Jitter: the whole wait."""
    return 1.0


def patient(node: Node, **delivery: Any) -> Node:
    """The same node with other settings of delivery: by default, time for a busy machine."""
    told = node.settings.delivery.model_copy(update={"timeout": 15.0, **delivery})
    return replace(node, settings=node.settings.model_copy(update={"delivery": told}))


def at(node: Node, port: int, name: str = "out", ae_title: str = AE_TITLE, **terms: Any) -> None:
    """Enter a PACS on this machine."""
    config = {"ae_title": ae_title, "host": "127.0.0.1", "port": port}
    registry.add_destination(node, name, "dimse", config, terms=terms)


def routed(node: Node, bundle: Bundle, *destinations: str) -> None:
    """Every study goes to the model, and its results to the destinations."""
    add_bundle(node, bundle)
    rule = {"name": "all", "models": ["tiny"], "destinations": list(destinations)}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))


def analysed(node: Node, *patients: str, pixels: ArrayLike | None = None) -> None:
    """A SEG and a report of a new study of each, waiting to be sent."""
    arrive(node, *(dx_image(pixels, patient_id=name) for name in patients))
    close_studies(node)
    engines, ran = WarmEngines(node), 0
    while done := run_jobs(node, engines, ("any",)):
        ran += done
    assert ran == len(patients)


def states(node: Node, destination: str = "out") -> list[str]:
    """Of the deliveries to one destination."""
    with node.database.reading() as session:
        place = session.scalar(select(Destination.id).where(Destination.name == destination))
    return [row.state for row in all_of(node, Delivery, Delivery.destination_id == place)]


@contextmanager
def reporting_to(node: Node) -> Iterator[int]:
    """The node's listener, on a free port, which is the value."""
    stop, ready, ports = threading.Event(), threading.Event(), []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    options = node.settings.listener.model_copy(update={"host": "127.0.0.1", "port": 0})
    thread = threading.Thread(
        target=serve,
        args=(options, NodeInbox(node)),
        kwargs={"stop": stop, "ready": note, "drain": 1.0},
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield ports[0]
    finally:
        stop.set()
        thread.join(30)
