"""Owns what is said of a model's quality: overlap per sample, its mean, and how sure that is.

Refuses to look anywhere but through ``inference``: what is measured is what the service gives,
cleaning included, on the grid of the input.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.engine import Runner
from inference.manifest import Manifest
from inference.types import Segment
from training.datasets import Sample
from training.finetune import Report, finetune
from training.recipe import Recipe
from training.splits import folds

UNION = "all labels as one"
MEAN = "mean of the labels"
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """One sample's overlaps.

    Attributes:
        name: of the sample.
        group: that it belongs to.
        licence: of the sample.
        fold: in which it was held out; None outside cross-validation.
        dice: by label; ``MEAN`` of the labels' figures; ``UNION``, the overlap of all masks
            together, where all labels are of one type.
    """

    name: str
    group: str
    licence: str
    fold: int | None
    dice: dict[str, float]


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Overlap of two masks (Dice 1945), 0..1; 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def cast(weights: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Floating point tensors in the precision in which a bundle stores them.

    Raises:
        OverflowError: a finite value does not fit.
    """
    wanted = {"float16": torch.float16, "float32": torch.float32}[precision]
    stored = {k: v.to(wanted) if v.is_floating_point() else v for k, v in weights.items()}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise OverflowError(f"{name} does not fit {precision}")
    return stored


def measured(runner: Runner, samples: Sequence[Sample], fold: int | None = None) -> list[Row]:
    """Look at each sample as the service would, and hold the masks against the truth."""
    rows = []
    for sample in samples:
        (prediction,) = runner.predict([sample.stack])
        if prediction.not_analysed:
            raise ValueError(f"{sample.name}: {prediction.not_analysed}")
        figures = _figures(prediction.segments, sample, runner.manifest)
        rows.append(Row(sample.name, sample.group, sample.licence, fold, figures))
    return rows


def _figures(segments: Sequence[Segment], sample: Sample, manifest: Manifest) -> dict[str, float]:
    figures = {
        segment.label: dice(segment.mask, sample.masks[label.channel])
        for segment, label in zip(segments, manifest.labels, strict=True)
    }
    figures[MEAN] = float(np.mean(list(figures.values())))
    if len({label.type for label in manifest.labels}) == 1:  # parts of one kind, such as two lungs
        found = np.any([segment.mask for segment in segments], axis=0)
        true = np.any([sample.masks[label.channel] for label in manifest.labels], axis=0)
        figures[UNION] = dice(found, true)
    return figures


def cross_validate(
    recipe: Recipe,
    manifest: Manifest,
    samples: Sequence[Sample],
    weights: dict[str, Tensor] | None,
    *,
    known: Sequence[Row] = (),
    device: torch.device | str = "cpu",
    report: Callable[[int], Report] = lambda _: lambda *_: None,
    finished: Callable[[int, list[Row]], None] = lambda *_: None,
) -> list[Row]:
    """Each group held out once; each fold's weights are cast as a bundle would store them.

    Args:
        recipe: what to repeat per fold.
        manifest: how the service would run it.
        samples: generated ones are learnt from in every fold, never measured.
        weights: of the pretrained backbone.
        known: rows of folds that an interrupted run finished; they are not repeated.
        device: to learn and run on.
        report: given a fold, hears of its epochs.
        finished: hears of each new fold, with all rows so far.
    """
    rows = list(known)
    done = {row.fold for row in known}
    dealt = folds(samples, recipe.training.folds, recipe.training.seed)
    for number, (learn, held) in enumerate(dealt):
        if number in done:
            continue
        learnt = finetune(recipe, learn, weights, device, report(number))
        runner = Runner(manifest, cast(learnt, recipe.bundle.precision), device)
        rows += measured(runner, held, number)
        finished(number, rows)
    return rows


def summary(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """Mean Dice of each label with a 95% interval, bootstrapped over groups, and the spread."""
    return {
        "samples": len(rows),
        "groups": len({row.group for row in rows}),
        "dice": {
            label: {
                "mean": round(float(np.mean(values)), 4),
                "interval_95": [round(v, 4) for v in _interval(rows, label, seed)],
                "median": round(float(np.median(values)), 4),
                "worst": round(float(np.min(values)), 4),
            }
            for label in rows[0].dice
            for values in [[row.dice[label] for row in rows]]
        },
    }


def _interval(rows: Sequence[Row], label: str, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean over samples, groups drawn with replacement."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        held = sums.setdefault(row.group, [0.0, 0.0])
        held[0] += row.dice[label]
        held[1] += 1
    table = np.array([sums[group] for group in sorted(sums)])
    drawn = np.random.default_rng(seed).integers(len(table), size=(DRAWS, len(table)))
    totals = table[drawn].sum(1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return float(low), float(high)


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """One line per sample."""
    with path.open("w", newline="") as file:
        labels = list(rows[0].dice) if rows else []
        writer = csv.writer(file)
        writer.writerow(["name", "group", "licence", "fold", *labels])
        for row in rows:
            fold = "" if row.fold is None else row.fold
            figures = [f"{row.dice[label]:.4f}" for label in labels]
            writer.writerow([row.name, row.group, row.licence, fold, *figures])


def read_rows(path: Path) -> list[Row]:
    """What ``write_rows`` wrote."""
    with path.open(newline="") as file:
        return [
            Row(
                name=line.pop("name"),
                group=line.pop("group"),
                licence=line.pop("licence"),
                fold=int(fold) if (fold := line.pop("fold")) else None,
                dice={label: float(value) for label, value in line.items()},
            )
            for line in csv.DictReader(file)
        ]
