"""Owns the way from learnt weights to figures: decide on validation data, then measure once.

Refuses to look anywhere but through ``inference``, at any precision but that of the bundle, and at
a test set before everything is decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from inference.manifest import FindingLabel, Grading, Label
from inference.runner import Runner
from training import check, gallery, metrics, outcomes, wrong
from training.boxes import Matches
from training.calibration import (
    TEMPERATURES,
    Decisions,
    box_threshold,
    limit,
    temperature,
    threshold,
)
from training.drafts import FAMILIAR, cast, draft, weights_digest
from training.outcomes import Floats, Outcome, Report, pool, tempered
from training.recipe import Recipe
from training.samples import Part, Sample

DECISIONS, PREDICTIONS, EVALUATION = "decisions.json", "predictions.csv", "evaluation.json"
TEST, VALIDATION = "test", "validation"
CROSS_VALIDATION = "cross-validation of this recipe, each group held out once"
SEED = 0  # of the bootstrap: figures of one run stay what they are
SHOWN = 8  # failures of a set in the gallery
CROSSED = 10  # parts, where training data must help to tell what is like them
MANY_WRONG = 300  # so many training samples, up to twice, are turned and inverted: a mean counts
ENOUGH = 30  # validation samples that tell it alone, better than those that were learnt from


@dataclass(frozen=True)
class Judged:
    """What weights were decided to be, and what they said.

    Attributes:
        runner: the cast weights with the decisions; refuses nobody for being unlike.
        decisions: made on validation data.
        familiar: what the training data looked like; None where there is no check.
        outcomes: of the validation part (set ``validation``; it decided, no figure is told of it),
            of the test part (set ``test``) and of every further set.
    """

    runner: Runner
    decisions: Decisions
    familiar: dict[str, Tensor] | None
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        document: what ``evaluation.json`` holds.
        outcomes: what ``predictions.csv`` holds.
        decisions: what ``decisions.json`` holds.
        failures: the worst cases of each set with their pictures.
    """

    document: dict[str, Any]
    outcomes: list[Outcome]
    decisions: Decisions
    failures: list[gallery.Case]


def evaluate(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    parts: Mapping[Part, Sequence[Sample]],
    extra: Mapping[str, Sequence[Sample]],
    out: Path,
    *,
    device: torch.device | str = "cpu",
    report: Report = lambda *_: None,
) -> Evaluation:
    """Decide, measure, and write ``decisions.json``, ``familiar.safetensors``, the table of
    samples and ``evaluation.json``.

    Args:
        recipe: that was learnt by.
        weights: float32, cast here first: figures are those of the weights that are exported.
        parts: train (for the input check), val (decides), test (is measured).
        extra: further sets by title, each measured.
        out: the run folder.
        device: to run on.
        report: hears how far it is.

    Raises:
        DataError: a sample cannot be read, has no truth, or breaks the bundle's own contract.
        OverflowError: a weight does not fit the bundle's precision.
    """
    judged = judge(recipe, weights, parts, extra, device=device, report=report)
    of = metrics.scheme(recipe.bundle)
    held: dict[str, Sequence[Sample]] = {TEST: parts.get("test", []), **extra}
    held = {title: samples for title, samples in held.items() if samples}
    document: dict[str, Any] = {
        **_about(recipe),
        "weights_sha256": weights_digest(cast(weights, recipe.bundle.precision)),
        "decisions": asdict(judged.decisions),
        "data": {part: counted(samples) for part, samples in parts.items()},
        "sets": {},
    }
    failures = []
    for title, samples in held.items():
        said = [outcome for outcome in judged.outcomes if outcome.set == title]
        document["sets"][title] = pooled(said, of, recipe.evaluation.bootstrap)
        by_name = {sample.name: sample for sample in samples}
        failures += [
            gallery.case(judged.runner, by_name[outcome.name], outcome, of)
            for outcome in gallery.worst(said, of, SHOWN)
        ]
    document["definitions"] = _definitions(document["sets"])
    if judged.familiar is not None:
        save_file(judged.familiar, out / FAMILIAR)
    else:
        (out / FAMILIAR).unlink(missing_ok=True)  # of an earlier evaluation of this run
    judged.decisions.write(out / DECISIONS)
    outcomes.write(judged.outcomes, out / PREDICTIONS)
    write(document, out / EVALUATION)
    return Evaluation(document, judged.outcomes, judged.decisions, failures)


def _about(recipe: Recipe) -> dict[str, Any]:
    """What a document tells besides figures."""
    bundle, of = recipe.bundle, metrics.scheme(recipe.bundle)
    return {
        "format": 1,
        "name": bundle.name,
        "version": bundle.version,
        "title": bundle.title,
        "weights": f"as stored, {bundle.precision}",
        "interval": "95%, percentile bootstrap over groups (patients, and whoever shares a "
        f"picture with them), {recipe.evaluation.bootstrap} draws",
        "bootstrap": {"draws": recipe.evaluation.bootstrap, "seed": SEED},
        "scheme": asdict(of),
        "headline": of.headline,
    }


def write(document: Mapping[str, Any], path: Path) -> None:
    """``evaluation.json``; a NaN in it would be an error of ours."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def pooled(said: Sequence[Outcome], of: metrics.Scheme, draws: int) -> dict[str, Any]:
    """A set's figures with the rows of its samples; of all folds together where they have one.

    In a cross-validation each sample speaks by the fold in which it was held out, at that fold's
    own temperature and thresholds.
    """
    return {
        **metrics.measured(said, of, draws, SEED),
        "rows": [_row(outcome) for outcome in said],
    }


def with_cross_validation(
    document: Mapping[str, Any], said: Sequence[Outcome], recipe: Recipe
) -> dict[str, Any]:
    """The document with the recipe's cross-validation as its first set.

    Args:
        document: of a run of the recipe, or an empty one.
        said: outcomes of all folds.
        recipe: that all were learnt by.
    """
    of = metrics.scheme(recipe.bundle)
    held = [outcome for outcome in said if outcome.set != VALIDATION]
    first = {CROSS_VALIDATION: pooled(held, of, recipe.evaluation.bootstrap)}
    sets = {**first, **{k: v for k, v in document.get("sets", {}).items() if k != CROSS_VALIDATION}}
    return {**_about(recipe), **document, "sets": sets, "definitions": _definitions(sets)}


def _definitions(sets: Mapping[str, Any]) -> dict[str, str]:
    used = {
        name
        for told in sets.values()
        for table in [told["figures"], *told["classes"].values()]
        for name in table
    }
    return {name: said for name, said in metrics.DEFINITIONS.items() if name in used}


def _row(outcome: Outcome) -> dict[str, Any]:
    """One sample for the bundle: of boxes only those that count."""
    row: dict[str, Any] = {"name": outcome.name, "licence": outcome.licence}
    if outcome.fold is not None:
        row["fold"] = outcome.fold
    output = dict(outcome.output)
    if "boxes" in output:
        counts = outcome.verdict["boxes"]
        output["boxes"] = [box for box, c in zip(output["boxes"], counts, strict=True) if c]
    truth = {"truth": dict(outcome.truth)} if outcome.truth else {}
    refused = {"refused": outcome.refused} if outcome.refused else {}
    return {**row, **truth, "output": output, **refused}


def counted(samples: Sequence[Sample]) -> dict[str, Any]:
    """How many there are, of how many groups, under which licences."""
    licences = [sample.licence or "not told" for sample in samples]
    return {
        "samples": len(samples),
        "groups": len({sample.group for sample in samples}),
        "generated": sum(sample.generated for sample in samples),
        "licences": {licence: licences.count(licence) for licence in sorted(set(licences))},
    }


# --- judging -----------------------------------------------------------------------------------


def judge(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    parts: Mapping[Part, Sequence[Sample]],
    extra: Mapping[str, Sequence[Sample]],
    *,
    device: torch.device | str = "cpu",
    fold: int | None = None,
    report: Report = lambda *_: None,
) -> Judged:
    """Decide on the validation part, then look once at validation, test and every further set."""
    stored = cast(weights, recipe.bundle.precision)
    runner = Runner(draft(recipe), stored, device)
    train, val = list(parts.get("train", [])), list(parts.get("val", []))
    decisions = decide(recipe, runner, val, report)
    familiar = None
    if recipe.evaluation.input_check:
        familiar, highest, how = familiarise(recipe, runner, train, val, report)
        decisions = Decisions(
            decisions.temperature, decisions.thresholds, highest, {**decisions.how, **how}
        )
    runner = Runner(
        draft(recipe, decisions), stored, device
    )  # without what is familiar: asks nobody
    said: list[Outcome] = []
    for title, samples in {VALIDATION: val, TEST: parts.get("test", []), **extra}.items():
        said += outcomes.look(
            runner,
            samples,
            title,
            familiar=familiar,
            limit=decisions.input_check,
            fold=fold,
            report=report,
        )
    return Judged(runner, decisions, familiar, said)


def decide(
    recipe: Recipe, runner: Runner, val: Sequence[Sample], report: Report = lambda *_: None
) -> Decisions:
    """Temperature and thresholds.

    Args:
        recipe: says by which rule.
        runner: at temperature 1 and the labels' own thresholds.
        val: the validation part; where it is empty the recipe's own words stay.
        report: hears how far it is.
    """
    bundle, manifest = recipe.bundle, runner.manifest
    labels: list[Label | FindingLabel | Grading] = [*bundle.labels, *bundle.findings]
    labels += [bundle.grading] if bundle.grading else []
    own = {label.label: label.threshold for label in labels}
    if bundle.task == "segmentation":
        return Decisions(1.0, own, None, {"thresholds": "the labels' own"})
    if not val:
        said = "there are no validation data: the labels' own"
        return Decisions(1.0, own, None, {"temperature": "not calibrated", "thresholds": said})
    if bundle.task == "detection":
        return _decide_boxes(recipe, runner, val, own, report)
    frames, truth = _probabilities(runner, val, report)
    exclusive = bundle.task == "classification" and bundle.activation == "softmax"
    divisor = 1.0
    how = {"temperature": "the recipe asks for no calibration"}
    if recipe.evaluation.calibrate:
        divisor = temperature(frames, truth, exclusive, manifest.pool)
        how["temperature"] = f"most likely on {len(val)} validation samples"
        if not 1.01 * TEMPERATURES[0] < divisor < 0.99 * TEMPERATURES[1]:
            how["temperature"] += ", held at the limit of what they can tell"
    p = np.array([pool(tempered(part, divisor, exclusive), manifest.pool) for part in frames])
    rule = recipe.evaluation.threshold
    if exclusive:
        how["thresholds"] = "none: classes exclude each other, the most probable is taken"
        return Decisions(divisor, own, None, how)
    how["thresholds"] = f"{rule}, on {len(val)} validation samples"
    if rule == "fixed":
        how["thresholds"] = "the labels' own, by the recipe"
    if bundle.grading:
        k = bundle.grading.present_from - 1
        found = threshold(rule, truth[:, k], p[:, k], bundle.grading.threshold)
        how["thresholds"] += f" ({bundle.grading.grades[k + 1].label} or more against less)"
        return Decisions(divisor, {bundle.grading.label: found}, None, how)
    chosen = {
        finding.label: threshold(
            rule, truth[:, finding.channel], p[:, finding.channel], finding.threshold
        )
        for finding in bundle.findings
    }
    return Decisions(divisor, chosen, None, how)


def _probabilities(
    runner: Runner, samples: Sequence[Sample], report: Report
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Each sample's ``(frames, n)`` at temperature 1, and what is true ``(samples, n)``."""
    manifest = runner.manifest
    frames: list[NDArray[np.float32]] = []
    truth: list[list[int]] = []
    for held, stacks in outcomes.batches(samples, runner.batch):
        frames += [raw["probability"] for raw in runner.raw(stacks)]
        for sample in held:
            known = outcomes.truth(sample, manifest)
            if manifest.grading:
                steps = range(1, len(manifest.grading.grades))
                truth.append([int(known["grade"] >= k) for k in steps])
            else:
                truth.append(list(known.values()))
        report("what validation decides", len(frames), len(samples))
    return frames, np.array(truth)


def _decide_boxes(
    recipe: Recipe,
    runner: Runner,
    val: Sequence[Sample],
    own: Mapping[str, float],
    report: Report,
) -> Decisions:
    """A threshold for each kind of object."""
    said = outcomes.look(runner, val, "what validation decides", report=report)
    boxes = Matches(said, runner.manifest.architecture.classes).boxes
    rule = recipe.evaluation.threshold
    chosen = {
        finding.label: box_threshold(
            rule,
            boxes[finding.channel].matched[0],
            boxes[finding.channel].score,
            int(boxes[finding.channel].objects.sum()),
            own[finding.label],
        )
        for finding in recipe.bundle.findings
    }
    shown = rule if rule == "fixed" or rule.startswith("sensitivity") else "best F1"
    how = f"{shown} of boxes at IoU 0.5, on {len(val)} validation samples"
    return Decisions(
        1.0, chosen, None, {"temperature": "scores of boxes have none", "thresholds": how}
    )


# --- the input check ---------------------------------------------------------------------------


def familiarise(
    recipe: Recipe,
    runner: Runner,
    train: Sequence[Sample],
    val: Sequence[Sample],
    report: Report = lambda *_: None,
) -> tuple[dict[str, Tensor], float, dict[str, str]]:
    """What the training data looked like, the score that an input may have, and how it was chosen.

    Generated samples belong to what was learnt from, but are no measure of what comes: the limit is
    found without them where there are others.
    """
    accepted = recipe.evaluation.accepted
    drawn = [sample for sample in train if sample.generated]
    real = [sample for sample in train if not sample.generated]
    if not real:
        drawn, real = real, drawn
    features, frames = _features(runner, real, "what training data look like", report)
    more, _ = _features(runner, drawn, "what generated data look like", report)
    few = real[:: max(1, len(real) // MANY_WRONG)]
    bad = [
        torch.from_numpy(_features(runner, few, f"what is {kind}", report, change)[0])
        for kind, change in wrong.kinds(recipe.augment).items()
    ]
    theirs, counts = _features(runner, val, "what validation data look like", report)
    enough = len(val) >= ENOUGH
    familiar = check.fit(
        torch.from_numpy(np.concatenate([features, more])),
        bad,
        torch.from_numpy(theirs) if enough else None,
    )
    if enough:
        scores = _by_sample(features, frames, familiar)
        highest = limit(scores, _by_sample(theirs, counts, familiar), accepted)
        how = f"{accepted:.1%} of data like the {len(val)} validation samples shall pass"
    else:
        groups = [sample.group for sample in [*real, *val]]
        every = np.concatenate([features, theirs])
        crossed = _crossed(every, [*frames, *counts], groups, more, bad)
        highest = limit(_by_sample(features, frames, familiar), crossed, accepted)
        how = (
            f"{accepted:.1%} of data like the {len(groups)} training and validation samples shall "
            "pass; each was scored by what others look like"
        )
    return familiar, highest, {"input check": how}


def _features(
    runner: Runner,
    samples: Sequence[Sample],
    title: str,
    report: Report,
    change: wrong.Change | None = None,
) -> tuple[NDArray[np.float32], list[int]]:
    """``(sum of frames, F)``, and how many frames each sample has."""
    found, frames = [], []
    for _, read in outcomes.batches(samples, runner.batch):
        stacks = [wrong.made(stack, change) for stack in read] if change else read
        found.append(runner.features(stacks))
        frames += [len(stack.pixels) for stack in stacks]
        report(title, len(frames), len(samples))
    empty = runner.features([])
    return np.concatenate([empty, *found]), frames


def _by_sample(
    features: NDArray[np.float32], frames: Sequence[int], familiar: Mapping[str, Tensor]
) -> Floats:
    return outcomes.of_stacks(outcomes.scored(features, familiar), frames)


def _crossed(
    features: NDArray[np.float32],
    frames: Sequence[int],
    groups: Sequence[str],
    more: NDArray[np.float32],
    bad: Sequence[Tensor],
) -> Floats:
    """Each sample's score by what other groups, and ``more``, look like; a tenth at a time."""
    _, index = np.unique(groups, return_inverse=True)
    part = index % CROSSED
    of_frame = np.repeat(part, frames)
    if min((of_frame != left).sum() for left in set(part)) < check.LEAST_SAMPLES:
        return _by_sample(features, frames, check.fit(torch.from_numpy(features), bad))
    scores = np.zeros(len(frames))
    for left in sorted(set(part)):
        others = np.concatenate([features[of_frame != left], more])
        mine = np.asarray(frames)[part == left].tolist()
        familiar = check.fit(torch.from_numpy(others), bad)
        scores[part == left] = _by_sample(features[of_frame == left], mine, familiar)
    return scores
