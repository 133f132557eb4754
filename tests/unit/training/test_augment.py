"""Variations: image and truth move together, and depend on their seeds alone."""

from __future__ import annotations

import pytest
import torch

from training.augment import Varied, augment, generator
from training.recipe import Augment

STILL = Augment(degrees=0, zoom=(1.0, 1.0), shift=0, intensity=0)
MOVING = Augment(degrees=20, zoom=(0.8, 1.2), shift=0.1, intensity=0, flips=True)
ALL = Augment(degrees=20, zoom=(0.8, 1.2), shift=0.1, intensity=0.5, flips=True, erase=0.5)


def square(channels=1, bright=1.0):
    image = torch.zeros(channels, 64, 64)
    image[:, 20:40, 24:50] = bright
    masks = (image[:1] > 0).to(torch.uint8)
    boxes = {"boxes": torch.tensor([[24.0, 20, 50, 40]]), "labels": torch.tensor([3])}
    return Varied(image, masks, boxes)


def seen(one, how, seed, **more):
    return augment(one, how, (seed, 1, 2), **more)


def test_nothing_changes_at_strength_nought():
    one = square()
    other = seen(one, STILL, 0)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.boxes["boxes"], other.boxes["boxes"])


@pytest.mark.parametrize("seed", range(6))
def test_masks_and_boxes_move_with_their_image(seed):
    one = square()
    other = seen(one, MOVING, seed)
    assert float((other.image - one.image).abs().mean()) > 0.01
    wrong = (other.image[0] > 0.5) != (other.masks[0] > 0)
    assert int(wrong.sum()) < 40  # on the edge: one is bilinear, the other takes the nearest
    rows, columns = torch.nonzero(other.masks[0], as_tuple=True)
    tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = other.boxes["boxes"][0].tolist()
    assert box == pytest.approx([float(edge) for edge in tight], abs=1.6)
    assert other.boxes["labels"].tolist() == [3]


def test_a_mirrored_sample_has_its_left_at_the_right():
    flips = STILL.model_copy(update={"flips": True})
    lefts = {seen(square(), flips, seed).boxes["boxes"][0, 0].item() for seed in range(12)}
    assert lefts == {24.0, 64.0 - 50}


def test_nothing_is_mirrored_unless_asked():
    one = square()
    straight = MOVING.model_copy(update={"flips": False, "degrees": 0.0, "zoom": (1.0, 1.0)})
    one.image[:, 20:40, 24:30] = 0.5  # its darker side
    for seed in range(12):
        image = seen(one, straight, seed).image[0]
        assert float((image > 0.9).float().argmax(1).max()) > float(
            ((image > 0.4) & (image < 0.6)).float().argmax(1).max()
        )


def test_intensity_changes_the_image_and_never_the_truth():
    one = square(bright=0.5)
    other = seen(one, STILL.model_copy(update={"intensity": 0.5}), 0)
    assert float((other.image - one.image).abs().mean()) > 0.01
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.boxes["boxes"], other.boxes["boxes"])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("rgb", [True, False])
def test_images_stay_between_black_and_white(channels, rgb):
    if rgb and channels != 3:
        pytest.skip("colours are three")
    for seed in range(8):
        image = seen(square(channels), ALL, seed, rgb=rgb).image
        assert image.shape == (channels, 64, 64)
        assert image.dtype == torch.float32
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1


def test_what_moves_in_from_outside_is_black_as_padding_is():
    white = Varied(torch.ones(1, 64, 64))
    small = ALL.model_copy(update={"zoom": (0.5, 0.5), "shift": 0.0, "erase": 0.0, "degrees": 0.0})
    image = seen(white, small, 1).image[0]
    assert not image[:14].any()
    assert not image[:, :14].any()
    assert float(image[20:44, 20:44].min()) > 0.1


def test_a_patch_is_blanked_as_often_as_asked():
    white = Varied(torch.ones(1, 64, 64))
    erase = STILL.model_copy(update={"erase": 0.5})
    shares = [float((seen(white, erase, seed).image == 0).float().mean()) for seed in range(200)]
    assert 70 < sum(share > 0 for share in shares) < 130
    assert max(shares) < 0.25


def test_a_box_that_leaves_the_image_is_cut_or_gone():
    away = STILL.model_copy(update={"shift": 0.9})
    counts = set()
    for seed in range(60):
        boxes = seen(square(), away, seed).boxes
        counts.add(len(boxes["boxes"]))
        assert len(boxes["boxes"]) == len(boxes["labels"])
        assert bool((boxes["boxes"] >= 0).all() and (boxes["boxes"] <= 64).all())
        areas = (boxes["boxes"][:, 2:] - boxes["boxes"][:, :2]).prod(1)
        assert bool((areas >= 26 * 20 / 4 - 1).all())
    assert counts == {0, 1}


def test_a_picture_without_boxes_stays_without():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    found = seen(Varied(torch.ones(1, 64, 64), None, empty), ALL, 0).boxes
    assert found["boxes"].shape == (0, 4)


def test_the_same_seeds_give_the_same_variation_whatever_was_drawn_before():
    one = seen(square(), ALL, 5)
    torch.rand(100)
    seen(square(), ALL, 6)
    two = seen(square(), ALL, 5)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.masks, two.masks)
    assert torch.equal(one.boxes["boxes"], two.boxes["boxes"])


def test_seed_epoch_and_place_each_give_another_variation():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 1)]
    images = [augment(square(), ALL, key).image for key in keys]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[i + 1 :])
    assert generator(0, 1).initial_seed() != generator(1, 0).initial_seed()
