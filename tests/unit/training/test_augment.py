"""Variations: image and truth move together, draws come from the generator alone."""

from __future__ import annotations

import torch

from training.augment import augment
from training.recipe import Training

HOW = Training(
    weights="", epochs=1, encoder_rate=1e-3, decoder_rate=1e-3, flips=True, intensity=0.5
)
STILL = HOW.model_copy(
    update={"flips": False, "degrees": 0.0, "zoom": (1.0, 1.0), "shift": 0.0, "intensity": 0.0}
)


def squares(n=8):
    x = torch.zeros(n, 1, 64, 64)
    x[:, :, 10:30, 20:50] = 1
    return x


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_changes_at_strength_nought():
    x = squares()
    image, truth = augment(x, x, STILL, generator())
    torch.testing.assert_close(image, x, atol=1e-3, rtol=0)
    torch.testing.assert_close(truth, x, atol=1e-5, rtol=0)


def test_truth_moves_with_its_image():
    moving = HOW.model_copy(update={"intensity": 0.0})
    x = squares()
    image, truth = augment(x, x, moving, generator())
    assert float((truth - x).abs().mean()) > 0.01
    torch.testing.assert_close(image, truth, atol=1e-3, rtol=0)


def test_intensity_changes_the_image_and_never_the_truth():
    bright = STILL.model_copy(update={"intensity": 0.5})
    x = squares()
    image, truth = augment(x, x, bright, generator())
    assert float((image - x).abs().mean()) > 0.01
    torch.testing.assert_close(truth, x, atol=1e-5, rtol=0)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1


def test_one_seed_gives_one_variation():
    one, two, other = (augment(squares(), squares(), HOW, generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_each_image_of_a_batch_varies_in_its_own_way():
    image, _ = augment(squares(2), squares(2), HOW, generator())
    assert not torch.allclose(image[0], image[1], atol=0.05)
