"""Outcomes drawn by hand or by a seed, for tests of what is told of them."""

from __future__ import annotations

import numpy as np

from training.metrics import Scheme
from training.outcomes import Outcome

BINARY = Scheme("classification", ("Pneumonia",))
EXCLUSIVE = Scheme("classification", ("Normal", "Benign", "Malignant"), exclusive=True)
GRADES = Scheme("grading", ("Normal", "Benign", "Malignant"))
LUNGS = Scheme("segmentation", ("Right lung", "Left lung"))
BOXES = Scheme("detection", ("Right lung", "Left lung"))


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, float)))


def binary(truth, probability, *, groups=None, limit=0.5, attributes=None, uncalibrated=None):
    before = probability if uncalibrated is None else uncalibrated
    return [
        Outcome(
            set="test",
            name=f"s{i:04}",
            group=groups[i] if groups else f"g{i}",
            licence="CC0",
            attributes=attributes[i] if attributes else {},
            truth={"Pneumonia": int(y)},
            output={"Pneumonia": float(p)},
            verdict={"Pneumonia": int(p >= limit)},
            uncalibrated={"Pneumonia": float(before[i])},
        )
        for i, (y, p) in enumerate(zip(truth, probability, strict=True))
    ]


def simulated_binary(count, seed=0, apart=2.0, **how):
    """Two normal distributions of logits, ``apart`` standard deviations: AUC is Φ(apart / √2)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    logits = rng.normal(apart * (truth - 0.5), 1) * apart
    return binary(truth, sigmoid(logits), **how)


def exclusive(truth, probability):
    return [
        Outcome(
            set="test",
            name=f"s{i}",
            group=f"g{i}",
            truth={n: int(y == k) for k, n in enumerate(EXCLUSIVE.names)},
            output=dict(zip(EXCLUSIVE.names, map(float, p), strict=True)),
            verdict={n: int(np.argmax(p) == k) for k, n in enumerate(EXCLUSIVE.names)},
            uncalibrated=dict(zip(EXCLUSIVE.names, map(float, p), strict=True)),
        )
        for i, (y, p) in enumerate(zip(truth, probability, strict=True))
    ]


def grades(truth, verdict):
    chance = [[0.9 if g >= 1 else 0.1, 0.8 if g >= 2 else 0.05] for g in verdict]
    outputs = [{">= Benign": a, ">= Malignant": b} for a, b in chance]
    return [
        Outcome(
            set="test",
            name=f"s{i}",
            group=f"g{i}",
            truth={"grade": int(y)},
            output=outputs[i],
            verdict={"grade": int(g)},
            uncalibrated=outputs[i],
        )
        for i, (y, g) in enumerate(zip(truth, verdict, strict=True))
    ]


def lungs(overlaps, distances=None, unit="px"):
    found = []
    for i, (right, left) in enumerate(overlaps):
        output = {"Dice Right lung": right, "Dice Left lung": left}
        for name, value in zip(LUNGS.names, distances[i] if distances else (), strict=False):
            output[f"HD95 {unit} {name}"] = value
        found.append(Outcome(set="test", name=f"s{i}", group=f"g{i}", output=output))
    return found


def boxes(true, found, limit=0.5):
    """``true`` of each sample (kind, left, top, right, bottom); ``found`` with score behind."""
    return [
        Outcome(
            set="test",
            name=f"s{i}",
            group=f"g{i}",
            truth={"boxes": [[k, 0, *edges] for k, *edges in there]},
            output={"boxes": [[k, 0, *edges] for k, *edges in said]},
            verdict={"boxes": [int(box[-1] >= limit) for box in said]},
        )
        for i, (there, said) in enumerate(zip(true, found, strict=True))
    ]
