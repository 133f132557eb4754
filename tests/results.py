"""Makes predictions with their sources for tests of result objects, and asks the judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import BuildContext, ModelIdentity, Source
from inference.types import Code, FrameRef, Prediction, Segment
from tests.data import shared
from tests.judges.dcmtk import run
from tests.judges.dicom3tools import errors  # noqa: F401 - for tests that ask this judge only
from tests.judges.types import parse  # noqa: F401 - as any reader would

STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
LUNG = Code("39607008", "SCT", "Lung")
HEART = Code("80891009", "SCT", "Heart")
RIGHT, LEFT = Code("24028007", "SCT", "Right"), Code("7771000", "SCT", "Left")
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
MODEL = ModelIdentity(
    name="lung",
    version="1.2.0",
    title="Lungs on radiographs",
    manufacturer="dicom-node",
    bundle_digest=hashlib.sha256(b"bundle").hexdigest(),
    parameters={"right lung": "0.5", "left lung": "0.4"},
)
CONTEXT = BuildContext(node_salt="salt", job_created_at=datetime(2026, 3, 1, 22, 30, 5, tzinfo=UTC))


def source_of(datasets: Sequence[Dataset], *, read: bool = True) -> Source:
    """The source of instances, with frames in the order given; ``read=False`` for no frames."""
    frames = [
        FrameRef(str(ds.SOPInstanceUID), str(ds.SOPClassUID), frame + 1)
        for ds in datasets
        for frame in range(int(ds.get("NumberOfFrames") or 1))
    ]
    digests = [hashlib.sha256(str(ds.SOPInstanceUID).encode()).hexdigest() for ds in datasets]
    return Source(tuple(datasets), tuple(digests), tuple(frames) if read else ())


def grid(source: Source) -> tuple[int, int, int]:
    """Shape of a mask on the source."""
    return len(source.frames), int(source.first.Rows), int(source.first.Columns)


def blob(source: Source, seed: int = 0, frames: slice = slice(None)) -> NDArray[np.bool_]:
    """An ellipse with a ragged edge and a hole, another in each frame."""
    rng = np.random.default_rng(seed)
    n, rows, columns = grid(source)
    r, c = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    mask = np.zeros((n, rows, columns), dtype=bool)
    for i in range(*frames.indices(n)):
        centre = rng.uniform(-0.3, 0.3, 2)
        distance = np.hypot(r - centre[0], c - centre[1]) + rng.normal(0, 0.01, (rows, columns))
        mask[i] = (distance < 0.5) & (distance > 0.1)
    return mask


def segment(mask: NDArray[np.bool_], label: str = "Heart", **fields: Any) -> Segment:
    """A segment, the heart by default."""
    given = {"category": STRUCTURE, "type": HEART, "colour": (230, 60, 40)} | fields
    return Segment(label=label, mask=mask, **given)


def two_segments(source: Source) -> Prediction:
    """Two that overlap, one of them missing in the first frame if there are several."""
    several = len(source.frames) > 1
    return Prediction(
        segments=(
            segment(blob(source, 1), "Right lung", type=LUNG, laterality=RIGHT),
            segment(blob(source, 2, slice(1 if several else 0, None))),
        )
    )


def built(
    prediction: Prediction,
    source: Source,
    model: ModelIdentity = MODEL,
    context: BuildContext = CONTEXT,
) -> dict[str, bytes]:
    """Part 10 bytes by kind."""
    return {
        made.kind: encode(made.dataset)
        for made in build_results(prediction, source, model, context)
    }


def files(*parts: str) -> list[Dataset]:
    """The instances of a file or folder of the shared DICOM data; skips where absent."""
    path = shared("dicom", *parts)
    paths = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
    return [pydicom.dcmread(p) for p in paths]


def dsrdump(data: bytes) -> str:
    """The report as DCMTK reads it; fails on its errors and warnings, skips where it is absent."""
    dumped, told = run("dsrdump", data)
    assert told == []
    return dumped.decode(errors="replace")
