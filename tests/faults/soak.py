"""A nemesis that does everything at random to a node under load, and the count of what it cost.

    python -m tests.faults.soak --minutes 30 --database postgresql [--seed 7] [--report soak.md]

(make soak MINUTES=30 DATABASE=postgresql). Modalities send small radiographs, some through a
network that cuts, some twice, some late, some with another's UID. Meanwhile processes are killed
and frozen, Redis is flushed, killed and frozen, the PACS refuses, aborts, forgets to answer and
goes down, the database is locked or cut off, and the node itself fails at its named steps. In the
end all is healed, what was never acknowledged is sent again, and I1 to I6 are asked. The seed
decides what is done and in which order; when, the machine decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from dicom_node.domain.delivery import DeliveryState
from dicom_node.errors import NodeError
from dicom_node.store.tables import Delivery, Job, Result
from tests import dicoms
from tests.bundles import make_tiny_bundle
from tests.faults.invariants import (
    Ledger,
    Problems,
    Sent,
    i1,
    i2,
    i3,
    i4,
    i5,
    i6,
    in_broker,
    over,
    radiograph,
    under_way,
)
from tests.faults.proxy import Cut, Deaf, Delay, Dribble, Proxy
from tests.faults.wire import Gone, Wire, p_data, store_rq
from tests.node import Running, dimse, rule, running, tree
from tests.pacs import Do, Pacs
from tests.pacs import Report as Commits
from tests.servers import Postgres, eventually, free_port, postgresql

LEASE = 4.0
BACKLOG = 60
"""Studies that may be under way before modalities wait: what is not run in time proves nothing."""
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


@dataclass
class Report:
    """What was done and what held; `problems` has a list for each invariant."""

    database: str
    seed: int
    minutes: float
    studies: int = 0
    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    attempts: int = 0
    results: int = 0
    sendings: int = 0
    commitments: int = 0
    healed_after: float = 0.0
    usual: float = 0.0
    problems: dict[str, Problems] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return bool(self.problems) and not any(self.problems.values())

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults_in_all": self.faults.total(), "holds": self.holds}

    def as_markdown(self) -> str:
        by_kind = ", ".join(f"{kind} {n}" for kind, n in self.faults.most_common())
        kills = ", ".join(f"{role} {n}" for role, n in self.kills.most_common())
        refused = ", ".join(f"{status} {n}" for status, n in self.refused.most_common())
        rows = {
            "database": self.database,
            "seed": self.seed,
            "minutes": f"{self.minutes:g}, then {self.healed_after:.0f} s to be done",
            "studies": self.studies,
            "instances acknowledged": self.acknowledged,
            "refused, to be sent again": refused or "none",
            "faults": f"{self.faults.total()}: {by_kind}",
            "kills among them": f"{self.kills.total()}: {kills}",
            "jobs": f"{self.jobs}, claimed {self.attempts} times",
            "results": f"{self.results}, sent {self.sendings} times, {self.commitments} committed",
            **{
                name: "holds" if not found else f"BROKEN ({len(found)}): {'; '.join(found[:5])}"
                for name, found in self.problems.items()
            },
        }
        return "\n".join(
            ["| soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )


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

    def came(self) -> set[tuple[str, str]]:
        return {
            (r.sop_instance_uid, r.sha256) for pacs in self._all for r in pacs.received if r.path
        }


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
                time.sleep(0.2)
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
            time.sleep(0.3)

    def _conflict(self, old: Sent, name: tuple[int, ...]) -> None:
        """Another picture under a UID that is acknowledged: to be refused, never to replace it."""
        if old.uid not in self.ledger.acknowledged:
            return
        self.report.faults["other content"] += 1
        other = radiograph("soak", *name, pixels=dicoms.phantom((48, 48), seed=name[-1]))
        data = other.data.replace(other.uid.encode(), old.uid.encode().ljust(len(other.uid), b"\0"))
        if len(old.uid) > len(other.uid):
            return
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
                Deaf(1),
                Dribble(500, 0.02),
                Delay(0.1),
            ]
        )
        self.report.faults[f"network: {type(fault).__name__.lower()}"] += 1
        self.proxy.fault = fault
        self._push(image, self.proxy.port, 5.0)


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
        self.frozen: set[psutil.Process] = set()
        self.named: Problems = []
        self._deeds: dict[Callable[[], None], int] = {
            self.fail_at_a_step: 12,
            self.kill: 4,
            self.freeze: 6,
            self.flush: 5,
            self.pacs_answers: 10,
            self.pacs_commits: 3,
            self.pacs_goes_down: 4,
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
        elif self.rng.random() < 0.3:
            self.server.restart()
            self._count("PostgreSQL restarted")
        else:
            self.server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname LIKE 'test%' AND random() < 0.7"
            )
            self._count("PostgreSQL cut connections")

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


@contextmanager
def _site(
    folder: Path, database: str, seed: int
) -> Iterator[tuple[Running, Archive, Postgres | None]]:
    with ExitStack() as stack:
        server = stack.enter_context(postgresql(folder)) if database == "postgresql" else None
        bundle = make_tiny_bundle(folder / "tiny")
        archive = Archive(folder / "pacs")
        stack.callback(archive.end)
        storage = {"database": server.new_database()} if server else {}
        node = stack.enter_context(
            running(
                folder / "node",
                models=[bundle.path],
                destinations={"pacs": dimse(archive)},
                rules=[rule("all", ["tiny"], ["pacs"])],
                prepare=_expect_orders,
                storage=storage,
                worker={"lease": LEASE, "attempts": 100, "device": "cpu"},
                delivery={
                    **{"timeout": 5, "backoff": 0.5, "backoff_max": 2, "attempts": 500},
                    "commitment_timeout": 10,
                },
                completion={"quiet": [], "default_quiet": 0.5},
                listener={"port": free_port(), "reserve_mb": 16, "idle_timeout": 20},
            )
        )
        threading.Thread(
            target=archive.report, args=(node, random.Random(seed)), daemon=True
        ).start()
        yield node, archive, server


def _expect_orders(node: Running) -> None:
    node.faults = {"FAULT_TESTING": "yes", "FAULT": f"@{node.folder / 'orders'}"}


def soak(
    folder: Path,
    minutes: float,
    seed: int,
    database: str = "sqlite",
    senders: int = 4,
    pause: float = 1.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run it; the report says what was done and what held.

    Args:
        pause: seconds between two deeds of the nemesis, on average.
    """
    report = Report(database, seed, minutes)
    with _site(folder, database, seed) as (node, archive, server), Proxy(("127.0.0.1", 0)) as proxy:
        proxy.target = ("127.0.0.1", node.port)
        report.usual = _usual(node)
        nemesis = Nemesis(node, archive, server, report, seed)
        modalities = Modalities(node, proxy, report, seed, senders)
        try:
            started = time.monotonic()
            while (left := started + minutes * 60 - time.monotonic()) > 0:
                _pace(node, modalities)
                nemesis.act()
                tell(
                    f"{left:4.0f} s left, {report.studies} studies, "
                    f"{len(modalities.ledger.acknowledged)} acknowledged, "
                    f"{len(modalities.owed)} owed, {report.faults.total()} faults, "
                    f"{report.kills.total()} kills"
                )
                time.sleep(nemesis.rng.expovariate(1 / pause))
        finally:
            modalities.end()
            nemesis.heal()
        healed = time.monotonic()
        tell("healed; waiting until all is done")
        never = modalities.join(300)
        unfinished: Problems = []
        try:
            over(node, patience=600)
            eventually(lambda: not _doubted(node), 120, "all is committed, or known not to be")
        except BaseException as error:  # pytest's failure is none of Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            moving = under_way(node) or [f"delivery {row.id} is sent" for row in _doubted(node)]
            unfinished = [f"I2: not over: {', '.join(moving[:10])}"]
        report.healed_after = time.monotonic() - healed
        _conclude(report, node, nemesis, modalities, never, unfinished)
    return report


def _doubted(node: Running) -> list[Delivery]:
    """What arrived, and has no answer yet on whether it is kept."""
    return node.rows(Delivery, Delivery.state == DeliveryState.SENT)


def _usual(node: Running) -> float:
    """How long a study takes when nothing is wrong, the models warm."""
    i6(node, 1000, 120, "first")
    started = time.monotonic()
    i6(node, 1000, 120, "second")
    return max(5 * (time.monotonic() - started), 10.0)


def _pace(node: Running, modalities: Modalities) -> None:
    """Let modalities wait while the node has much to do."""
    try:
        busy = len(under_way(node)) > BACKLOG * 4
    except Exception:  # the database is away, which is the point
        return
    (modalities.waiting.set if busy else modalities.waiting.clear)()


def _conclude(
    report: Report,
    node: Running,
    nemesis: Nemesis,
    modalities: Modalities,
    never: Problems,
    unfinished: Problems,
) -> None:
    jobs = node.rows(Job)
    report.acknowledged = len(modalities.ledger.acknowledged)
    report.jobs, report.attempts = len(jobs), sum(job.attempts for job in jobs)
    report.results, report.sendings = len(node.rows(Result)), nemesis.archive.stores
    report.commitments = len(node.rows(Delivery, Delivery.state == DeliveryState.COMMITTED))
    fresh = i6(node, report.usual)
    already = report.problems.pop("I1", [])
    with nemesis.redis() as client:
        found = i5(node, client)
    report.problems = {
        "I1": [*already, *never, *i1(node, modalities.ledger.acknowledged)],
        "I2": [*unfinished, *i2(node)],
        "I3": i3(node, nemesis.archive.came()),
        "I4": i4(node),
        "I5": sorted({*nemesis.named, *found}),
        "I6": fresh,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--senders", type=int, default=4, help="modalities at a time")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two deeds")
    parser.add_argument("--folder", type=Path, help="keep everything there")
    parser.add_argument("--report", type=Path, help="write the table there, as Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {given.seed}, {given.database}, {given.minutes:g} minutes", file=sys.stderr)

    def tell(text: str) -> None:
        ending = ("\r", "\033[K") if sys.stderr.isatty() else ("", "\n")
        print(f"{ending[0]}{text}{ending[1]}", end="", flush=True, file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        report = soak(
            given.folder or Path(temporary),
            given.minutes,
            given.seed,
            given.database,
            given.senders,
            given.pause,
            tell,
        )
    if not report.holds and given.folder is None:
        print("with --folder everything is kept, to be looked at", file=sys.stderr)
    told = json.dumps(report.as_json(), indent=2) if given.json else report.as_markdown()
    print(f"\n{told}")
    if given.report:
        given.report.write_text(report.as_markdown() + "\n")
    return not report.holds


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
