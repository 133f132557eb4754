"""Pictures as they should not come."""

from __future__ import annotations

import numpy as np

from tests.stacks import radiograph
from training import wrong
from training.recipe import Augment


def test_four_quarters_are_no_turn_and_the_padding_turns_with_its_picture():
    picture = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    stack = radiograph(picture, valid=np.arange(24).reshape(1, 4, 6) < 5)
    once = wrong.made(stack, wrong.turned(1))
    assert once.pixels.shape == once.valid.shape == (1, 6, 4)
    assert not np.array_equal(once.pixels[0], picture.reshape(6, 4))
    thrice = wrong.made(once, wrong.turned(3))
    np.testing.assert_array_equal(thrice.pixels, stack.pixels)
    np.testing.assert_array_equal(thrice.valid, stack.valid)


def test_inverted_keeps_the_range_of_bytes():
    pixels = np.array([[[3, 255], [100, 3]]], np.uint8)
    np.testing.assert_array_equal(wrong.inverted(pixels), [[[255, 3], [158, 255]]])


def test_what_was_learnt_at_every_angle_is_not_wrong_when_turned():
    assert list(wrong.kinds(Augment(degrees=180))) == ["inverted"]
    assert len(wrong.kinds(Augment(degrees=10))) == 4
