"""From a stack to the network and back: scaled as told, turned as told, and returned in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.manifest import Preprocessing
from inference.preprocessing import geometry, prepare, scaled
from tests.stacks import ct, radiograph

PLAIN = {"mean": [0.0], "std": [1.0]}


def spec(**changes):
    return Preprocessing(**{"window": (0, 1), "size": (64, 64), **PLAIN, **changes})


def corner(rows=40, columns=60):
    """Bright only at the patient's upper right: the image's first corner under (L, F)."""
    pixels = np.zeros((rows, columns), np.float32)
    pixels[: rows // 4, : columns // 4] = 1
    return pixels


TURNS = {
    ("L", "F"): lambda a: a,
    ("R", "F"): lambda a: a[:, ::-1],
    ("L", "H"): lambda a: a[::-1],
    ("R", "H"): lambda a: a[::-1, ::-1],
    ("F", "L"): lambda a: a.T,
    ("F", "R"): lambda a: a[:, ::-1].T,
    ("H", "L"): lambda a: a[::-1].T,
    ("H", "R"): lambda a: a[::-1, ::-1].T,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_however_a_radiograph_lies_the_network_sees_it_the_same_way(orientation):
    as_read, _ = prepare(radiograph(corner()), spec(orient=True))
    turned = np.ascontiguousarray(TURNS[orientation](corner()))
    x, _ = prepare(radiograph(turned, patient_orientation=orientation), spec(orient=True))
    torch.testing.assert_close(x, as_read)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("orientation", TURNS)
def test_what_the_network_finds_comes_back_to_where_it_was(orientation, fit):
    pixels = np.ascontiguousarray(TURNS[orientation](corner(80, 120)))
    stack = radiograph(pixels, patient_orientation=orientation)
    x, where = prepare(stack, spec(orient=True, fit=fit))
    back = where.back(x)[0, 0].numpy() > 0.5
    assert back.shape == pixels.shape
    assert (back != (pixels > 0.5)).mean() < 0.02


@pytest.mark.parametrize("orientation", [None, ("A", "F"), ("L", "P")])
def test_an_image_that_is_not_known_to_be_frontal_is_left_as_it_is(orientation):
    stack = radiograph(corner(), patient_orientation=orientation)
    where = geometry(stack, spec(orient=True))
    assert (where.transposed, where.flipped) == (False, (False, False))


def test_a_model_that_does_not_ask_for_it_gets_no_turn():
    where = geometry(radiograph(corner(), patient_orientation=("R", "F")), spec())
    assert where.flipped == (False, False)


def test_oblique_directions_count_by_their_first_letter():
    where = geometry(radiograph(corner(), patient_orientation=("RA", "FP")), spec(orient=True))
    assert where.flipped == (False, True)


def test_a_window_maps_its_bounds_to_0_and_1_and_cuts_beyond():
    hu = np.array([[[-2000, -1000], [0, 3000]]], np.int16)
    x = scaled(ct(hu), spec(window=(-1000, 1000)))
    assert x[0, 0].tolist() == [[0, 0], [0.5, 1]]


def test_percentiles_are_taken_from_each_frame_alone():
    frames = np.stack([np.linspace(0, 1, 10000), np.linspace(5, 7, 10000)]).reshape(2, 100, 100)
    x = scaled(ct(frames.astype(np.float32)), spec(window=None, percentiles=(10, 90)))
    torch.testing.assert_close(x[0], x[1], atol=1e-4, rtol=0)
    assert float(x[0].mean()) == pytest.approx(0.5, abs=1e-3)
    assert float((x[0] == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_padding_has_no_say_in_the_percentiles_and_becomes_the_low_value():
    pixels = np.full((100, 100), 50_000, np.uint16)
    pixels[:50] = np.linspace(100, 200, 5000).reshape(50, 100)
    valid = np.zeros((1, 100, 100), bool)
    valid[:, :50] = True
    x = scaled(radiograph(pixels, valid=valid), spec(window=None, percentiles=(0, 100)))
    assert float(x[0, 0, 50:].max()) == 0
    assert float(x[0, 0, 49, 99]) == pytest.approx(1)
    assert float(x[0, 0, 25].mean()) == pytest.approx(0.5, abs=0.02)


def test_a_flat_frame_gives_numbers():
    x = scaled(radiograph(np.full((50, 50), 7, np.uint8)), spec(window=None, percentiles=(1, 99)))
    assert bool(torch.isfinite(x).all())


def test_channels_repeat_and_are_normalised_one_by_one():
    two = spec(mean=[0.5, 0.25, 0.0], std=[0.5, 0.25, 1.0])
    x, _ = prepare(radiograph(np.full((64, 64), 0.5, np.float32)), two)
    assert x.shape == (1, 3, 64, 64)
    assert x[0, :, 5, 5].tolist() == [0, 1, 0.5]


def test_padding_keeps_the_aspect_and_is_black_before_normalisation():
    x, where = prepare(radiograph(np.ones((100, 50), np.float32)), spec())
    assert (where.content, where.offset) == ((64, 32), (0, 16))
    assert float(x[..., :16].max()) == 0
    assert float(x[..., 16:48].min()) == pytest.approx(1)


def test_frames_can_be_taken_by_slice_and_are_the_same_as_all_at_once():
    rng = np.random.default_rng(0)
    stack = ct(rng.integers(-1000, 1000, (7, 90, 70)).astype(np.int16))
    window = spec(window=(-1000, 1000))
    whole, _ = prepare(stack, window)
    parts = [prepare(stack, window, slice(i, i + 3))[0] for i in range(0, 7, 3)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_every_type_of_pixel_is_taken(dtype):
    x = scaled(radiograph(np.arange(100, dtype=dtype).reshape(10, 10)), spec(window=(0, 99)))
    assert float(x[0, 0, 9, 9]) == pytest.approx(1)


def test_the_stack_is_not_altered():
    pixels = np.linspace(-1, 2, 64 * 64, dtype=np.float32).reshape(64, 64)
    before = pixels.copy()
    prepare(radiograph(pixels), spec())
    assert np.array_equal(pixels, before)
