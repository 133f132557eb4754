"""Owns the order of what a command does: data, split, leaks, learning, deciding, measuring.

Refuses to print, and to know how any of it is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference.bundle import Bundle
from training import evaluate as evaluating
from training import export as exporting
from training import leaks, outcomes, page, recipe, sources, splits, weights
from training.errors import RunError, listed
from training.finetune import finetune
from training.outcomes import Outcome
from training.recipe import Recipe
from training.run import Progress, Run
from training.samples import Part, Sample, Samples

Device = torch.device | str
OnProgress = Callable[[str, Progress], None]
"""Told of learning: which run, and how far it is."""
OnLook = Callable[[str, int, int], None]
"""Told of looking at samples: what for, how many are done, of how many."""

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Parted:
    """The samples of a recipe, each in its part.

    Attributes:
        parts: train, val and test.
        extra: further sets to measure, by title.
        leaks: what is known of near-duplicates, for the run folder.
    """

    parts: dict[Part, list[Sample]]
    extra: dict[str, list[Sample]]
    leaks: dict[str, Any]


def part(plan: Recipe, root: Path) -> Parted:
    """Load and split the samples of a recipe.

    Raises:
        DataError: the data are not there, broken, or too few.
        LeakError: a patient, study or picture would be in more than one part.
    """
    found, pairs = _loaded(plan, root)
    parts = splits.parts(found.learn, plan.split, plan.bundle.task)
    sets: dict[str, list[Sample]] = {str(name): samples for name, samples in parts.items()}
    sets |= found.test
    leaks.check(sets, pairs if plan.split.near_duplicates == "refuse" else ())
    return Parted(parts, found.test, leaks.report(sets, pairs))


def folds(plan: Recipe, root: Path) -> list[Parted]:
    """The same for each fold of a cross-validation."""
    found, pairs = _loaded(plan, root)
    dealt = splits.folds(found.learn, plan.split, plan.bundle.task)
    for parts in dealt:
        leaks.check(parts, pairs if plan.split.near_duplicates == "refuse" else ())
    return [Parted(parts, {}, leaks.report(parts, pairs)) for parts in dealt]


def _loaded(plan: Recipe, root: Path) -> tuple[Samples, list[tuple[str, str]]]:
    """All samples and the pairs that look the same, joined to groups if the recipe wants that."""
    found = sources.load(plan.data, plan.bundle, root)
    everyone = [*found.learn, *(sample for held in found.test.values() for sample in held)]
    pairs = leaks.near_duplicates(everyone)
    if plan.split.near_duplicates == "group":
        found = leaks.joined(found, pairs)
    return found, pairs


def train(
    file: Path,
    root: Path,
    out: Path,
    device: Device,
    report: OnProgress = lambda *_: None,
    parted: Callable[[Parted], None] = lambda _: None,
) -> None:
    """Learn what a recipe says, or go on where it was interrupted.

    Args:
        file: the recipe.
        root: folder of the data.
        out: the run's folder.
        device: to learn on.
        report: hears how far it is.
        parted: hears who is learnt from, before anything is.
    """
    plan = recipe.read(file)
    found = part(plan, root)
    parted(found)
    _learn(plan, file.read_text(), found, root, out, device, report)


def _learn(
    plan: Recipe,
    text: str,
    parted: Parted,
    root: Path,
    out: Path,
    device: Device,
    report: OnProgress,
) -> dict[str, torch.Tensor]:
    weights.check(plan)
    start = weights.load(plan.training.weights, plan.bundle.architecture.backbone, root)
    run = Run.open(out, plan, text)
    learnt = finetune(
        plan,
        parted.parts["train"],
        parted.parts["val"],
        run,
        weights=start,
        device=device,
        report=lambda progress: report(out.name, progress),
    )
    if run.writes:
        (out / page.LEAKS).write_text(json.dumps(parted.leaks, indent=1) + "\n")
    return learnt


def evaluate(
    out: Path,
    root: Path,
    device: Device,
    *,
    file: Path | None = None,
    cross_validation: Path | None = None,
    report: OnLook = lambda *_: None,
) -> dict[str, Any]:
    """Decide thresholds and measure a run; its report, figures and table go into its folder.

    Args:
        out: the run's folder, trained.
        root: folder of the data.
        device: to run on.
        file: a recipe with other words than the run's; what decides learning must be the same.
        cross_validation: folder that ``cross_validate`` wrote, to be told beside it.
        report: hears how far it is.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        RunError: the run is not trained, or the data are not those that it learnt from.
    """
    plan = _plan(out, file)
    run = Run.open(out, plan)
    learnt = run.weights()
    parted = part(plan, root)
    _same_samples(out, parted)
    found = evaluating.evaluate(
        plan, learnt, parted.parts, parted.extra, out, device=device, report=report
    )
    document, said = found.document, found.outcomes
    if cross_validation is not None:
        held_out = outcomes.read(cross_validation / page.FOLDS)
        document = evaluating.with_cross_validation(document, held_out, plan)
        evaluating.write(document, out / evaluating.EVALUATION)
        outcomes.write(held_out, out / page.FOLDS)
        said = [*said, *held_out]
    page.write(document, said, found.failures, out)
    return document


def cross_validate(
    file: Path,
    root: Path,
    out: Path,
    device: Device,
    *,
    told: OnProgress = lambda *_: None,
    report: OnLook = lambda *_: None,
) -> dict[str, Any]:
    """Hold each group out once: learn, decide and measure a fold at a time.

    Interrupted, it goes on; a fold that is finished is not repeated.

    Args:
        file: the recipe.
        root: folder of the data.
        out: holds a run's folder for each fold, and the table of all.
        device: to learn and run on.
        told: hears how far the learning of a fold is.
        report: hears how far the measuring of a fold is.

    Returns:
        The figures of all folds together.
    """
    plan = recipe.read(file)
    said: list[Outcome] = []
    for number, parted in enumerate(folds(plan, root)):
        folder = out / f"fold-{number}"
        learnt = _learn(plan, file.read_text(), parted, root, folder, device, told)
        kept = folder / page.FOLDS
        if not kept.is_file():
            judged = evaluating.judge(
                plan, learnt, parted.parts, {}, device=device, fold=number, report=report
            )
            outcomes.write(judged.outcomes, kept)
        said += outcomes.read(kept)
    outcomes.write(said, out / page.FOLDS)
    document = evaluating.with_cross_validation({"sets": {}}, said, plan)
    evaluating.write(document, out / "cross_validation.json")
    return document


def export(out: Path, root: Path, folder: Path, file: Path | None = None) -> Bundle:
    """Make a bundle of a run that was evaluated.

    Args:
        out: the run's folder.
        root: folder of the data, of which a few are shown to both code paths.
        folder: of the bundle, new or empty.
        file: a recipe with other words than the run's.

    Raises:
        ExportRefused: see ``training.export``.
    """
    plan = _plan(out, file)
    return exporting.export(plan, out, folder, part(plan, root).parts["train"])


def _plan(out: Path, file: Path | None) -> Recipe:
    if file is None and not (out / RECIPE).is_file():
        raise RunError(f"{out.name} is no run's folder: it holds no {RECIPE}; run train first")
    return recipe.read(file or out / RECIPE)


def _same_samples(out: Path, parted: Parted) -> None:
    """Refuse to measure on what was learnt from.

    Raises:
        RunError: the parts are not those of the run.
    """
    known = json.loads((out / "data.json").read_text())["parts"]
    names: tuple[Part, ...] = ("train", "val")
    for name in names:
        before = set(known.get(name, {}).get("names", []))
        now = {sample.name for sample in parted.parts[name]}
        if differs := sorted(before ^ now):
            raise RunError(
                f"the data are not those that {out.name} learnt from: {name} differs in "
                f"{listed(differs)}; use the data of then, or train again into another folder"
            )
