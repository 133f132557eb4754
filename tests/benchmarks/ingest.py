"""How many CT instances a second the listener makes durable, beside DCMTK's storescp.

    python -m tests.benchmarks.ingest [--instances 300] [--repeat 3] [--processes 1]

Both get the same files from DCMTK's storescu with Nagle's algorithm off on both sides, in one
run, by turns. storescp (--fork) answers before its file is on disk; the node answers after file,
directory and row are. The sender shares the machine with the receiver.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from dicom_node.store.tables import Instance
from tests import dicoms
from tests.benchmarks.machine import machine, table
from tests.dicoms import uid
from tests.node import Running, in_parallel, running, seconds_since, statuses, store
from tests.servers import free_port, storescp

ASSOCIATIONS = (1, 4)
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
def listening(folder: Path, processes: int) -> Iterator[Running]:
    """A node that only takes instances."""
    listener = {"port": free_port(), "reserve_mb": 16, "processes": processes}
    with running(folder, roles=["listen"], listener=listener, log={"level": "error"}) as node:
        yield node


def measure(folder: Path, instances: int, repeat: int, processes: int) -> list[list[object]]:
    """A row for each number of associations: medians of both and their ratio."""
    os.environ["TCP_NODELAY"] = "1"  # storescp reads it at its start
    files = Files(folder)
    rows = []
    with ExitStack() as stack:
        node = stack.enter_context(listening(folder / "node", processes))
        other = stack.enter_context(storescp(folder))
        for associations in ASSOCIATIONS:
            ours, theirs = [], []
            for _ in range(repeat):
                batches = [files.draw(instances // associations) for _ in range(associations)]
                theirs.append(rate(other.port, other.ae_title, batches))
                before = len(node.rows(Instance))
                ours.append(rate(node.port, "DICOMNODE", batches))
                assert len(node.rows(Instance)) - before == sum(map(len, batches))
                for batch in batches:
                    shutil.rmtree(batch[0].parent)
                for path in other.files():
                    path.unlink()
            ratio = statistics.median(ours) / statistics.median(theirs)
            rows.append([associations, spread(ours), spread(theirs), f"{ratio:.2f}"])
    return rows


def spread(rates: Sequence[float]) -> str:
    """The median with the range."""
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--instances", type=int, default=300, help="of each run")
    parser.add_argument("--repeat", type=int, default=3, help="runs by turns; the median counts")
    parser.add_argument("--processes", type=int, default=1, help="of the listener")
    chosen = parser.parse_args(arguments)
    told = machine()
    with tempfile.TemporaryDirectory(prefix="ingest") as folder:
        rows = measure(Path(folder), chosen.instances, chosen.repeat, chosen.processes)
    print(f"{told}\n")
    print(
        f"CT {SIDE} x {SIDE} x 16 bit, {chosen.instances} instances a run, median (range) of "
        f"{chosen.repeat}, {chosen.processes} listener process(es), SQLite; instances a second\n"
    )
    head = ["associations", "node, durable", "storescp, TCP_NODELAY, not durable", "ratio"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
