"""Owns who is learnt from and who is held out; never parts a group, never sees a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.datasets import Sample


def folds(
    samples: Sequence[Sample], count: int, seed: int
) -> list[tuple[list[Sample], list[Sample]]]:
    """``count`` pairs (learn, held out); each real sample is held out exactly once.

    Groups are dealt, largest first and in drawn order, to the fold that holds least, so that
    folds are of like size. Generated samples are learnt from in every fold and never held out.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    real = [sample for sample in samples if not sample.generated]
    sizes: dict[str, int] = {}
    for sample in real:
        sizes[sample.group] = sizes.get(sample.group, 0) + 1
    if len(sizes) < count:
        raise ValueError(f"{count} folds need as many groups, there are {len(sizes)}")
    drawn = list(np.random.default_rng(seed).permutation(sorted(sizes)))
    dealt: list[set[str]] = [set() for _ in range(count)]
    held = [0] * count
    for group in sorted(drawn, key=lambda g: -sizes[g]):
        least = held.index(min(held))
        dealt[least].add(group)
        held[least] += sizes[group]
    return [
        (
            [s for s in samples if s.generated or s.group not in groups],
            [s for s in real if s.group in groups],
        )
        for groups in dealt
    ]
