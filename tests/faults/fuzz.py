"""Sends mutated PDUs and data sets to a running listener, and watches that nothing gives way.

    python -m tests.faults.fuzz --count 100000 [--seed 1]      (make fuzz)

Each case is one message that a modality could have sent, damaged: bits and bytes turned, pieces
cut, doubled, moved or filled, lengths that lie. Some are a whole connection, others one data set of
many on an association. All the while another client sends C-ECHO. What must hold: no thread of the
listener dies, its memory and its threads stay what they were, an echo is answered in a second.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydicom.dataset import Dataset

from tests import dicoms
from tests.dicoms import uid
from tests.faults.invariants import memory, sent
from tests.faults.wire import (
    ACTION,
    COMMITMENT,
    CONTEXTS,
    CREATE,
    IMPLICIT,
    MPPS,
    SOME_DATA,
    Gone,
    Wire,
    associate_rq,
    command_set,
    echo_rq,
    echo_seconds,
    encoded,
    fragments,
    p_data,
    pdu,
    store_rq,
)
from tests.node import Running, running
from tests.servers import free_port

SPECIAL = (
    b"\0",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\1",
    b"\\",
    b"\n",
)
ALL_CONTEXTS = (*CONTEXTS, (COMMITMENT, (IMPLICIT,)), (MPPS, (IMPLICIT,)))
AT_ONCE = 20
"""Data sets on one association."""
GROWTH = 96 << 20
"""Bytes by which the listener may have grown at the end."""
STEADY = 32 << 20
"""And of them in the second half: a kilobyte kept of each message would be more in 100,000."""


@dataclass
class Report:
    """What came of it; `problems` is empty when all held."""

    seed: int
    sent: int = 0
    connections: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    echoes: list[float] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)
    meanwhile: list[int] = field(default_factory=list)
    threads: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def tenths(self) -> list[int]:
        """Of the memory seen meanwhile."""
        return [self.meanwhile[n * (len(self.meanwhile) - 1) // 10] for n in range(11)]

    def __str__(self) -> str:
        echoes = sorted(self.echoes) or [0.0]
        lines = [
            f"seed {self.seed}: {self.sent} messages on {self.connections} connections "
            f"in {self.seconds:.0f} s",
            "answers: " + ", ".join(f"{k} {n}" for k, n in self.statuses.most_common()),
            f"echoes: {len(self.echoes)}, median {echoes[len(echoes) // 2]:.3f} s, "
            f"slowest {echoes[-1]:.3f} s",
            f"memory of the listener: {self.memory[0] >> 20} MiB before, "
            f"{self.memory[1] >> 20} MiB after; threads {self.threads[0]} and {self.threads[1]}",
            f"meanwhile, in MiB: {' '.join(str(m >> 20) for m in self.tenths())}",
        ]
        return "\n".join(lines + (self.problems or ["nothing gave way"]))


# Mutation


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A message with one to four damages."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if not damaged:
            break
        _damage(damaged, rng)
    return bytes(damaged)


def _damage(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    length = min(rng.choice((1, 1, 2, 4, 8, 64, 500)), len(data) - at)
    match rng.randrange(9):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            data[at:at] = rng.randbytes(length)
        case 5:
            del data[at:]
        case 6:
            special = rng.choice(SPECIAL)
            data[at : at + len(special)] = special
        case 7:  # a length field, wherever one may be
            value = rng.choice(
                (0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, len(data), rng.getrandbits(32))
            )
            data[at : at + 4] = struct.pack(rng.choice("<>") + "L", value)
        case _:
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]


# What is sent


def data_sets() -> list[tuple[str, str, bytes]]:
    """SOP class, SOP Instance UID and bytes of what modalities send, small."""
    images = [
        dicoms.ct_slice(pixels=dicoms.phantom((16, 16)), sop_uid=uid("fuzz ct")),
        dicoms.dx_image(pixels=dicoms.phantom((16, 16)), sop_uid=uid("fuzz dx")),
    ]
    return [(s.sop_class, s.uid, s.data) for s in map(sent, images)]


def conversations(images: bool = True) -> list[list[bytes]]:
    """Connections as their PDUs: what a peer says when it does not wait for answers.

    Args:
        images: one of them stores an image.
    """
    (sop_class, instance, data), *_ = data_sets()
    begin, end = associate_rq(ALL_CONTEXTS), pdu(5, b"\0" * 4)
    commitment, step = Dataset(), Dataset()
    commitment.TransactionUID = uid("fuzz transaction")
    reference = dicoms.item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=instance)
    commitment.ReferencedSOPSequence = [reference]
    step.PerformedProcedureStepStatus, step.Modality = "IN PROGRESS", "CT"
    action = command_set(
        requested_class=COMMITMENT,
        field=ACTION,
        message=1,
        data_set=SOME_DATA,
        requested_instance="1.2.840.10008.1.20.1.1",
        action=1,
    )
    create = command_set(
        sop_class=MPPS, field=CREATE, message=1, data_set=SOME_DATA, sop_instance=uid("fuzz step")
    )
    store = [
        begin,
        p_data(3, store_rq(sop_class, instance), command=True),
        *fragments(3, data),
        end,
    ]
    return [
        [begin, end],
        [begin, p_data(1, echo_rq(), command=True), end],
        *([store] if images else []),
        [begin, p_data(7, action, command=True), *fragments(7, encoded(commitment, IMPLICIT)), end],
        [begin, p_data(9, create, command=True), *fragments(9, encoded(step, IMPLICIT)), end],
        [begin, pdu(7, b"\0" * 4)],
        [pdu(2, begin[6:]), end],
        [begin, pdu(6, b"\0" * 4), pdu(3, b"\0\1\1\1")],
    ]


class Fuzzer:
    """One client; `talks` are what it says, where not `conversations`."""

    def __init__(self, port: int, seed: int, talks: Sequence[list[bytes]] = ()) -> None:
        self.port, self.rng = port, random.Random(seed)
        self.talks, self.images = talks or conversations(), data_sets()
        self.sent = self.connections = 0
        self.statuses: Counter[str] = Counter()
        self.held: list[str] = []

    def connection(self) -> None:
        """One conversation with one of its PDUs damaged; its end is said, so nobody waits."""
        talk = list(self.rng.choice(self.talks))
        victim = self.rng.randrange(len(talk))
        talk[victim] = mutated(talk[victim], self.rng)
        self.connections += 1
        self.sent += 1
        try:
            with Wire(self.port, 5) as wire:
                wire.send(b"".join(talk))
                wire.sock.shutdown(1)
                ended = wire.until_closed(10)
                self.statuses["closed" if ended else "held"] += 1
                if not ended:
                    self.held.append(f"held: PDU {victim} of {[p.hex() for p in talk]}"[:2000])
        except (Gone, OSError):
            self.statuses["closed"] += 1

    def association(self) -> None:
        """Damaged data sets, one after the other, as long as the node answers."""
        self.connections += 1
        try:
            with Wire(self.port, 15) as wire:
                if not wire.associate():
                    self.statuses["rejected"] += 1
                    return
                for _ in range(AT_ONCE):
                    sop_class, instance, data = self.rng.choice(self.images)
                    self.sent += 1
                    status = wire.store(sop_class, instance, mutated(data, self.rng))
                    self.statuses[f"0x{status:04X}"] += 1
                wire.release()
        except (Gone, OSError) as error:
            self.statuses["no answer" if "timed out" in str(error) else "aborted"] += 1


def fuzz(
    node: Running,
    count: int,
    seed: int,
    clients: int = 4,
    tell: bool = False,
) -> Report:
    """Send ``count`` damaged messages from some clients at once; what came of it."""
    (listener,) = [p for p in node.processes("listen") if not p.children()]
    report, started = Report(seed), time.monotonic()
    echo_seconds(node.port)
    log_before = len(node.log_text())
    before = memory(listener), listener.num_threads()
    stop = threading.Event()
    fuzzers = [Fuzzer(node.port, seed * 1000 + n) for n in range(clients)]

    def run(fuzzer: Fuzzer) -> None:
        while not stop.is_set() and sum(f.sent for f in fuzzers) < count:
            (fuzzer.connection if fuzzer.rng.random() < 0.9 else fuzzer.association)()

    threads = [threading.Thread(target=run, args=(fuzzer,)) for fuzzer in fuzzers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        with suppress(psutil.NoSuchProcess):
            report.meanwhile.append(memory(listener))
        try:
            report.echoes.append(echo_seconds(node.port, 10))
        except (Gone, AssertionError):
            report.echoes.append(float("inf"))
        if tell:
            _say(f"{sum(f.sent for f in fuzzers)} of {count}, {memory(listener) >> 20} MiB")
        if not listener.is_running():
            stop.set()
    for thread in threads:
        thread.join()
    _judge(node, listener, report, before, log_before)
    report.sent, report.connections = (
        sum(f.sent for f in fuzzers),
        sum(f.connections for f in fuzzers),
    )
    for fuzzer in fuzzers:
        report.statuses.update(fuzzer.statuses)
        report.problems += fuzzer.held
    for kind in ("held", "no answer"):
        if report.statuses[kind]:
            report.problems.append(f"{report.statuses[kind]} connections were {kind}")
    report.seconds = time.monotonic() - started
    return report


def _judge(
    node: Running, listener: psutil.Process, report: Report, before: tuple[int, int], log: int
) -> None:
    if not listener.is_running():
        report.problems.append("the listener has ended")
        return
    until = time.monotonic() + 20
    while listener.num_threads() > before[1] + 1 and time.monotonic() < until:
        time.sleep(0.2)
    report.memory = before[0], memory(listener)
    report.threads = before[1], listener.num_threads()
    if report.threads[1] > report.threads[0] + 1:
        report.problems.append("threads are left over")
    if report.memory[1] - report.memory[0] > GROWTH:
        report.problems.append("the listener has grown")
    if report.memory[1] - report.tenths()[5] > STEADY:
        report.problems.append("the listener goes on growing")
    if slow := [s for s in report.echoes if s > 1]:
        report.problems.append(f"{len(slow)} of {len(report.echoes)} echoes took over a second")
    said = node.log_text()[log:]
    for sign in ("Traceback", "Exception in thread", "connection failed", "internal error"):
        if lines := [line for line in said.splitlines() if sign in line]:
            report.problems.append(f"the log says {len(lines)} times {lines[0][:500]}")


def _say(text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r{text}\033[K", end="", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="damaged messages")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--clients", type=int, default=4, help="connections at a time")
    given = parser.parse_args(arguments)
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        listener = {"port": free_port(), "reserve_mb": 16, "idle_timeout": 5}
        log = {"level": "warning"}
        with running(Path(folder), roles=["listen"], listener=listener, log=log) as node:
            report = fuzz(node, given.count, given.seed, given.clients, tell=True)
        print(f"\r{report}")
        return bool(report.problems)
    return 130


if __name__ == "__main__":
    sys.exit(main())
