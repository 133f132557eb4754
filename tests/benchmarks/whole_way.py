"""Seconds from the end of a modality's association to the report at the PACS, on a warm node.

    python -m tests.benchmarks.whole_way [--repeat 5] [--slices 100]

A chest radiograph and a chest CT, drawn anew for each repetition, go through the shipped models.
Both ends are rows of the node, by one clock: the end of the association, and the PACS' answer to
the report. A radiograph is complete when its association closes; the CT's quiet period is set to
nought, since it is a choice of the hospital and no work of the node.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_node.demo import patients
from dicom_node.services.models import SHIPPED
from dicom_node.store.tables import Association, Delivery, Instance
from tests.benchmarks.machine import machine, table
from tests.dicoms import save
from tests.node import Running, dimse, rule, running
from tests.servers import storescp


@dataclass(frozen=True)
class Way:
    """One study's way, in seconds.

    Attributes:
        total: from the end of the association to the report at the PACS.
        forward: of it, in the model.
        run: of it, from claim to stored results.
    """

    total: float
    forward: float
    run: float


def way(node: Running, datasets: Sequence[Dataset], folder: Path) -> Way:
    """Send a study and take its times."""
    files = [save(ds, folder / f"{n}.dcm") for n, ds in enumerate(datasets)]
    if set(node.send(files)) != {0}:
        raise RuntimeError("not everything was stored")
    study = str(datasets[0].StudyInstanceUID)
    node.settled(study)
    (job,) = node.jobs(study)
    (report,) = [result for result in node.results(study) if result.kind == "sr"]
    (delivery,) = node.rows(Delivery, Delivery.result_id == report.id)
    (instance, *_) = node.rows(Instance, Instance.sop_instance_uid == datasets[0].SOPInstanceUID)
    (association,) = node.rows(Association, Association.id == instance.association_id)
    if not (association.closed_at and delivery.sent_at and job.started_at and job.finished_at):
        raise RuntimeError(f"{study} did not arrive: {delivery.last_answer} {job.error}")
    return Way(
        total=(delivery.sent_at - association.closed_at).total_seconds(),
        forward=float((job.summary or {})["timings"]["forward"]),
        run=(job.finished_at - job.started_at).total_seconds(),
    )


def measure(folder: Path, repeat: int, slices: int) -> list[list[str]]:
    """A row for each kind of study; the first of each kind only warms the node."""
    drawing = patients.Drawing(slices=slices)
    kinds: dict[str, Callable[[patients.Drawing, datetime], list[Dataset]]] = {
        "radiograph, 1760 x 1760": lambda d, at: [patients.radiograph(d, at)],
        f"CT, {slices} x 512 x 512": lambda d, at: list(patients.ct(d, at)),
    }
    rows = []
    with (
        storescp(folder) as pacs,
        running(
            folder / "node",
            models=[SHIPPED / "cxr-lungs", SHIPPED / "ct-body"],
            destinations={"pacs": dimse(pacs)},
            rules=[
                rule("chest", ["cxr-lungs"], ["pacs"], when={"modality": "DX"}),
                rule("any CT", ["ct-body"], ["pacs"], when={"modality": "CT"}),
            ],
            completion={"quiet": [], "default_quiet": 0},
        ) as node,
    ):
        for name, draw in kinds.items():
            ways = []
            for number in range(repeat + 1):
                drawn = draw(replace(drawing, seed=number), datetime.now(UTC))
                ways.append(way(node, drawn, folder / name / str(number)))
            rows.append([name, *_columns(ways[1:])])
    return rows


def _columns(ways: Sequence[Way]) -> list[str]:
    def spread(values: Sequence[float]) -> str:
        return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"

    return [
        spread([w.total for w in ways]),
        spread([w.forward for w in ways]),
        spread([w.total - w.forward for w in ways]),
        spread([w.run - w.forward for w in ways]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="studies of each kind, after one")
    parser.add_argument("--slices", type=int, default=100, help="of the CT")
    chosen = parser.parse_args(arguments)
    told = machine()
    with tempfile.TemporaryDirectory(prefix="way") as folder:
        rows = measure(Path(folder), chosen.repeat, chosen.slices)
    print(f"{told}\n")
    print(f"seconds, min / median / max of {chosen.repeat}; SQLite, embedded Redis, storescp\n")
    head = [
        "study",
        "association's end to report at the PACS",
        "model's forward passes",
        "all but the forward passes",
        "of that: reading, preparing, building, storing",
    ]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
