"""A nemesis that does everything at random to a node under load, and the count of what it cost.

    python -m tests.faults.soak --minutes 30 --database postgresql [--seed 7] [--report soak.md]

(make soak MINUTES=30 DATABASE=postgresql). Modalities send small radiographs, some through a
network that cuts, some twice, some late, some with another's UID (`load.py`). Meanwhile processes
are killed and frozen, Redis is flushed, killed and frozen, the PACS refuses, aborts, hangs, goes
down and sends our results back, the database is locked, frozen or cut off, somebody sends damaged
PDUs and bombs, and the node itself fails at its named steps (`nemesis.py`). In the end all is
healed, what was never acknowledged is sent again, and I1 to I6 are asked. The seed decides what is
done and in which order; when, the machine decides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dicom_node.domain.delivery import DeliveryState
from dicom_node.store.tables import Delivery, Job, Result
from tests.bundles import make_tiny_bundle
from tests.faults.invariants import Problems, i1, i2, i3, i4, i5, i6, over, under_way
from tests.faults.load import Modalities
from tests.faults.nemesis import LEASE, TIMEOUT, Archive, Nemesis
from tests.faults.proxy import Proxy
from tests.faults.report import Report
from tests.node import Running, dimse, rule, running
from tests.servers import Postgres, eventually, free_port, postgresql

BACKLOG = 60
"""Studies that may be under way before modalities wait: what is not run in time proves nothing."""


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
                modalities=("STORESCU", "PACS"),
                prepare=_expect_orders,
                storage=storage,
                worker={"lease": LEASE, "attempts": 100, "device": "cpu"},
                delivery={
                    **{"timeout": TIMEOUT, "backoff": 0.5, "backoff_max": 2, "attempts": 500},
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
            while nemesis.replay():
                over(node, patience=120)
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
    """Let modalities wait while the node has much to do, or owes them many an answer."""
    try:
        busy = len(modalities.owed) > BACKLOG or len(under_way(node)) > BACKLOG * 4
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
    acknowledged = {**modalities.ledger.acknowledged, **nemesis.ledger.acknowledged}
    with nemesis.redis() as client:
        found = i5(node, client)
    report.problems = {
        "I1": [*already, *never, *i1(node, acknowledged)],
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
