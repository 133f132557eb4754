"""Samples: who may be learnt from, which lung is which, and what a rule calls bone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import training.recipes
from inference.preprocessing import prepare
from training import datasets
from training.datasets import linked_groups, load, right_and_left, rule_masks, tensors
from training.recipe import read

RECIPES = Path(training.recipes.__path__[0])


def boxes(right, left):
    return [{"label": "Right Lung", "bbox": right}, {"label": "Left Lung", "bbox": left}]


def test_each_part_of_a_mask_goes_to_the_box_that_holds_more_of_it():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 2:12] = True
    mask[5:15, 18:28] = True
    right, left = right_and_left(mask, boxes([0, 0, 14, 20], [10, 0, 20, 20]))
    assert right[10, 5]
    assert not right[10, 20]
    assert left[10, 20]
    assert np.array_equal(right | left, mask)


def test_sides_follow_the_boxes_not_the_place_in_the_image():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 2:12] = True
    right, left = right_and_left(mask, boxes([15, 0, 15, 20], [0, 0, 14, 20]))
    assert not right.any()
    assert np.array_equal(left, mask)


def test_images_of_a_patient_and_their_duplicates_are_one_group():
    entries = [
        {"id": "a", "patient": "1"},
        {"id": "b", "patient": "2", "dup_of": "a"},
        {"id": "c", "patient": "2"},
        {"id": "d", "patient": "3", "dup_of": None},
    ]
    groups = linked_groups(entries)
    assert groups["a"] == groups["b"] == groups["c"]
    assert groups["d"] != groups["a"]


def test_a_licence_is_allowed_by_its_whole_name():
    assert datasets._allowed("CC BY 4.0", ["CC BY 4.0"])
    assert not datasets._allowed("CC BY-NC-SA 4.0", ["CC BY", "CC BY 4.0"])
    assert not datasets._allowed("CC BY", ["CC BY 4.0"])


def test_only_licensed_radiographs_are_learnt_from_and_no_patient_is_on_both_sides(shared_data):
    recipe = read(RECIPES / "cxr-lungs.toml")
    samples = load(recipe.data, shared_data)
    real = [s for s in samples.learn if not s.generated]
    assert len(real) == 61
    assert {s.licence for s in real} <= {"CC BY 3.0", "CC BY 4.0"}
    assert len(samples.learn) - len(real) == recipe.data.phantoms
    held = [s for found in samples.test.values() for s in found]
    assert held
    assert not {s.group for s in held} & {s.group for s in samples.learn}
    for sample in real:
        right, left = sample.masks[:, 0]
        assert right.any()
        assert left.any()
        assert not (right & left).any()


@pytest.fixture
def shared_data():
    from tests.data import shared

    return shared("images", "cxr", "labels.json").parents[2]


def test_training_sees_what_the_service_sees():
    sample = datasets._chest_phantom(1)
    spec = read(RECIPES / "cxr-lungs.toml").bundle.preprocessing
    images, truths = tensors([sample], spec)
    x, _ = prepare(sample.stack, spec)
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    torch.testing.assert_close((images - mean) / std, x)
    assert truths.shape == (1, 2, 256, 256)
    assert truths[0, 0].sum() > 1000


def test_the_rule_leaves_the_table_fills_the_body_and_finds_air_and_bone_in_it():
    hu = np.full((1, 128, 128), -1000, np.int16)
    hu[0, 20:90, 20:110] = 40
    hu[0, 40:60, 40:60] = -900
    hu[0, 70:80, 70:80] = 700
    hu[0, 95:100, :] = 300  # the table
    body, air, bone = rule_masks(hu)[:, 0]
    assert body[50, 50]
    assert not body[97, 60]
    assert air.sum() == 400
    assert bone.sum() == 100
