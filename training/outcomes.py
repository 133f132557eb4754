"""Owns what a model said of each sample beside what is true, and the table that keeps it.

Refuses to know what is made of it (``training.metrics``) or how thresholds were found. All comes
through ``inference``: masks after the service's own cleaning, boxes on the sample's own grid.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from inference import familiarity, findings, suitability
from inference.errors import ReadingError, UnsuitableInput
from inference.manifest import Manifest
from inference.preprocessing import geometry
from inference.runner import Runner
from inference.types import ImageStack, Prediction
from training.errors import DataError
from training.names import channels, steps
from training.samples import Sample

Floats = NDArray[np.float64]
Report = Callable[[str, int, int], None]
"""Told: what is looked at, how many are done, of how many."""

UNION = "all labels as one"
TINY = 1e-7  # a probability of 0 or 1 has no logit
BOXES = 100  # of a sample, the best so many; COCO's own limit
COLUMNS = ("set", "name", "group", "licence", "fold", "generated", "attributes", "unlike")
TOLD = ("truth", "output", "verdict", "uncalibrated")


@dataclass(frozen=True)
class Outcome:
    """One sample: what is true and what was said.

    Attributes:
        set: title of the part or set that it was measured in.
        name: of the sample.
        group: that it belongs to.
        licence: of the sample.
        fold: in which it was held out; None outside cross-validation.
        generated: drawn by us, no patient.
        attributes: what subgroups are made of.
        truth: classification: class -> 0 or 1; grading: ``grade``, counted from 0; detection:
            ``boxes``, lists (kind, frame, left, top, right, bottom); segmentation: nothing, its
            output is held against the truth already.
        output: classification: class -> probability; grading: ``>= k`` -> P(grade >= k);
            detection: ``boxes`` as the true ones with their score behind; segmentation:
            ``Dice LABEL`` and ``HD95 mm LABEL`` or, without a spacing that can be trusted,
            ``HD95 px LABEL``, None where one of the two masks is empty, absent where both are.
        verdict: at the thresholds: class -> 0 or 1; ``grade``; ``boxes``, 1 for each that counts.
        uncalibrated: as ``output``, before the temperature.
        unlike: how little it resembles the training data; None where nobody asked.
        refused: why the service would not analyse it; "" where it does.
    """

    set: str
    name: str
    group: str
    licence: str = ""
    fold: int | None = None
    generated: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)
    truth: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    uncalibrated: Mapping[str, Any] = field(default_factory=dict)
    unlike: float | None = None
    refused: str = ""


# --- from a network's raw output ---------------------------------------------------------------


def pool(frames: NDArray[Any], how: str) -> Floats:
    """``(frames, n)`` to ``(n,)``, as the service lets the frames of a stack speak together."""
    return np.asarray(frames.max(0) if how == "max" else frames.mean(0), float)


def tempered(frames: NDArray[Any], temperature: float, exclusive: bool) -> Floats:
    """Probabilities ``(frames, n)`` whose logits were divided by ``temperature``."""
    p = np.clip(np.asarray(frames, float), TINY, 1 - TINY)
    if exclusive:
        powered = p ** (1 / temperature)
        return np.asarray(powered / powered.sum(1, keepdims=True))
    return np.asarray(1 / (1 + ((1 - p) / p) ** (1 / temperature)))


def judged(
    raw: Mapping[str, NDArray[Any]], stack: ImageStack, manifest: Manifest
) -> dict[str, Any]:
    """What ``Runner.raw`` gave for one stack as an outcome's output, verdict, uncalibrated."""
    if manifest.task == "detection":
        return _boxes(raw, stack, manifest)
    exclusive = manifest.activation == "softmax" and manifest.task == "classification"
    said = pool(raw["probability"], manifest.pool)
    before = pool(tempered(raw["probability"], 1 / manifest.temperature, exclusive), manifest.pool)
    called = steps(manifest) or channels(manifest)
    return {
        "output": _named(called, said),
        "verdict": verdict(said, manifest),
        "uncalibrated": _named(called, before),
    }


def verdict(said: Floats, manifest: Manifest) -> dict[str, int]:
    """What a probability ``(n,)`` comes to at the manifest's thresholds."""
    if manifest.grading:
        return {"grade": findings.grade(said, manifest.grading.threshold)}
    called = channels(manifest)
    if manifest.activation == "softmax":
        return {name: int(i == np.argmax(said)) for i, name in enumerate(called)}
    limits = {finding.channel: finding.threshold for finding in manifest.findings}
    return {name: int(said[i] >= limits.get(i, 0.5)) for i, name in enumerate(called)}


def _named(names: Sequence[str], values: Floats) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(names, values, strict=True)}


def _boxes(
    raw: Mapping[str, NDArray[Any]], stack: ImageStack, manifest: Manifest
) -> dict[str, Any]:
    """The best boxes of each kind, clipped, so many as the manifest lets through."""
    where = geometry(stack, manifest.preprocessing)
    _, rows, columns = stack.shape
    found: list[list[Any]] = []
    for finding in manifest.findings:
        frames, places = np.nonzero((raw["kinds"] == finding.channel) & (raw["scores"] > 0))
        scores = raw["scores"][frames, places]
        edges = where.boxes_back(raw["boxes"][frames, places])
        edges = edges.clip(0, [columns, rows, columns, rows])
        there = np.all(edges[:, 2:] > edges[:, :2], axis=1)
        best = [i for i in np.argsort(-scores, kind="stable") if there[i]][: finding.max_boxes]
        found += [
            [finding.channel, int(frames[i]), *_tenths(edges[i]), round(float(scores[i]), 6)]
            for i in best
        ]
    found = sorted(found, key=lambda box: -box[-1])[:BOXES]
    limits = {finding.channel: finding.threshold for finding in manifest.findings}
    return {
        "output": {"boxes": found},
        "verdict": {"boxes": [int(box[-1] >= limits[box[0]]) for box in found]},
    }


def _tenths(edges: NDArray[Any]) -> list[float]:
    return [round(float(edge), 1) for edge in edges]


# --- against the truth -------------------------------------------------------------------------


def truth(sample: Sample, manifest: Manifest) -> dict[str, Any]:
    """A sample's truth under the names of its outcome.

    Raises:
        DataError: the sample lacks the truth that the task asks for.
    """
    known = sample.truth
    if manifest.task == "classification" and known.classes is not None:
        return {n: int(v) for n, v in zip(channels(manifest), known.classes, strict=True)}
    if manifest.task == "grading" and known.grade is not None:
        return {"grade": known.grade}
    if manifest.task == "detection" and known.boxes is not None:
        edges = [(b, np.array([b.left, b.top, b.right, b.bottom])) for b in known.boxes]
        return {"boxes": [[b.kind, b.frame, *_tenths(at)] for b, at in edges]}
    if manifest.task == "segmentation" and known.masks is not None:
        return {}
    raise DataError(f"{sample.name}: no truth for {manifest.task}: leave it out or label it")


def overlaps(
    prediction: Prediction, true: NDArray[np.bool_], stack: ImageStack, manifest: Manifest
) -> dict[str, float | None]:
    """Dice and Hausdorff distance of each label; ``true`` is (classes, frames, rows, columns)."""
    unit = "HD95 mm" if stack.spacing else "HD95 px"
    found: dict[str, float | None] = {}
    masks = [segment.mask for segment in prediction.segments]
    for label, mask in zip(manifest.labels, masks, strict=True):
        found[f"Dice {label.label}"] = round(dice(mask, true[label.channel]), 5)
        if mask.any() or true[label.channel].any():  # a distance of nothing would flatter the mean
            distance = hausdorff95(mask, true[label.channel], stack)
            found[f"{unit} {label.label}"] = None if distance is None else round(distance, 3)
    if len(masks) > 1 and len({label.type for label in manifest.labels}) == 1:  # such as two lungs
        whole = np.any([true[label.channel] for label in manifest.labels], axis=0)
        found[f"Dice {UNION}"] = round(dice(np.any(masks, axis=0), whole), 5)
    return found


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks (Dice 1945), 0..1; 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def hausdorff95(
    one: NDArray[np.bool_], other: NDArray[np.bool_], stack: ImageStack
) -> float | None:
    """95th percentile of the distances from surface to surface, the larger of both directions.

    In space for slices with positions and spacing; otherwise frame by frame, all frames' distances
    together. Millimetres where the stack gives a spacing, else pixels.

    Args:
        one: ``(frames, rows, columns)``.
        other: the same shape.
        stack: gives spacing and positions.

    Returns:
        0 where both are empty; None where only one is (in space, or in any frame).
    """
    spacing: tuple[float, ...] = stack.spacing or (1.0, 1.0)
    if stack.positions is not None and stack.spacing and len(stack.positions) > 1:
        step = np.linalg.norm(np.diff(stack.positions, axis=0), axis=1).mean()
        pairs, spacing = [(one, other)], (float(step), *spacing)
    else:
        pairs = list(zip(one, other, strict=True))
    pairs = [(a, b) for a, b in pairs if a.any() or b.any()]
    if not pairs:
        return 0.0
    if any(a.any() != b.any() for a, b in pairs):
        return None
    there = np.concatenate([_distances(a, b, spacing) for a, b in pairs])
    back = np.concatenate([_distances(b, a, spacing) for a, b in pairs])
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _distances(
    one: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, ...]
) -> Floats:
    """From each pixel of one's surface to the other's nearest."""
    box = ndimage.find_objects((one | other).astype(np.int8))[0]
    from_here, to_there = (m[box] & ~ndimage.binary_erosion(m[box]) for m in (one, other))
    return np.asarray(ndimage.distance_transform_edt(~to_there, sampling=spacing)[from_here], float)


# --- all samples of a set ----------------------------------------------------------------------


def look(
    runner: Runner,
    samples: Sequence[Sample],
    title: str,
    *,
    familiar: Mapping[str, torch.Tensor] | None = None,
    limit: float | None = None,
    fold: int | None = None,
    report: Report = lambda *_: None,
) -> list[Outcome]:
    """What the runner says of each sample, whether or not the service would refuse it.

    Args:
        runner: its manifest holds thresholds and temperature; it knows nothing familiar.
        samples: all are looked at.
        title: of their set.
        familiar: what the training data looked like; None: nobody asks.
        limit: a higher score is refused.
        fold: that they were held out in.
        report: hears how far it is.

    Raises:
        DataError: a sample cannot be read or has no truth for the task.
    """
    manifest = runner.manifest
    found: list[Outcome] = []
    for held, stacks in batches(samples, runner.batch):
        told = _told(runner, held, stacks)
        unlike = _unlike(runner, stacks, familiar)
        for sample, stack, said, score in zip(held, stacks, told, unlike, strict=True):
            found.append(
                Outcome(
                    set=title,
                    name=sample.name,
                    group=sample.group,
                    licence=sample.licence,
                    fold=fold,
                    generated=sample.generated,
                    attributes=dict(sample.attributes),
                    truth=truth(sample, manifest),
                    unlike=score,
                    refused=_refused(stack, score, limit, manifest),
                    **said,
                )
            )
        report(title, len(found), len(samples))
    return found


def batches(
    samples: Sequence[Sample], frames: int
) -> Iterator[tuple[list[Sample], list[ImageStack]]]:
    """Samples with their pictures, at least so many frames at a time: sets need not fit memory."""
    held: list[Sample] = []
    stacks: list[ImageStack] = []
    for sample in samples:
        try:
            stacks.append(sample.read())
        except ReadingError as error:
            raise DataError(f"{sample.name}: {error.reason}: mend it or leave it out") from error
        held.append(sample)
        if sum(len(stack.pixels) for stack in stacks) >= frames:
            yield held, stacks
            held, stacks = [], []
    if held:
        yield held, stacks


def _told(
    runner: Runner, held: Sequence[Sample], stacks: Sequence[ImageStack]
) -> list[dict[str, Any]]:
    manifest = runner.manifest
    if manifest.task != "segmentation":
        raws = runner.raw(stacks)
        return [judged(raw, stack, manifest) for raw, stack in zip(raws, stacks, strict=True)]
    told = []
    for sample, stack, prediction in zip(held, stacks, runner.predict(stacks), strict=True):
        if prediction.not_analysed:
            raise DataError(f"{sample.name}: {prediction.not_analysed}: leave it out")
        assert sample.truth.masks is not None  # noqa: S101  # truth() says so first
        told.append({"output": overlaps(prediction, sample.truth.masks(), stack, manifest)})
    return told


def _unlike(
    runner: Runner, stacks: Sequence[ImageStack], familiar: Mapping[str, torch.Tensor] | None
) -> list[float | None]:
    if familiar is None:
        return [None] * len(stacks)
    frames = [len(stack.pixels) for stack in stacks]
    scores = of_stacks(scored(runner.features(stacks), familiar), frames)
    return [float(f"{score:.6g}") for score in scores]


def scored(features: NDArray[np.float32], familiar: Mapping[str, torch.Tensor]) -> Floats:
    """``(frames, F)`` features to ``(frames,)`` scores."""
    return familiarity.score(torch.from_numpy(features), familiar).double().numpy()


def of_stacks(scores: Floats, frames: Sequence[int]) -> Floats:
    """Scores of frames to one of each stack, as the service does: the lower median."""
    ends = np.cumsum(frames)[:-1]
    return np.array([np.sort(part)[(len(part) - 1) // 2] for part in np.split(scores, ends)])


def _refused(
    stack: ImageStack, score: float | None, limit: float | None, manifest: Manifest
) -> str:
    try:
        suitability.check(stack, manifest)
    except UnsuitableInput as error:
        return error.reason
    if score is not None and limit is not None and not score <= limit:  # a NaN is refused, too
        return "unlike what the model learnt from"
    return ""


# --- the table ---------------------------------------------------------------------------------


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """One line a sample; ``truth:``, ``output:``, ``verdict:`` and ``uncalibrated:`` columns."""
    keys = [
        (told, key)
        for told in TOLD
        for key in dict.fromkeys(key for outcome in outcomes for key in getattr(outcome, told))
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "refused", *(f"{told}:{key}" for told, key in keys)])
        for one in outcomes:
            told = [getattr(one, told) for told, _ in keys]
            writer.writerow(
                [
                    one.set,
                    one.name,
                    one.group,
                    one.licence,
                    "" if one.fold is None else one.fold,
                    int(one.generated),
                    json.dumps(dict(one.attributes), sort_keys=True),
                    "" if one.unlike is None else one.unlike,
                    one.refused,
                    *(
                        json.dumps(values[key]) if key in values else ""
                        for values, (_, key) in zip(told, keys, strict=True)
                    ),
                ]
            )


def read(path: Path) -> list[Outcome]:
    """What ``write`` wrote."""
    csv.field_size_limit(1 << 30)  # a hundred boxes are longer than csv allows by itself
    with path.open(newline="") as file:
        return [_outcome(line) for line in csv.DictReader(file)]


def _outcome(line: Mapping[str, str]) -> Outcome:
    told: dict[str, dict[str, Any]] = {name: {} for name in TOLD}
    for column, value in line.items():
        name, colon, key = column.partition(":")
        if colon and name in told and value:
            told[name][key] = json.loads(value)
    return Outcome(
        set=line["set"],
        name=line["name"],
        group=line["group"],
        licence=line["licence"],
        fold=int(line["fold"]) if line["fold"] else None,
        generated=line["generated"] == "1",
        attributes=json.loads(line["attributes"]),
        unlike=float(line["unlike"]) if line["unlike"] else None,
        refused=line["refused"],
        **told,
    )
