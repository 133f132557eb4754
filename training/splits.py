"""Owns who is learnt from, who decides and who is measured; never parts a group, sees no pixel.

Shares and folds are stratified by class or grade (scikit-learn's StratifiedGroupKFold); objects
and masks are dealt by number of samples alone. Generated samples are learnt from and never held
out, unless the data themselves put them elsewhere.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from inference.manifest import Task
from training.errors import DataError, listed
from training.recipe import Split
from training.samples import Part, Sample

STRATIFIED: tuple[Task, ...] = ("classification", "grading")

FINEST = 20
"""Bins that a share is made of, at most."""

NEAR_ENOUGH = 0.01
"""How far a share may be from what the recipe asks, for the sake of larger bins."""


def parts(samples: Sequence[Sample], split: Split, task: Task) -> dict[Part, list[Sample]]:
    """Training, validation and test samples; shares are of all that may be parted.

    Where the data put samples into parts (``Sample.part``) they stay there, others join the
    training part, and what is missing is made: a validation part is carved from training samples
    unless its share is 0, a test part only if the data fix none of the parts.

    Raises:
        DataError: there are fewer groups than parts, or a class is missing in one of them.
    """
    fixed: dict[Part, list[Sample]] = {"train": [], "val": [], "test": []}
    for sample in samples:
        fixed[sample.part or "train"].append(sample)
    train, val, test = fixed["train"], fixed["val"], fixed["test"]
    untouched = all(sample.part is None for sample in samples)
    share = split.validation
    if untouched and split.test > 0:
        needed = 3 if share else 2
        test, train = _carve(train, split.test, split.seed, task, needed)
        share = split.validation / (1 - split.test)
    if not val and share:
        if share >= 1:
            raise DataError("split: test and validation leave nobody to learn from (lower one)")
        val, train = _carve(train, share, split.seed, task, 2)
    return _checked({"train": train, "val": val, "test": test}, task)


def folds(samples: Sequence[Sample], split: Split, task: Task) -> list[dict[Part, list[Sample]]]:
    """``split.folds`` ways to part samples; each real one is in the test part of exactly one.

    A test part that the data fix is left out altogether, it is not for choosing between recipes;
    their validation part is dealt with the rest. Validation samples are carved from those that
    are not tested on, their share is of all.

    Raises:
        DataError: there are fewer groups than folds, or a class is missing in a part.
    """
    count = split.folds
    offered = [sample for sample in samples if sample.part != "test"]
    real = [sample for sample in offered if not sample.generated]
    share = min(split.validation / (1 - 1 / count), 0.5)
    made: list[dict[Part, list[Sample]]] = []
    for held in _deal(real, count, split.seed, task):
        test = [sample for sample in real if sample.group in held]
        rest = [sample for sample in offered if sample.group not in held]
        val, train = _carve(rest, share, split.seed, task, 2) if share else ([], rest)
        made.append(_checked({"train": train, "val": val, "test": test}, task))
    return made


def _carve(
    samples: Sequence[Sample], share: float, seed: int, task: Task, needed: int
) -> tuple[list[Sample], list[Sample]]:
    """Groups that hold ``share`` of the real samples, and all that is left.

    Args:
        samples: of which generated ones are left.
        share: over 0, under 1.
        seed: of the drawing.
        task: decides what is stratified.
        needed: in how many parts these samples will end.
    """
    real = [sample for sample in samples if not sample.generated]
    most = _scarcest(real, task)
    if most.groups < needed:
        raise DataError(
            f"{most.what} has {most.groups} groups of samples, {needed} parts need one each: "
            "add some, or fix parts in the data"
        )
    if task in STRATIFIED:
        bins, taken = _ratio(share, min(most.groups, FINEST))
        dealt = _deal(real, bins, seed, task)
        held = _nearest(dealt, taken, round(share * len(real)), _sizes(real), seed)
    else:
        held = _drawn(real, share, seed)
    chosen = [sample for sample in real if sample.group in held]
    return chosen, [sample for sample in samples if sample.generated or sample.group not in held]


def _nearest(
    dealt: Sequence[set[str]], taken: int, wanted: int, sizes: dict[str, int], seed: int
) -> set[str]:
    """Of ``taken`` bins that follow each other in drawn order those nearest to the wanted size.

    A bin with one large group may hold twice what the others hold.
    """
    drawn = np.random.default_rng(seed).permutation(len(dealt)).tolist()
    choices = [
        set().union(*(dealt[i] for i in (drawn + drawn)[start : start + taken]))
        for start in range(len(drawn))
    ]
    return min(choices, key=lambda held: abs(sum(sizes[group] for group in held) - wanted))


def _drawn(samples: Sequence[Sample], share: float, seed: int) -> set[str]:
    """Groups in drawn order, as many as fit into the share; the smallest where none does."""
    sizes = _sizes(samples)
    room = round(share * len(samples))
    held: set[str] = set()
    for group in np.random.default_rng(seed).permutation(sorted(sizes)).tolist():
        if sizes[group] <= room and len(held) < len(sizes) - 1:
            held.add(group)
            room -= sizes[group]
    return held or {min(sorted(sizes), key=sizes.__getitem__)}


def _sizes(samples: Sequence[Sample]) -> dict[str, int]:
    """Samples of each group."""
    return dict(Counter(sample.group for sample in samples))


def _ratio(share: float, most: int) -> tuple[int, int]:
    """Bins and how many of them make the share: the fewest bins that come near enough."""
    pairs = [(bins, taken) for bins in range(2, most + 1) for taken in range(1, bins)]
    for bins, taken in pairs:
        if abs(taken / bins - share) <= NEAR_ENOUGH:
            return bins, taken
    return min(pairs, key=lambda pair: abs(pair[1] / pair[0] - share))


@dataclass(frozen=True)
class _Scarce:
    """What there is least of: in words, and in how many groups."""

    what: str
    groups: int


def _scarcest(samples: Sequence[Sample], task: Task) -> _Scarce:
    """The class of fewest groups, or all samples where classes are not stratified."""
    of: dict[str, set[str]] = {}
    for sample in samples:
        for kind in _kinds(sample, task):
            of.setdefault(kind, set()).add(sample.group)
    every = _Scarce("the data set", len({sample.group for sample in samples}))
    return min((_Scarce(k, len(g)) for k, g in sorted(of.items())), key=_groups, default=every)


def _groups(scarce: _Scarce) -> int:
    return scarce.groups


def _kinds(sample: Sample, task: Task) -> list[str]:
    """What a sample shows, in words: each must be shown in every part."""
    truth = sample.truth
    if task == "classification" and truth.classes is not None:
        return [f"class {c}{'' if v else ' absent'}" for c, v in enumerate(truth.classes)]
    if task == "grading":
        return [f"grade {truth.grade}"]
    if task == "detection":
        return [f"kind {kind} of object" for kind in {box.kind for box in truth.boxes or ()}]
    return []


def _deal(samples: Sequence[Sample], bins: int, seed: int, task: Task) -> list[set[str]]:
    """Groups in ``bins`` bins of like size and, for classes and grades, of like composition."""
    scarce = _scarcest(samples, task)
    if scarce.groups < bins:
        raise DataError(
            f"{bins} folds need as many groups of each class, {scarce.what} has {scarce.groups}: "
            "ask for fewer folds (split.folds), or add samples"
        )
    if task not in STRATIFIED:
        return _by_size(samples, bins, seed)
    strata = np.array(["; ".join(_kinds(sample, task)) for sample in samples])
    groups = np.array([sample.group for sample in samples])
    dealer = StratifiedGroupKFold(bins, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Rare combinations of classes cannot be in every bin; single classes are checked after.
        warnings.simplefilter("ignore", UserWarning)
        try:
            dealt = [held for _, held in dealer.split(strata, strata, groups)]
        except ValueError:  # every combination is rarer than the bins
            return _by_size(samples, bins, seed)
    return [set(groups[held].tolist()) for held in dealt]


def _by_size(samples: Sequence[Sample], bins: int, seed: int) -> list[set[str]]:
    """Groups are dealt, largest first and in drawn order, to the bin that holds least."""
    sizes = _sizes(samples)
    drawn = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    dealt: list[set[str]] = [set() for _ in range(bins)]
    held = [0] * bins
    for group in sorted(drawn, key=lambda g: -sizes[g]):
        least = held.index(min(held))
        dealt[least].add(group)
        held[least] += sizes[group]
    return dealt


def _checked(made: dict[Part, list[Sample]], task: Task) -> dict[Part, list[Sample]]:
    """The parts, if each that is not empty shows what all of them show."""
    shown = {
        part: {kind for sample in samples for kind in _kinds(sample, task)}
        for part, samples in made.items()
        if samples
    }
    everything = set().union(*shown.values())
    missing = [
        f"{kind} in {part}" for part, kinds in shown.items() for kind in sorted(everything - kinds)
    ]
    if missing:
        raise DataError(
            f"classes are missing in parts of the split: {listed(missing)}; add samples, ask for "
            "larger parts or fewer folds, or try another split.seed"
        )
    if not made["train"]:
        raise DataError("the split leaves nobody to learn from: lower split.test")
    return made
