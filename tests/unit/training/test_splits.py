"""Folds: a patient is never on both sides, and everyone is held out once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stacks import radiograph
from training.datasets import Sample
from training.splits import folds


def sample(name, group, generated=False):
    masks = np.zeros((1, 1, 4, 4), bool)
    return Sample(name, group, radiograph(np.zeros((4, 4))), masks, "CC0", generated)


SAMPLES = [sample(f"{group}-{i}", group) for group in "abcdefgh" for i in range(ord(group) % 4 + 1)]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_parted_and_each_is_held_out_once(seed):
    held_out = []
    for learn, held in folds(SAMPLES, 3, seed):
        assert not {s.group for s in learn} & {s.group for s in held}
        assert len(learn) + len(held) == len(SAMPLES)
        held_out += [s.name for s in held]
    assert sorted(held_out) == sorted(s.name for s in SAMPLES)


def test_folds_are_of_like_size():
    sizes = [len(held) for _, held in folds(SAMPLES, 3, 0)]
    assert max(sizes) - min(sizes) <= 4


def test_generated_samples_are_learnt_from_in_every_fold_and_never_held_out():
    drawn = sample("drawn", "drawn", generated=True)
    for learn, held in folds([*SAMPLES, drawn], 3, 0):
        assert any(s is drawn for s in learn)
        assert not any(s is drawn for s in held)


def test_a_seed_deals_the_same_folds_again_and_another_other_ones():
    names = [[s.name for _, held in folds(SAMPLES, 3, seed) for s in held] for seed in (1, 1, 2)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(ValueError, match="there are 8"):
        folds(SAMPLES, 9, 0)
