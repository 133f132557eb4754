"""Measures how long a segmentation takes to be built and written.

``python -m tests.benchmarks.segmentation`` draws CT series of 512 x 512 with two segments, builds
the objects that a PACS gets and makes their files durable, and prints the medians. It shows that
time grows with the frames and no faster: the last column is time per frame against the largest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dicom_node.domain.profile import Compression, Encoding, Form, SegForm, SrForm
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import Source
from dicom_node.store.files import Folder
from inference.types import Prediction
from tests import dicoms
from tests.benchmarks.machine import machine, table
from tests.results import CONTEXT, HEART, LUNG, MODEL, segment, source_of

FORMS: dict[str, tuple[Form, ...]] = {
    "BINARY": (SegForm(),),
    "BINARY, with its report": (SegForm(), SrForm()),
    "LABELMAP": (SegForm(Encoding.LABELMAP),),
    "LABELMAP in RLE": (SegForm(Encoding.LABELMAP, Compression.RLE),),
    "BINARY in JPEG 2000": (SegForm(compression=Compression.JPEG2000),),
}


def two_structures(frames: int) -> tuple[Source, Prediction]:
    """Two ellipses on every slice, a large one and a small one beside it."""
    source = source_of(dicoms.ct_series(frames, shape=(512, 512)))
    rows, columns = np.mgrid[:512, :512]
    large = np.hypot((rows - 256) / 150, (columns - 200) / 120) < 1
    small = np.hypot((rows - 256) / 60, (columns - 420) / 50) < 1
    masks = [np.repeat(shape[None], frames, axis=0) for shape in (large, small)]
    first, second = (
        segment(mask, label, type=kind)
        for mask, label, kind in zip(masks, ("Lung", "Heart"), (LUNG, HEART), strict=True)
    )
    return source, Prediction((first, second))


def seconds(action: Callable[[], object], repeat: int) -> float:
    """The median of several runs, after one."""
    times = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def measure(folder: Path, counts: Sequence[int], repeat: int) -> list[list[object]]:
    """A row for each form and count of frames."""
    files = Folder(folder / "results", "benchmark")
    rows: list[list[object]] = []
    for name, forms in FORMS.items():
        taken: dict[int, float] = {}
        size = 0
        for count in counts:
            source, prediction = two_structures(count)

            def write() -> int:
                made = build_results(prediction, source, MODEL, CONTEXT, forms)  # noqa: B023 - called at once
                written = [files.write(".dcm", b"", encode(one.dataset)) for one in made]
                for file in written:
                    files.remove(file.name)
                return sum(file.size for file in written)

            size = write()
            taken[count] = seconds(write, repeat)
        each = {count: taken[count] / count for count in counts}
        for count in counts:
            told = f"{taken[count]:.3f}", f"{each[count] / each[max(counts)]:.2f}"
            rows.append(
                [name, count, *told, f"{size / 2**20:.1f} MiB" if count == max(counts) else ""]
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[75, 150, 300])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each, after one")
    chosen = parser.parse_args(arguments)
    told = machine()
    with tempfile.TemporaryDirectory(prefix="seg") as folder:
        rows = measure(Path(folder), sorted(chosen.frames), chosen.repeat)
    print(f"{told}\n")
    print(f"512 x 512, two segments on every slice; median of {chosen.repeat}, built and durable\n")
    head = ["object", "frames", "seconds", "time per frame against the longest series", "size"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
