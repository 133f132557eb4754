"""The phantoms: the same arguments give the same bytes, other arguments other numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from inference.phantoms import Lesion, chest_radiograph, ct_volume

SIZE = (256, 240)


def test_a_seed_gives_the_same_radiograph_twice_and_another_another():
    one, two, other = (chest_radiograph(seed, SIZE)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_radiograph_is_brightness_with_masks_of_its_shape():
    picture, masks = chest_radiograph(3, SIZE)
    assert picture.shape == SIZE
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert {name: mask.shape for name, mask in masks.items()} == dict.fromkeys(
        ["right_lung", "left_lung", "lesion"], SIZE
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_right_lung_lies_at_the_images_left_and_is_darker_than_what_is_around(seed):
    picture, masks = chest_radiograph(seed, SIZE)
    columns = np.arange(SIZE[1])
    centre = {k: (m.sum(0) * columns).sum() / m.sum() for k, m in masks.items() if m.any()}
    assert centre["right_lung"] < centre["left_lung"]
    lungs = masks["right_lung"] | masks["left_lung"]
    assert not (masks["right_lung"] & masks["left_lung"]).any()
    assert picture[lungs].mean() < picture[SIZE[0] // 4 :, SIZE[1] // 2].mean()
    assert 0.05 < lungs.mean() < 0.6


def test_a_smaller_lung_is_smaller_on_its_own_side_only():
    whole = chest_radiograph(4, SIZE)[1]
    small = chest_radiograph(4, SIZE, lung_scale=(1.0, 0.7))[1]
    assert small["left_lung"].sum() < 0.8 * whole["left_lung"].sum()
    assert np.array_equal(small["right_lung"], whole["right_lung"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_lesion_brightens_its_own_lung(side):
    plain, _ = chest_radiograph(5, SIZE, noise=0)
    marked, masks = chest_radiograph(5, SIZE, noise=0, lesion=Lesion(side))
    inside = masks["lesion"]
    assert (inside & masks[f"{side}_lung"]).sum() > 0.8 * inside.sum()
    assert (marked - plain)[inside].mean() > 0.1
    assert np.abs(marked - plain)[~inside].mean() < 0.01


@pytest.mark.parametrize("region", ["head", "chest", "abdomen"])
def test_air_and_bone_lie_inside_the_body_and_have_their_density(region):
    hu, masks = ct_volume(1, 6, 128, region, noise=5)
    assert hu.shape == (6, 128, 128)
    assert hu.dtype == np.int16
    for name in ("air", "bone"):
        assert masks[name].any()
        assert not (masks[name] & ~masks["body"]).any()
    assert not (masks["air"] & masks["bone"]).any()
    assert hu[masks["air"]].max() < -300
    assert hu[masks["bone"]].min() > 150
    assert hu[~masks["body"]].mean() < -800


def test_the_air_of_a_volume_follows_its_argument():
    large, small = (ct_volume(2, 6, 128, air_scale=s)[1]["air"].sum() for s in (1.0, 0.6))
    assert small < 0.7 * large


def test_a_seed_gives_the_same_volume_twice():
    assert np.array_equal(ct_volume(7, 3, 64)[0], ct_volume(7, 3, 64)[0])


def test_drawing_needs_numpy_only():
    code = (
        "import sys, inference.phantoms;"
        "assert not {'torch', 'scipy', 'pydicom'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
