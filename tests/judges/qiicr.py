"""Asks dcmqi: ``segimage2itkimage`` makes ITK images of segmentations, ``tid1500reader`` reads
reports.

Both are lenient, so their output is compared with the prediction: voxels where ITK's grid puts
them, and each number with its unit, its finding and its tracking UID.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless

from inference.types import Code, Segment
from tests.attributes.segmentations import place
from tests.judges.types import NotApplicable, Origin, Verdict, kind_of, parse
from tests.servers import lacking
from tests.tid1500 import children, evaluations, groups

NOT_ITS = NotApplicable("reads segmentations and structured reports only")
PACKED = NotApplicable("segimage2itkimage decompresses no JPEG 2000")
UNEVEN = NotApplicable(
    "segimage2itkimage puts slices on an even grid: uneven or coinciding ones share a place"
)
SHEARED = NotApplicable(
    "an ITK image has right angles: of a tilted gantry segimage2itkimage keeps the voxels, which "
    "agree, and the height of each slice, but not where it lies in its plane"
)
NO_GROUPS = NotApplicable("tid1500reader reads measurement groups, and this report has none")

FLAT = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Position and orientation that stand for none."""

NEAR = 1e-3
"""mm, and parts of a slice."""

SIDES = {
    ("39607008", "24028007"): "3341006",
    ("39607008", "7771000"): "44029006",
    ("64033007", "24028007"): "9846003",
    ("64033007", "7771000"): "18639004",
}
"""SNOMED CT's concepts that hold structure and side in one: lungs and kidneys."""


def dcmqi(data: bytes, origin: Origin) -> Verdict:
    """Both tools find in the object what was put in."""
    dataset = parse(data)
    kind = kind_of(dataset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "object.dcm")
        path.write_bytes(data)
        if kind == "seg":
            return _segmentation(path, dataset, origin)
        if kind == "sr":
            return _report(path, dataset, origin)
    return NOT_ITS


def run(program: str, *arguments: str | Path) -> tuple[int, str]:
    """How it ended and what it said; skips where it is not installed."""
    beside = Path(sys.executable).with_name(program)
    tool = str(beside) if beside.exists() else shutil.which(program)
    if tool is None:
        lacking(f"{program} is not installed (pip install dcmqi)")
    done = subprocess.run(
        [tool, *map(str, arguments)], capture_output=True, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout + done.stderr


# -- Segmentations ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """An ITK image: values (slices, rows, columns), corner and axes in LPS mm."""

    values: NDArray[Any]
    origin: NDArray[np.float64]
    axes: NDArray[np.float64]
    """(columns, rows, slices): the step from one voxel to the next."""


def _segmentation(path: Path, dataset: Dataset, origin: Origin) -> Verdict:
    folder = path.parent
    code, said = run(
        "segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"
    )
    packed = dataset.file_meta.TransferSyntaxUID == JPEG2000Lossless
    if code:
        refused = packed and "cannot decompress" in said.casefold()
        return PACKED if refused else [f"segimage2itkimage ended with {code}: {said[-300:]}"]
    places = [place(origin.source, ref) for ref in origin.source.frames]
    if any(position is None for position, _, _ in places):
        places = [(*FLAT, None) for _ in places]
    positions = np.array([position for position, _, _ in places], dtype=float)
    orientation = np.array(places[0][1], dtype=float)
    heights = positions @ np.cross(orientation[:3], orientation[3:])
    steps = np.diff(np.sort(heights))
    if len(steps) and (np.ptp(steps) > NEAR or steps.min() < NEAR):
        return UNEVEN
    found = list(_voxels(folder, dataset, origin, positions, orientation))
    if not found and _sheared(positions, orientation):
        return SHEARED
    return found


def _voxels(
    folder: Path,
    dataset: Dataset,
    origin: Origin,
    positions: NDArray[np.float64],
    orientation: NDArray[np.float64],
) -> Iterator[str]:
    """Holds the images that it wrote against the prediction."""
    told = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    # By Tracking UID: of labels it knows UTF-8 only.
    images: dict[str, tuple[Image, int]] = {}
    for number, segments in enumerate(told, start=1):
        image = nrrd(folder / f"{number}.nrrd")
        for segment in segments:
            images[segment["TrackingUniqueIdentifier"]] = image, int(segment["labelID"])
    uids = {str(item.SegmentLabel): str(item.TrackingUID) for item in dataset.SegmentSequence}
    wanted = [uids.get(segment.label, "") for segment in origin.found]
    if sorted(images) != sorted(wanted):
        yield f"segimage2itkimage: segments {sorted(images)} instead of {sorted(wanted)}"
        return
    for segment in origin.found:
        image, value = images[uids[segment.label]]
        if dataset.SegmentationType == "FRACTIONAL":  # it keeps the fractions
            assert segment.probability is not None
            values = np.rint(segment.probability * dataset.MaximumFractionalValue)
        else:
            values = segment.mask * value
            image = replace(image, values=np.where(image.values == value, value, 0))
        yield from _compare(segment.label, image, values, positions, orientation)


def _compare(
    label: str,
    image: Image,
    wanted: NDArray[Any],
    positions: NDArray[np.float64],
    orientation: NDArray[np.float64],
) -> Iterator[str]:
    """Each slice is at its height, on its grid, voxel for voxel."""
    normal = np.cross(orientation[:3], orientation[3:])
    for axis, direction in zip(image.axes[:2], (orientation[:3], orientation[3:]), strict=True):
        if not np.allclose(axis / np.linalg.norm(axis), direction, atol=NEAR):
            yield f"segimage2itkimage: {label}: axis {axis} instead of {direction}"
    step = float(np.linalg.norm(image.axes[2])) or 1.0
    for frame, position in enumerate(positions):
        away = position - image.origin
        height = float(away @ normal) / step
        k = round(height)
        if abs(height - k) > NEAR:
            yield f"segimage2itkimage: {label}: frame {frame} lies between slices ({height:g})"
            continue
        got = image.values[k] if 0 <= k < len(image.values) else 0
        differ = int(np.count_nonzero(got != wanted[frame]))
        if differ:
            yield f"segimage2itkimage: {label}: frame {frame}: {differ} voxels differ"
        aside = away - (away @ normal) * normal
        if not _sheared(positions, orientation) and np.linalg.norm(aside) > NEAR:
            yield f"segimage2itkimage: {label}: frame {frame} lies {aside} mm aside"


def _sheared(positions: NDArray[np.float64], orientation: NDArray[np.float64]) -> bool:
    """Whether slices are shifted against each other, as with a tilted gantry."""
    normal = np.cross(orientation[:3], orientation[3:])
    away = positions - positions[0]
    aside = away - np.outer(away @ normal, normal)
    return bool(np.linalg.norm(aside, axis=1).max() > NEAR)


def nrrd(path: Path) -> Image:
    """The few of NRRD's many forms that dcmqi writes."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    told = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    assert told["space"] == "left-posterior-superior", told
    types = {"short": "<i2", "unsigned short": "<u2", "unsigned char": "u1"}
    dtype = types[told["type"]]
    raw = gzip.decompress(body) if told["encoding"] == "gzip" else body
    columns, rows, slices = map(int, told["sizes"].split())
    return Image(
        np.frombuffer(raw, dtype).reshape(slices, rows, columns),
        _vector(told["space origin"]),
        np.array([_vector(word) for word in told["space directions"].split()]),
    )


def _vector(text: str) -> NDArray[np.float64]:
    return np.array([float(word) for word in text.strip("()").split(",")])


# -- Reports ------------------------------------------------------------------------------------

Told = tuple[str, str, str, float]
"""Finding, quantity, unit, value to six digits."""


def _report(path: Path, dataset: Dataset, origin: Origin) -> Verdict:
    if not groups(dataset):
        return NO_GROUPS
    out = path.with_suffix(".json")
    code, said = run("tid1500reader", "--inputDICOM", path, "--outputMetadata", out)
    if code or not out.exists():
        return [f"tid1500reader ended with {code}: {said[-300:]}"]
    read = json.loads(out.read_text())
    found = []
    if (read.get("CompletionFlag"), read.get("VerificationFlag")) != ("COMPLETE", "UNVERIFIED"):
        found.append(f"tid1500reader: {read.get('CompletionFlag')} {read.get('VerificationFlag')}")
    told = read.get("Measurements", [])
    uids = [
        item.UID for group in groups(dataset) for item in children(group, "UIDREF", "112040 DCM")
    ]
    if sorted(group.get("TrackingUniqueIdentifier") for group in told) != sorted(uids):
        found.append(f"tid1500reader: {len(told)} groups, {len(uids)} written")

    numbers: Counter[Told] = Counter()
    tracked: dict[Told, str] = {}
    for group in told:
        for item in group.get("measurementItems", []):
            one = (
                group.get("Finding", {}).get("CodeValue", ""),
                item["quantity"]["CodeValue"],
                item["units"]["CodeValue"],
                float(item["value"]),
            )
            numbers[one] += 1
            tracked[one] = group["TrackingUniqueIdentifier"]
    elsewhere = {_code(item) for item in evaluations(dataset)}
    for wanted, uid in _wanted(origin, elsewhere):
        if numbers[wanted] != 1:
            found.append(f"tid1500reader: {wanted} stands {numbers[wanted]} times")
        elif uid and tracked[wanted] != uid:
            found.append(f"tid1500reader: {wanted} is tracked as {tracked[wanted]}, not {uid}")
    return found + list(_verdicts(told, origin, elsewhere))


def _code(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _wanted(origin: Origin, elsewhere: set[str]) -> Iterator[tuple[Told, str | None]]:
    """Every number of the prediction, with its tracking UID where the segmentation tells it.

    Args:
        origin: of the report.
        elsewhere: findings below Qualitative Evaluations, which it does not read.
    """
    prediction = origin.prediction
    if prediction.not_analysed is not None:
        return
    segments = {
        str(item.SegmentLabel): str(item.TrackingUID)
        for other in origin.instances.values()
        if kind_of(other) == "seg"
        for item in other.SegmentSequence
    }
    for segment in origin.found:
        for one in segment.measurements:
            # A length has a group of its own, and a tracking UID of its own.
            uid = segments.get(segment.label) if one.line is None else None
            yield _told(finding_of(segment), one.name, one.unit.value, one.value), uid
    for finding in prediction.findings:
        if finding.code.value in elsewhere:
            continue
        for name, value in (
            (Code("122157", "DCM", "Probability"), finding.probability),
            (Code("246112005", "SCT", "Severity"), finding.score),
        ):
            if value is not None:
                yield _told(finding.code.value, name, "1", value), None


def _told(finding: str, name: Code, unit: str, value: float) -> Told:
    return finding, name.value, unit, float(f"{value:.6g}")


def finding_of(segment: Segment) -> str:
    """The code by which a reader knows a segment."""
    side = segment.laterality.value if segment.laterality else ""
    return SIDES.get((segment.type.value, side), segment.type.value)


def _verdicts(told: list[dict[str, Any]], origin: Origin, elsewhere: set[str]) -> Iterator[str]:
    """What is present and what is absent, as the reader sees it."""
    if origin.prediction.not_analysed is not None:
        return
    said = {
        (group.get("Finding", {}).get("CodeValue"), _value(evaluation, "conceptCode"),
         _value(evaluation, "conceptValue"))
        for group in told
        for evaluation in group.get("qualitativeEvaluations", [])
    }  # fmt: skip
    wanted = [
        (finding.code.value, finding.code.value, "52101004" if finding.present else "2667000")
        for finding in origin.prediction.findings
    ]
    wanted += [
        (finding.code.value, "246112005", finding.severity.value)
        for finding in origin.prediction.findings
        if finding.severity
    ]
    wanted += [
        (finding_of(segment), finding_of(segment), "2667000")
        for segment in origin.prediction.segments
        if segment.empty
    ]
    for one in wanted:
        if one not in said and one[0] not in elsewhere:
            yield f"tid1500reader: no evaluation {one}"


def _value(evaluation: dict[str, Any], key: str) -> str | None:
    value = evaluation.get(key)
    return value.get("CodeValue") if isinstance(value, dict) else value
