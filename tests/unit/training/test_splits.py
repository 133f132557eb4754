"""Splits: a patient is on one side, is held out once, and every class is on every side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.stacks import radiograph
from training.errors import DataError
from training.recipe import Split
from training.samples import Sample, TrueBox, Truth
from training.splits import folds, parts

NOTHING = Truth()


def sample(name: str, group: str, truth: Truth = NOTHING, **more: Any) -> Sample:
    return Sample(name, group, lambda: radiograph(np.zeros((4, 4))), truth, **more)


def of_class(present: bool, number: int, group: str | None = None, **more: Any) -> Sample:
    name = f"{'ill' if present else 'well'}-{number}"
    return sample(name, group or name, Truth(classes=(float(present),)), **more)


UNEQUAL = [sample(f"{group}-{i}", group) for group in "abcdefgh" for i in range(ord(group) % 4 + 1)]
ILL = [of_class(number % 5 == 0, number, f"patient-{number // 2}") for number in range(200)]


def groups(samples: Sequence[Sample]) -> set[str]:
    return {s.group for s in samples}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("samples", "task"), [(UNEQUAL, "segmentation"), (ILL, "classification")])
def test_no_group_is_parted_and_each_is_held_out_once(samples, task, seed):
    held_out = []
    for made in folds(samples, Split(folds=3, seed=seed), task):
        train, val, test = made["train"], made["val"], made["test"]
        assert not groups(train) & groups(test)
        assert not groups(val) & (groups(train) | groups(test))
        assert len(train) + len(val) + len(test) == len(samples)
        held_out += [s.name for s in test]
    assert sorted(held_out) == sorted(s.name for s in samples)


@pytest.mark.parametrize("seed", range(5))
def test_parts_hold_their_share_of_samples_and_of_each_class(seed):
    made = parts(ILL, Split(test=0.2, validation=0.15, seed=seed), "classification")
    assert not groups(made["train"]) & (groups(made["val"]) | groups(made["test"]))
    assert not groups(made["val"]) & groups(made["test"])
    assert len(made["test"]) == pytest.approx(40, abs=4)
    assert len(made["val"]) == pytest.approx(30, abs=4)
    for found in made.values():
        ill = sum(s.truth.classes == (1.0,) for s in found) / len(found)
        assert ill == pytest.approx(0.2, abs=0.05)


def test_grades_are_stratified():
    graded = [sample(str(i), str(i), Truth(grade=i % 10 // 4)) for i in range(100)]
    made = parts(graded, Split(test=0.2, validation=0.2), "grading")
    assert Counter(s.truth.grade for s in made["test"]) == {0: 8, 1: 8, 2: 4}


def test_folds_are_of_like_size():
    sizes = [len(m["test"]) for m in folds(UNEQUAL, Split(folds=3), "segmentation")]
    assert max(sizes) - min(sizes) <= 4


def test_generated_samples_are_learnt_from_and_never_held_out():
    drawn = of_class(True, 999, generated=True)
    samples = [*ILL, drawn]
    made_of_it = folds(samples, Split(), "classification")
    for made in (*made_of_it, parts(samples, Split(), "classification")):
        assert drawn in made["train"]
        assert drawn not in made["val"] + made["test"]


def test_a_seed_deals_the_same_again_and_another_otherwise():
    def names(seed):
        made = parts(ILL, Split(seed=seed), "classification")
        return [[s.name for s in found] for found in made.values()]

    assert names(1) == names(1)
    assert names(1) != names(2)


def test_the_order_of_samples_does_not_matter():
    one = parts(ILL, Split(), "classification")
    other = parts(ILL[::-1], Split(), "classification")
    assert {p: groups(s) for p, s in one.items()} == {p: groups(s) for p, s in other.items()}


def test_a_published_split_is_kept():
    fixed = [of_class(i % 2 == 0, i, part=("train", "val", "test")[i % 3]) for i in range(30)]
    made = parts(fixed, Split(), "classification")
    for part, found in made.items():
        assert [s.name for s in found] == [s.name for s in fixed if s.part == part]


def test_validation_is_carved_from_training_where_only_a_test_part_is_published():
    fixed = [of_class(i % 2 == 0, i, part="test" if i < 20 else "train") for i in range(100)]
    made = parts(fixed, Split(validation=0.25), "classification")
    assert [s.name for s in made["test"]] == [s.name for s in fixed[:20]]
    assert len(made["val"]) == 20
    assert len(made["train"]) == 60


def test_samples_that_no_part_claims_join_the_training_part():
    free = [of_class(i % 2 == 0, i) for i in range(10)]
    fixed = [of_class(i % 2 == 0, i, part="val" if i < 104 else "test") for i in range(100, 108)]
    made = parts([*free, *fixed], Split(), "classification")
    assert made["train"] == free


def test_a_published_test_part_is_never_in_a_fold():
    fixed = [of_class(i % 2 == 0, i, part=("train", "val", "test")[i % 3]) for i in range(60)]
    for made in folds(fixed, Split(folds=2), "classification"):
        assert not any(s.part == "test" for found in made.values() for s in found)
        assert sum(map(len, made.values())) == 40


def test_nothing_is_tested_on_where_the_recipe_holds_nothing_out():
    made = parts(ILL, Split(test=0), "classification")
    assert made["test"] == []
    assert len(made["train"]) + len(made["val"]) == len(ILL)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_patient_of_many_images_is_not_all_that_is_held_out(task):
    many = [of_class(i % 2 == 0, i, "often" if i < 14 else f"{i}") for i in range(100)]
    seeds = [parts(many, Split(test=0, validation=0.15, seed=seed), task) for seed in range(8)]
    assert sum(groups(made["val"]) == {"often"} for made in seeds) <= 1
    assert sum("often" in groups(made["val"]) for made in seeds) < 4
    assert all(len(made["val"]) == pytest.approx(15, abs=4) for made in seeds)


def test_groups_larger_than_the_share_leave_the_smallest_to_decide():
    large = [sample(f"{g}-{i}", g) for g, n in (("a", 9), ("b", 6), ("c", 9)) for i in range(n)]
    made = parts(large, Split(test=0, validation=0.1), "segmentation")
    assert groups(made["val"]) == {"b"}


def test_nobody_decides_where_the_recipe_lets_nobody_decide():
    split = Split(test=0.2, validation=0, folds=3)
    for made in (parts(ILL, split, "classification"), *folds(ILL, split, "classification")):
        assert made["val"] == []
        assert len(made["train"]) + len(made["test"]) == len(ILL)


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(DataError, match=r"9 folds .* the data set has 8.*split\.folds"):
        folds(UNEQUAL, Split(folds=9), "segmentation")


def test_a_class_of_fewer_groups_than_folds_is_named():
    rare = [of_class(i < 6, i, "one" if i < 4 else None) for i in range(100)]
    with pytest.raises(DataError, match="class 0 has 3"):
        folds(rare, Split(folds=5), "classification")


def test_a_class_of_fewer_groups_than_parts_is_named():
    rare = [of_class(i < 6, i, "one" if i < 4 else "two" if i < 6 else None) for i in range(100)]
    with pytest.raises(DataError, match="class 0 has 2 groups of samples, 3 parts need one each"):
        parts(rare, Split(), "classification")


def test_a_class_that_a_published_part_lacks_is_named():
    fixed = [of_class(i % 2 == 0 and i < 20, i, part="train") for i in range(40)]
    fixed += [of_class(False, i, part="val") for i in range(40, 50)]
    with pytest.raises(DataError, match="class 0 in val"):
        parts(fixed, Split(), "classification")


def test_kinds_of_object_are_in_every_part():
    def boxed(i, *kinds):
        return sample(str(i), str(i), Truth(boxes=tuple(TrueBox(k, 0, 0, 1, 1) for k in kinds)))

    made = parts([boxed(i, 0, 1) for i in range(20)], Split(), "detection")
    assert sorted(len(s) for s in made.values()) == [3, 4, 13]
    with pytest.raises(DataError, match="kind 1 of object has 1 groups"):
        parts([boxed(i, 0) for i in range(20)] + [boxed(99, 1)], Split(), "detection")


def test_rare_combinations_of_classes_are_dealt_all_the_same():
    rng = np.random.default_rng(0)
    many = [
        sample(str(i), str(i), Truth(classes=tuple((rng.random(6) < 0.5).astype(float))))
        for i in range(60)
    ]
    held = [s.name for m in folds(many, Split(folds=5), "classification") for s in m["test"]]
    assert sorted(held) == sorted(s.name for s in many)


def test_shares_that_leave_nobody_are_refused():
    with pytest.raises(DataError, match="leave nobody to learn from"):
        parts(ILL, Split(test=0.6, validation=0.4), "classification")
