"""Owns the modalities of a soak: what they send, and over what network; they believe only 0x0000.

Refuses to know what the node is made to suffer meanwhile.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from contextlib import suppress

from tests import dicoms
from tests.faults.invariants import Ledger, Problems, Sent, radiograph
from tests.faults.proxy import Cut, Deaf, Delay, Dribble, Hang, Proxy
from tests.faults.report import Report
from tests.faults.wire import Gone, Wire, p_data, store_rq
from tests.node import Running


class Modalities:
    """Senders that believe nothing but 0x0000, and send again until they get it."""

    def __init__(
        self, node: Running, proxy: Proxy, report: Report, seed: int, senders: int
    ) -> None:
        self.node, self.proxy, self.report = node, proxy, report
        self.ledger, self.owed = Ledger(), deque[Sent]()
        self.known: list[Sent] = []
        self.waiting, self.ending = threading.Event(), threading.Event()
        self._broken: Problems = []
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"), n))
            for n in range(senders)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """No new studies; what is owed is still sent."""
        self.ending.set()

    def join(self, patience: float) -> Problems:
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.1))
        return [*self._broken, *(f"I1: {i.uid} is never taken" for i in self.owed)]

    def _run(self, rng: random.Random, sender: int) -> None:
        try:
            self._send(rng, sender)
        except BaseException as error:  # one sender less would make the rest look well
            self._broken.append(f"I1: sender {sender} ended: {error!r}")
            raise

    def _send(self, rng: random.Random, sender: int) -> None:
        number = 0
        while not (self.ending.is_set() and not self.owed):
            if self.owed and (self.ending.is_set() or rng.random() < 0.5):
                with suppress(IndexError):
                    self._push(self.owed.popleft())
                continue
            if self.waiting.is_set():
                time.sleep(0.2)  # more is under way than the node gets done
                continue
            number += 1
            self._new(rng, (self.report.seed, sender, number))

    def _new(self, rng: random.Random, name: tuple[int, ...]) -> None:
        """A study, or something of an old one."""
        kind, old = rng.random(), rng.choice(self.known) if self.known else None
        if old and kind < 0.08:
            self.report.faults["late image"] += 1
            self._push(radiograph("soak", *name, study_uid=old.study, number=2))
        elif old and kind < 0.16:
            self.report.faults["sent again"] += 1
            self._push(old)
        elif old and kind < 0.19:
            self._conflict(old, name)
        else:
            image = radiograph("soak", *name, seed=name[-1])
            self.report.studies += 1
            self.known.append(image)
            if kind < 0.25:
                self._break_off(image)
            elif kind < 0.33:
                self._by_network(image, rng)
            elif kind < 0.36:
                self.report.faults["sent three times at once"] += 1
                together = [threading.Thread(target=self._push, args=(image,)) for _ in range(3)]
                for thread in together:
                    thread.start()
                for thread in together:
                    thread.join()
            else:
                self._push(image)

    def _push(self, instance: Sent, port: int = 0, patience: float = 20.0) -> None:
        status: int | None = None
        try:
            with Wire(port or self.node.port, patience) as wire:
                if wire.associate():
                    status = wire.store(instance.sop_class, instance.uid, instance.data)
                    self.ledger.note(instance, status)
                    wire.release()
        except Gone:
            pass
        if instance.uid not in self.ledger.acknowledged:
            self.report.refused["no answer" if status is None else f"0x{status:04X}"] += 1
            self.owed.append(instance)
            time.sleep(0.3)  # a modality does not try again at once

    def _conflict(self, old: Sent, name: tuple[int, ...]) -> None:
        """Another picture under a UID that is acknowledged: to be refused, never to replace it."""
        if old.uid not in self.ledger.acknowledged:
            return
        other = radiograph("soak", *name, pixels=dicoms.phantom((48, 48), seed=name[-1]))
        data = other.data.replace(other.uid.encode(), old.uid.encode().ljust(len(other.uid), b"\0"))
        if len(old.uid) > len(other.uid):
            return
        self.report.faults["other content"] += 1
        with suppress(Gone), Wire(self.node.port, 20) as wire:
            if wire.associate() and wire.store(old.sop_class, old.uid, data) == 0:
                self.report.problems.setdefault("I1", []).append(f"I1: {old.uid} was replaced")

    def _break_off(self, image: Sent) -> None:
        self.report.faults["aborted by the sender"] += 1
        with suppress(Gone), Wire(self.node.port, 20) as wire:
            if wire.associate():
                context = wire.context(image.sop_class)
                wire.send(p_data(context, store_rq(image.sop_class, image.uid), command=True))
                wire.send(p_data(context, image.data[:3000], command=False, last=False))
                wire.abort()
        self.owed.append(image)

    def _by_network(self, image: Sent, rng: random.Random) -> None:
        fault = rng.choice(
            [
                Cut(rng.randrange(200, 9000)),
                Cut(rng.randrange(200, 9000), reset=True),
                Hang(rng.randrange(200, 9000)),
                Deaf(1),
                Dribble(500, 0.02),
                Delay(0.1),
            ]
        )
        self.report.faults[f"network: {type(fault).__name__.lower()}"] += 1
        self.proxy.fault = fault
        self._push(image, self.proxy.port, 5.0)
