"""A running listener for tests, with an inbox in memory; also a process of its own:

    python -m tests.listening FD

serves the inherited listening socket FD and writes ``ready``, then each stored UID, to stdout.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.dimse.commitment import Report
from dicom_node.listener.server import Door, Inbox, serve
from dicom_node.services.admission import Admission, Caller, Reason
from dicom_node.services.receive import Arrival, Outcome, Reception
from dicom_node.settings import ListenerSettings

NODE = "NODE"


@dataclass
class MemoryInbox:
    """Keeps everything in lists. ``on_receive`` may raise or wait before an instance is kept."""

    calling: Collection[str] = ("ANY-SCU", "ECHOSCU", "STORESCU")
    addresses: Collection[str] = ("127.0.0.1",)
    endpoints: dict[str, tuple[str, int]] = field(default_factory=dict)
    on_receive: Callable[[Reception], None] = lambda _: None
    received: list[Reception] = field(default_factory=list)
    opened: list[tuple[str, str, str]] = field(default_factory=list)
    turned_away: list[tuple[str, str, str]] = field(default_factory=list)
    closed: list[tuple[int, bool]] = field(default_factory=list)
    expected: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None
    reporting: Collection[str] = ()
    reports: list[tuple[str, Report]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, caller: Caller) -> Admission:
        if self.failure:
            raise self.failure
        if caller.title not in self.calling:
            return Admission(Reason.UNKNOWN)
        return Admission(None if caller.address in self.addresses else Reason.ADDRESS)

    def refused(self, address: str, reason: str, calling: str = "") -> None:
        with self.lock:
            self.turned_away.append((address, reason, calling))

    def may_report(self, calling: str, address: str) -> bool:
        return calling in self.reporting and address in self.addresses

    def report(self, report: Report, calling: str) -> int:
        if self.failure:
            raise self.failure
        self.reports.append((calling, report))
        return 0x0000

    def open_association(self, calling: str, called: str, address: str) -> int:
        with self.lock:
            self.opened.append((calling, called, address))
            return len(self.opened)

    def close_association(self, association: int, *, aborted: bool) -> None:
        with self.lock:
            self.closed.append((association, aborted))

    def begin(self, arrival: Arrival) -> MemoryIntake:
        return MemoryIntake(self, arrival)

    def expect(
        self,
        *,
        association: int | None,  # noqa: ARG002 - part of the interface
        source: str,
        study_uid: str | None,
        sop_instance_uids: Sequence[str],
    ) -> None:
        if self.failure:
            raise self.failure
        self.expected.append(
            {"source": source, "study": study_uid, "instances": list(sop_instance_uids)}
        )

    def commit(self, references: Mapping[str, str]) -> Mapping[str, str]:
        have = {r.sop_instance_uid: r.sop_class_uid for r in self.received}
        return {uid: have[uid] for uid in references if uid in have}

    def endpoint(self, ae_title: str) -> DimseDestination | None:
        place = self.endpoints.get(ae_title)
        return DimseDestination(ae_title, *place, calling=NODE, timeout=10.0) if place else None


@dataclass
class MemoryIntake:
    """Gives the inbox what came, at its end."""

    inbox: MemoryInbox
    arrival: Arrival
    data: bytearray = field(default_factory=bytearray)

    def write(self, piece: memoryview) -> None:
        self.data += piece

    def finish(self) -> Outcome:
        reception = Reception(bytes(self.data), **vars(self.arrival))
        self.inbox.on_receive(reception)
        with self.inbox.lock:
            self.inbox.received.append(reception)
        return Outcome.STORED

    def drop(self) -> None:
        self.data.clear()


@contextmanager
def listening(
    inbox: Inbox,
    *,
    drain: float = 0.0,
    stop: threading.Event | None = None,
    doors: Sequence[Door] = (),
    **settings: Any,
) -> Iterator[int]:
    """Serve on a free port, or at ``doors``; the first's port is the value; stopped at the end."""
    stop, ready, ports = stop or threading.Event(), threading.Event(), []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    options = ListenerSettings(**{"ae_title": NODE, "port": 0, **settings})
    thread = threading.Thread(
        target=serve,
        args=(options, inbox),
        kwargs={"stop": stop, "ready": note, "drain": drain, "doors": doors},
    )
    thread.start()
    try:
        assert ready.wait(5)
        yield ports[0]
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive(), "the listener did not stop"


def main(descriptor: int) -> None:
    def say(line: str) -> None:
        print(line, flush=True)

    inbox = MemoryInbox(on_receive=lambda reception: say(reception.sop_instance_uid))
    serve(
        ListenerSettings(ae_title=NODE),
        inbox,
        doors=[Door(socket.socket(fileno=descriptor))],
        stop=threading.Event(),
        ready=lambda _: say("ready"),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
