"""How many CT instances a second the listener makes durable, beside three others.

    python -m tests.benchmarks.ingest [--instances 300] [--repeat 3] [--processes 1]
                                      [--database postgresql+psycopg://...]

All get files alike from DCMTK's storescu in one run, by turns, with Nagle's algorithm off wherever
there is a switch for it. The node answers after file, directory and row are on disk, Orthanc after
its file and row are; storescp (--fork) and pynetdicom, as its documentation has it (each data set
decoded and saved), answer before. The sender shares the machine with the receiver. Last is said
what memory the listener held after its first run and after its last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.store.tables import Instance
from tests import dicoms
from tests.benchmarks.machine import machine, table
from tests.dicoms import uid
from tests.node import Running, in_parallel, running, seconds_since, statuses, store
from tests.servers import Server, answers_on, free_port, orthanc, storescp

ASSOCIATIONS = (1, 4, 16)
SIDE = 512  # 512 x 512 x 16 bit: half a megabyte


class Files:
    """Makes instances that nobody has seen, by writing new UIDs of equal length over the old."""

    def __init__(self, folder: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 4096, (SIDE, SIDE))
        self._old = [uid("template", n)[:30] for n in range(3)]
        study, series, instance = self._old
        ds = dicoms.ct_slice(noise, study_uid=study, series_uid=series, sop_uid=instance)
        self._template = dicoms.save(ds, folder / "template.dcm").read_bytes()
        self._folder, self._drawn = folder, 0

    def draw(self, count: int) -> list[Path]:
        """A new study of so many instances."""
        self._drawn += 1
        place = self._folder / str(self._drawn)
        place.mkdir()
        data = self._template
        for old in self._old[:2]:
            data = data.replace(old.encode(), uid(old, self._drawn)[:30].encode())
        paths = []
        for number in range(count):
            path = place / f"{number}.dcm"
            new = uid(self._drawn, number)[:30]
            path.write_bytes(data.replace(self._old[2].encode(), new.encode()))
            paths.append(path)
        return paths


def rate(port: int, title: str, batches: Sequence[Sequence[Path]]) -> float:
    """Instances a second over as many associations as there are batches."""
    started = time.monotonic()
    done = in_parallel(*(lambda files=batch: store(port, files, called=title) for batch in batches))
    seconds = seconds_since(started)
    answers = [status for one in done for status in statuses(one)]
    wanted = sum(map(len, batches))
    if answers != [0] * wanted:
        raise RuntimeError(f"{answers.count(0)} of {wanted} were stored")
    return wanted / seconds


@contextmanager
def listening(folder: Path, processes: int, database: str | None) -> Iterator[Running]:
    """A node that only takes instances."""
    sections: dict[str, dict[str, Any]] = {
        "listener": {"port": free_port(), "reserve_mb": 16, "processes": processes},
        "log": {"level": "error"},
    }
    if database:
        sections["storage"] = {"database": database}
    with running(folder, roles=["listen"], **sections) as node:
        yield node


@contextmanager
def stock(folder: Path) -> Iterator[int]:
    """pynetdicom as its documentation has it, in a process of its own; the value is its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.stock", str(port), str(folder)]
    server = Server(command, folder / "stock.log")
    try:
        server.wait_for(lambda: answers_on(port))
        yield port
    finally:
        server.stop()


@dataclass(frozen=True)
class Receiver:
    """Somebody who takes instances; ``forget`` frees what a run has left on disk."""

    name: str
    port: int
    title: str
    forget: Callable[[], None] = lambda: None


def empty(folder: Path) -> None:
    """Remove the files in a folder."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def memory(node: Running) -> int:
    """Bytes that the listener's processes hold for themselves."""
    return sum(process.memory_full_info().uss for process in node.processes("listen"))


def measure(
    folder: Path, instances: int, repeat: int, processes: int, database: str | None
) -> tuple[list[list[object]], str]:
    """A row for each number of associations, medians and the node's ratio to each; the memory."""
    os.environ["TCP_NODELAY"] = "1"  # DCMTK, and so Orthanc, reads it at its start
    files = Files(folder)
    rows: list[list[object]] = []
    held: list[int] = []
    with ExitStack() as stack:
        node = stack.enter_context(listening(folder / "node", processes, database))
        (folder / "stock").mkdir()
        scp, archive = stack.enter_context(storescp(folder)), stack.enter_context(orthanc(folder))
        python = stack.enter_context(stock(folder / "stock"))
        others = [
            Receiver("storescp", scp.port, scp.ae_title, lambda: empty(scp.folder)),
            Receiver("Orthanc", archive.port, "ORTHANC"),
            Receiver("pynetdicom", python, "STOCK", lambda: empty(folder / "stock")),
        ]
        for associations in ASSOCIATIONS:
            ours: list[float] = []
            theirs: dict[str, list[float]] = {other.name: [] for other in others}
            for _ in range(repeat):
                each = max(instances // associations, 1)
                batches = [files.draw(each) for _ in range(associations)]
                for other in others:
                    theirs[other.name].append(rate(other.port, other.title, batches))
                    other.forget()
                before = len(node.rows(Instance))
                ours.append(rate(node.port, "DICOMNODE", batches))
                assert len(node.rows(Instance)) - before == each * associations
                held.append(memory(node))
                for batch in batches:
                    shutil.rmtree(batch[0].parent)
            cells = []
            for other in others:
                ratio = statistics.median(ours) / statistics.median(theirs[other.name])
                cells.append(f"{spread(theirs[other.name])}: {ratio:.2f}")
            rows.append([associations, spread(ours), *cells])
    return rows, f"{held[0] / 2**20:.0f} MiB after the first run, {held[-1] / 2**20:.0f} at the end"


def spread(rates: Sequence[float]) -> str:
    """The median with the range."""
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, default=300, help="of each run")
    parser.add_argument("--repeat", type=int, default=3, help="runs by turns; the median counts")
    parser.add_argument("--processes", type=int, default=1, help="of the listener")
    parser.add_argument("--database", help="URL of an empty one; SQLite beside the files if none")
    chosen = parser.parse_args(arguments)
    told = machine()
    with tempfile.TemporaryDirectory(prefix="ingest") as folder:
        rows, held = measure(
            Path(folder), chosen.instances, chosen.repeat, chosen.processes, chosen.database
        )
    print(f"{told}\n")
    print(
        f"CT {SIDE} x {SIDE} x 16 bit, {chosen.instances} instances a run, median (range) of "
        f"{chosen.repeat}, {chosen.processes} listener process(es), "
        f"{(chosen.database or 'sqlite').partition(':')[0]}; instances a second, and how many "
        "times as fast the node is\n"
    )
    head = [
        "associations",
        "node, durable",
        "storescp, not durable",
        "Orthanc, durable",
        "pynetdicom, not durable",
    ]
    print(table(head, rows))
    print(f"\nmemory of the listener: {held}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
