"""Owns the harm that a soak does to a node, and the PACS that it harms it through.

Each deed is a method that returns when the harm is over, and counts what it did. Refuses to know
what modalities send meanwhile, and whether anything held.
"""

from __future__ import annotations

import random
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import psycopg
import redis
from pydicom import dcmread
from pynetdicom.dsutils import split_dataset

from dicom_node.domain.delivery import DeliveryState
from dicom_node.errors import InvalidTransition, NodeError
from dicom_node.services.deliver import retry_delivery
from dicom_node.store.tables import Delivery
from tests.faults.fuzz import Fuzzer, conversations
from tests.faults.invariants import Ledger, Problems, Sent, in_broker, slice_of
from tests.faults.report import Report
from tests.faults.wire import DEFLATED, Gone, Wire
from tests.node import Running, tree
from tests.pacs import Do, Pacs
from tests.pacs import Report as Commits
from tests.servers import Postgres, free_port

LEASE = 4.0
TIMEOUT = 5.0
"""Seconds that the node gives a PACS."""
FROZEN = 5.0
"""Seconds, at most, that PostgreSQL stands still."""
FOR_GOOD = (0xA900, 0x0122)
"""Statuses after which a PACS is not asked again, until an administrator says so."""
LATER = [Commits.NEVER] * 10_000
"""What the PACS keeps it tells on associations of its own; see `Archive.report`."""
ROLES = {
    "listener": ("dicom_node.cli.main", " listen"),
    "scheduler": ("dicom_node.cli.main", " scheduler"),
    "worker": ("dicom_node.cli.main", "--queues gpu,any"),
    "child": ("dicom_node.worker.child",),
    "delivery": ("dicom_node.cli.main", "--queues deliver"),
    "Redis": ("redis-server",),
}
STEPS = (
    *(f"instances/{step}" for step in ("opened", "written", "synced", "renamed", "durable")),
    *("receive/commit", "receive/committed", "receive/answer", "close/commit", "close/committed"),
    *("job/claimed", "job/predicted", "job/built", "job/commit", "job/committed"),
    *(f"results/{step}" for step in ("opened", "written", "synced", "renamed", "durable")),
    *("delivery/claimed", "delivery/sent", "delivery/commit", "delivery/recorded"),
)
FILE_STEPS = tuple(step for step in STEPS if step.startswith(("instances/", "results/")))


class Archive:
    """The PACS, through its outages: one port, one folder, and all that it was ever given."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._all: list[Pacs] = []
        self._ended = threading.Event()
        self.ae_title, self.is_up = "PACS", False
        self.up()

    @property
    def port(self) -> int:
        return self._port

    def up(self) -> None:
        pacs = Pacs(self._folder, port=self._port, commits=LATER)
        until = time.monotonic() + 10
        while True:
            try:
                self._all.append(pacs.__enter__())
                self.is_up = True
                return
            except OSError:  # the system has not let go of the port
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def down(self) -> None:
        self.is_up = False
        self._all[-1].stop()

    def answer(self, *answers: int | Do) -> None:
        self._all[-1].answers[:] = answers

    def refuse_commitment(self, *statuses: int) -> None:
        self._all[-1].commits = [*statuses, *LATER]

    def report(self, node: Running, rng: random.Random) -> None:
        """Until `end`: tell what is kept, by associations of its own; not always, or twice."""
        told = 0
        while not self._ended.wait(0.1):
            asked = [request for pacs in self._all for request in pacs.asked]
            for request in asked[told:]:
                for _ in range(rng.choices((0, 1, 2), (1, 8, 1))[0]):
                    with suppress(RuntimeError):  # the node is gone amid it
                        self._all[-1].report(request, node.port, "DICOMNODE")
            told = len(asked)

    def end(self) -> None:
        self._ended.set()
        self.down()

    @property
    def stores(self) -> int:
        """C-STORE requests that it got."""
        return sum(len(pacs.received) for pacs in self._all)

    def last(self, count: int) -> list[Path]:
        """The files of what came last, where they were kept."""
        return [r.path for pacs in self._all for r in pacs.received[-count:] if r.path][-count:]

    def came(self) -> set[tuple[str, str]]:
        return {
            (r.sop_instance_uid, r.sha256) for pacs in self._all for r in pacs.received if r.path
        }


class Nemesis:
    """Does harm; each method returns when the harm is over."""

    def __init__(
        self,
        node: Running,
        archive: Archive,
        server: Postgres | None,
        report: Report,
        seed: int,
    ) -> None:
        self.node, self.archive, self.server, self.report = node, archive, server, report
        self.rng = random.Random(seed)
        self.orders = node.folder / "orders"
        self.named: Problems = []
        self.ledger = Ledger()
        self._deeds: dict[Callable[[], None], int] = {
            self.fail_at_a_step: 12,
            self.kill: 4,
            self.freeze: 6,
            self.flush: 5,
            self.pacs_answers: 10,
            self.pacs_refuses: 3,
            self.pacs_hangs: 2,
            self.pacs_commits: 3,
            self.pacs_goes_down: 4,
            self.pacs_forwards: 3,
            self.hostile: 3,
            self.database: 5,
            self.kill_all: 1,
        }

    def act(self) -> None:
        deeds, weights = zip(*self._deeds.items(), strict=True)
        (deed,) = self.rng.choices(deeds, weights)
        with suppress(NodeError, OSError, psycopg.Error):  # two harms met: one is away already
            deed()

    def kill(self) -> None:
        role = self.rng.choices(list(ROLES), (3, 2, 1, 2, 2, 2))[0]
        if process := self._process(role):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                self._count(f"killed: {role}", role)

    def freeze(self) -> None:
        """Sometimes past its lease: then another has taken its work when it goes on."""
        role = self.rng.choice(list(ROLES))
        if process := self._process(role):
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                self._count(f"frozen: {role}")
                time.sleep(self.rng.choice((0.5, 1, 2, LEASE + 2)))
                process.resume()

    def fail_at_a_step(self) -> None:
        action = self.rng.choices(("kill", "sleep=1", "EIO", "ENOSPC", "stop"), (5, 3, 3, 3, 1))[0]
        step = self.rng.choice(FILE_STEPS if action in ("EIO", "ENOSPC") else STEPS)
        new = self.orders.with_suffix(".new")
        new.write_text(f"{step}:{action}")
        new.rename(self.orders)
        until = time.monotonic() + 3
        while self.orders.exists() and time.monotonic() < until:
            time.sleep(0.05)
        try:
            self.orders.unlink()
        except OSError:  # it was taken
            role = "at a step" if action == "kill" else None
            self._count(f"step: {action.partition('=')[0]}", role)
        if action == "stop":
            time.sleep(1)
            self.thaw()

    def flush(self) -> None:
        with suppress(redis.RedisError), self.redis() as client:
            self.named += in_broker(client)
            client.flushall()
            self._count("Redis flushed")

    def pacs_answers(self) -> None:
        answer: int | Do = self.rng.choice((0xA700, 0x0110, 0xB000, Do.ABORT, Do.DROP))
        self.archive.answer(*[answer] * self.rng.randrange(1, 4))
        name = answer.name.lower() if isinstance(answer, Do) else f"0x{answer:04X}"
        self._count(f"PACS: {name}")

    def pacs_refuses(self) -> None:
        """For good; an administrator looks after what was refused so before."""
        self.replay()
        status = self.rng.choice(FOR_GOOD)
        self.archive.answer(*[status] * self.rng.randrange(1, 3))
        self._count(f"PACS: 0x{status:04X}")

    def replay(self) -> int:
        """Have what the PACS refused for good sent again; how many were."""
        again = 0
        for row in self.node.rows(Delivery, Delivery.state == DeliveryState.DEAD):
            if any(f"0x{status:04X}" in row.last_answer for status in FOR_GOOD):
                with suppress(InvalidTransition):  # it went with another of its job
                    retry_delivery(self.node.node, row.id)
                    again += 1
        self.report.replayed += again
        return again

    def pacs_hangs(self) -> None:
        """Until it is started anew; it may keep what it has been given, and said nothing of."""
        how = self.rng.choice((Do.HANG, Do.NONSENSE))
        self.archive.answer(how)
        self._count(f"PACS: {how.name.lower()}")
        time.sleep(self.rng.choice((1, TIMEOUT + 2)))
        self.archive.down()
        self.archive.up()

    def pacs_forwards(self) -> None:
        """What it was given last comes back from it: our own results."""
        for path in self.archive.last(self.rng.randrange(1, 6)):
            ds, (_, start) = dcmread(path, stop_before_pixels=True), split_dataset(path)
            back = Sent(str(ds.SOPClassUID), str(ds.SOPInstanceUID), "", path.read_bytes()[start:])
            syntax = str(ds.file_meta.TransferSyntaxUID)
            self.ledger.note(back, self._store(back, syntax, b"PACS"))
            self._count("PACS forwards back")

    def hostile(self) -> None:
        """Somebody who means no good, with a modality's title."""
        self.rng.choice((self._damaged, self._silent, self._bomb))()

    def _damaged(self) -> None:
        """Whatever is damaged, no image is among it: nobody could say what became of that."""
        fuzzer = Fuzzer(self.node.port, self.rng.getrandbits(32), conversations(images=False))
        for _ in range(20):
            fuzzer.connection()
        self._count("hostile: damaged PDUs")

    def _silent(self) -> None:
        with suppress(Gone), ExitStack() as open_:
            for _ in range(30):
                open_.enter_context(Wire(self.node.port, TIMEOUT)).send(b"\x01\x00\x00")
            self._count("hostile: thirty silent connections")
            time.sleep(self.rng.uniform(1, 3))

    def _bomb(self) -> None:
        instance = slice_of("bomb", self.report.faults.total())
        instance.data = bomb(instance.data)
        if self._store(instance, DEFLATED) == 0:
            self.report.problems.setdefault("I1", []).append(
                f"I1: a bomb was taken, {instance.uid}"
            )
        self._count("hostile: a bomb")

    def _store(self, instance: Sent, syntax: str, calling: bytes = b"STORESCU") -> int | None:
        contexts = ((instance.sop_class, (syntax,)),)
        with suppress(Gone), Wire(self.node.port, 20, contexts, calling) as wire:
            if wire.associate():
                status = wire.store(instance.sop_class, instance.uid, instance.data)
                wire.release()
                return status
        return None

    def pacs_commits(self) -> None:
        """Not, for now."""
        self.archive.refuse_commitment(*[0x0213] * self.rng.randrange(1, 4))
        self._count("PACS: commitment refused")

    def pacs_goes_down(self) -> None:
        self.archive.down()
        self._count("PACS down")
        time.sleep(self.rng.uniform(0.5, 3))
        self.archive.up()

    def database(self) -> None:
        if self.server is None:
            self._lock_sqlite()
        elif (kind := self.rng.random()) < 0.3:
            self.server.restart()
            self._count("PostgreSQL restarted")
        elif kind < 0.5:
            self._freeze_postgresql(self.server)
        else:
            self.server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname LIKE 'test%' AND random() < 0.7"
            )
            self._count("PostgreSQL cut connections")

    def _freeze_postgresql(self, server: Postgres) -> None:
        """All of its processes, the first one first: it would start others."""
        family = tree(server.server.pid)
        try:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            self._count("PostgreSQL frozen")
            time.sleep(self.rng.uniform(0.5, FROZEN))
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def _lock_sqlite(self) -> None:
        path = self.node.node.settings.database_url.removeprefix("sqlite:///")
        with (
            suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other,
        ):
            other.execute("BEGIN IMMEDIATE")
            time.sleep(self.rng.choice((0.5, 2, 11)))
            other.execute("ROLLBACK")
            self._count("SQLite locked")

    def kill_all(self) -> None:
        """A power cut; then the node is started again."""
        child = self.node.children.pop("up")
        family = tree(child.pid)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait()
        psutil.wait_procs(family, timeout=30)
        self._count("power cut", "all")
        self.node.start("up")

    def thaw(self) -> None:
        """Whoever is stopped goes on."""
        for process in self.node.processes():
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    process.resume()

    def heal(self) -> None:
        self.orders.unlink(missing_ok=True)
        if not self.archive.is_up:
            self.archive.up()
        self.archive.answer()
        self.archive.refuse_commitment()
        self.thaw()

    def redis(self) -> redis.Redis:
        path = str(self.node.node.settings.embedded_redis_socket)
        return redis.Redis(unix_socket_path=path, socket_timeout=5)

    def _process(self, role: str) -> psutil.Process | None:
        found = self.node.processes(*ROLES[role])
        return self.rng.choice(found) if found else None

    def _count(self, kind: str, killed: str | None = None) -> None:
        self.report.faults[kind] += 1
        if killed:
            self.report.kills[killed] += 1


def bomb(data: bytes) -> bytes:
    """A data set that goes on for 320 MiB once it is inflated: beyond what the node takes."""
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    begun = squeeze.compress(data + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 320 << 20))
    zeros = bytes(32 << 20)
    return begun + b"".join(squeeze.compress(zeros) for _ in range(10)) + squeeze.flush()
