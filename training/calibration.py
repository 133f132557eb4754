"""Owns what validation data decide: temperature, thresholds, and how unlike an input may be.

Refuses to see a test set: everything here takes what it decides from as arguments, and nobody
gives it anything but validation data (``training.evaluate``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from training.outcomes import TINY, Floats, pool, tempered

TEMPERATURES = (0.2, 10.0)
"""Beyond it, few validation samples that are all right or all wrong speak, not calibration."""
EDGE = 1e-4  # a manifest's threshold lies within 0 and 1
OVER_TRAINING = 1.05  # the limit is at least so many times what training data reach
UNSEEN = 1.5  # times what is over 1, the usual, where hardly any sample can tell


@dataclass(frozen=True)
class Decisions:
    """All that is decided after learning; ``export`` puts it into the manifest.

    Attributes:
        temperature: logits are divided by it.
        thresholds: by label of finding, grading or segmentation.
        input_check: a higher score is not analysed; None: there is no check.
        how: in words, by what it is about, for the report.
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    input_check: float | None = None
    how: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Decisions:
        """What ``write`` wrote."""
        return cls(**json.loads(path.read_text()))


# --- temperature -------------------------------------------------------------------------------


def temperature(
    frames: Sequence[NDArray[Any]], truth: NDArray[Any], exclusive: bool, how: str = "mean"
) -> float:
    """The temperature (Guo et al. 2017) under which the truth is most likely.

    Args:
        frames: for each sample its probabilities at temperature 1, ``(frames, n)``.
        truth: ``(samples, n)`` 0 or 1; one 1 a line where classes exclude each other.
        exclusive: the probabilities come from a softmax.
        how: frames of a sample are pooled, as in the manifest.

    Returns:
        Within ``TEMPERATURES``; 1 where the truth knows one answer only, or nobody was asked.
    """
    y = np.asarray(truth, float)
    if not len(y) or (y == y[0]).all():
        return 1.0
    alone = all(len(part) == 1 for part in frames)
    stacked = np.concatenate([np.asarray(part, float) for part in frames])

    def unlikely(log_temperature: float) -> float:
        p = tempered(stacked, float(np.exp(log_temperature)), exclusive)
        if not alone:
            cuts = np.cumsum([len(part) for part in frames])[:-1]
            p = np.array([pool(part, how) for part in np.split(p, cuts)])
        p = np.clip(p, TINY, 1 - TINY)
        right = y * np.log(p) if exclusive else y * np.log(p) + (1 - y) * np.log(1 - p)
        return -float(right.sum())

    bounds = tuple(np.log(TEMPERATURES))
    found = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded")
    return round(float(np.exp(found.x)), 4)


# --- thresholds --------------------------------------------------------------------------------


def threshold(rule: str, truth: NDArray[Any], score: NDArray[Any], own: float) -> float:
    """From which score on a sample counts as positive.

    Between the scores that were seen; of several that are as good, the nearest to a half.

    Args:
        rule: the recipe's: youden, accuracy, f1, fixed, sensitivity:x (the highest threshold that
            reaches it), specificity:x (the lowest).
        truth: ``(n,)`` 0 or 1.
        score: ``(n,)`` 0..1.
        own: the label's own; stays under ``fixed``, and where only one class was seen.
    """
    y = np.asarray(truth, bool)
    if rule == "fixed" or y.all() or not y.any():
        return own
    at = _between(score)
    tp, fp = _reaching(score, y, at), _reaching(score, ~y, at)
    sensitivity, specificity = tp / y.sum(), 1 - fp / (~y).sum()
    return _chosen(rule, at, sensitivity, specificity, tp, fp, len(y), int(y.sum()))


def box_threshold(
    rule: str, matched: NDArray[np.bool_], score: NDArray[Any], objects: int, own: float
) -> float:
    """From which score on a box counts: best F1 of boxes, or the sensitivity that is asked for.

    Args:
        rule: the recipe's; what asks for something that boxes lack (true negatives) is taken as f1.
        matched: ``(boxes,)`` it lies on an object at IoU 0.5.
        score: ``(boxes,)``.
        objects: how many there truly are.
        own: the label's own; stays under ``fixed``, and where nothing was there or found.
    """
    if rule == "fixed" or not objects or not matched.any():
        return own
    at = _between(score)
    tp, fp = _reaching(score, matched, at), _reaching(score, ~matched, at)
    rule = rule if rule.startswith("sensitivity") else "f1"
    return _chosen(rule, at, tp / objects, np.zeros(len(at)), tp, fp, 0, objects)


def _between(score: NDArray[Any]) -> Floats:
    """Thresholds that part the scores in every possible way, ascending."""
    seen = np.unique(np.concatenate([[0.0], np.asarray(score, float), [1.0]]))
    return np.unique(np.clip((seen[1:] + seen[:-1]) / 2, EDGE, 1 - EDGE))


def _reaching(score: NDArray[Any], which: NDArray[np.bool_], at: Floats) -> NDArray[np.int64]:
    """How many of these reach each threshold."""
    return np.asarray(which.sum() - np.searchsorted(np.sort(np.asarray(score)[which]), at))


def _chosen(
    rule: str,
    at: Floats,
    sensitivity: Floats,
    specificity: Floats,
    tp: NDArray[Any],
    fp: NDArray[Any],
    count: int,
    positives: int,
) -> float:
    name, _, asked = rule.partition(":")
    if name == "sensitivity":
        reached = np.flatnonzero(sensitivity >= float(asked))
        return round(float(at[reached[-1] if reached.size else 0]), 6)
    if name == "specificity":
        reached = np.flatnonzero(specificity >= float(asked))
        return round(float(at[reached[0] if reached.size else -1]), 6)
    negatives = count - positives
    quality = {
        "youden": sensitivity + specificity,
        "accuracy": (tp + negatives - fp).astype(float),
        "f1": 2 * tp / (tp + fp + positives),
    }[name]
    best = at[quality >= quality.max() - 1e-12]
    return round(float(best[np.argmin(np.abs(best - 0.5))]), 6)


# --- inputs unlike the training data -----------------------------------------------------------


def limit(training: NDArray[Any], validation: NDArray[Any], accepted: float) -> float:
    """The score that an input may have.

    The quantile ``accepted`` of scores of data that were not learnt from. Where they are too few
    to have such a quantile (99 are needed for 0.99), what one more of them will not exceed with
    that probability if scores are normal (the t-prediction interval), and never less than the
    largest of them. In any case a margin over the training data's own.

    Args:
        training: scores of what was learnt from.
        validation: scores of data like those that the model is for.
        accepted: share of them that shall pass.
    """
    scores = np.asarray(validation, float)
    rank = int(np.ceil((len(scores) + 1) * accepted))
    if rank <= len(scores):
        found = float(np.sort(scores)[rank - 1])
    else:
        found = max(float(scores.max()), _predicted(scores, accepted))
    floor = OVER_TRAINING * float(np.quantile(training, accepted)) if len(training) else 0.0
    return float(f"{max(found, floor, TINY):.6g}")


def _predicted(scores: Floats, accepted: float) -> float:
    if len(scores) < 3:
        return 1 + UNSEEN * float(scores.max() - 1)
    spread = scores.std(ddof=1) * np.sqrt(1 + 1 / len(scores))
    return float(scores.mean() + stats.t.ppf(accepted, len(scores) - 1) * spread)
