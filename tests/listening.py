"""A running listener for tests, with an inbox in memory; also a process of its own:

    python -m tests.listening FD

serves the inherited listening socket FD and writes ``ready``, then each stored UID, to stdout.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dicom_node.listener.server import serve
from dicom_node.services.receive import Outcome, Reception
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
    closed: list[tuple[int, bool]] = field(default_factory=list)
    expected: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, calling: str, address: str) -> bool:
        if self.failure:
            raise self.failure
        return calling in self.calling and address in self.addresses

    def open_association(self, calling: str, called: str, address: str) -> int:
        with self.lock:
            self.opened.append((calling, called, address))
            return len(self.opened)

    def close_association(self, association: int, *, aborted: bool) -> None:
        with self.lock:
            self.closed.append((association, aborted))

    def receive(self, reception: Reception) -> Outcome:
        self.on_receive(reception)
        with self.lock:
            self.received.append(reception)
        return Outcome.STORED

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

    def held(self, references: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        have = {(r.sop_class_uid, r.sop_instance_uid) for r in self.received}
        return have & set(references)

    def endpoint(self, ae_title: str) -> tuple[str, int] | None:
        return self.endpoints.get(ae_title)


@contextmanager
def listening(
    inbox: MemoryInbox, *, drain: float = 0.0, stop: threading.Event | None = None, **settings: Any
) -> Iterator[int]:
    """Serve on a free port, which is the value; stopped at the end."""
    stop, ready, ports = stop or threading.Event(), threading.Event(), []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    options = ListenerSettings(**{"ae_title": NODE, "port": 0, **settings})
    thread = threading.Thread(
        target=serve, args=(options, inbox), kwargs={"stop": stop, "ready": note, "drain": drain}
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
        sock=socket.socket(fileno=descriptor),
        stop=threading.Event(),
        ready=lambda _: say("ready"),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
