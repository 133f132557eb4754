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


def test_what_is_cut_off_comes_back_as_nothing():
    stack = radiograph(np.arange(40 * 80, dtype=np.float32).reshape(40, 80) / 3200)
    cut = spec(size=(40, 40), fit="crop")
    x, where = prepare(stack, cut)
    assert where.content == (40, 80)
    assert x.shape[-2:] == (40, 40)
    torch.testing.assert_close(x, scaled(stack, cut)[..., 20:60])
    back = where.back(torch.ones(1, 1, 40, 40))
    assert back.shape[-2:] == (40, 80)
    assert back[..., 20:60].all()
    assert not back[..., :20].any()
    assert not back[..., 60:].any()
    boxes = np.array([[25.0, 3.0, 50.0, 30.0]])
    np.testing.assert_allclose(where.boxes_back(where.boxes_forward(boxes)), boxes)
    np.testing.assert_allclose(where.boxes_forward(boxes), [[5.0, 3.0, 30.0, 30.0]])


def test_a_picture_that_goes_through_a_smaller_one_keeps_no_finer_detail():
    fine = (np.indices((112, 112)).sum(0) % 2).astype(np.float32)
    x, where = prepare(radiograph(fine), spec(size=(112, 112), fit="crop", through=(28, 28)))
    assert where.via == (28, 28)
    assert float(x.std()) < 0.1 < float(fine.std())


def test_a_picture_of_that_very_size_goes_through_unchanged():
    picture = radiograph(np.random.default_rng(0).random((28, 28)).astype(np.float32))
    x, _ = prepare(picture, spec(size=(112, 112), fit="crop"))
    through, _ = prepare(picture, spec(size=(112, 112), fit="crop", through=(28, 28)))
    assert torch.equal(x, through)


def volume(count):
    """Slices that are recognised by their value: 0, 0.1, 0.2 ..."""
    return ct(np.stack([np.full((4, 4), i / 10, np.float32) for i in range(count)]))


NEIGHBOURS = {"neighbours": 1, "mean": [0.0] * 3, "std": [1.0] * 3}


def test_neighbours_become_channels_in_reading_order_and_the_ends_repeat():
    x = scaled(volume(4), spec(**NEIGHBOURS))
    assert x.shape == (4, 3, 4, 4)
    expected = [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    torch.testing.assert_close(x[:, :, 0, 0] * 10, torch.tensor(expected).float())


def test_two_neighbours_on_either_side_reach_over_the_end_of_a_short_volume():
    x = scaled(volume(2), spec(neighbours=2, mean=[0.0] * 5, std=[1.0] * 5))
    expected = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]).float()
    torch.testing.assert_close(x[:, :, 0, 0] * 10, expected)


@pytest.mark.parametrize("how", [{"window": (0, 1)}, {"window": None, "percentiles": (5, 95)}])
def test_slices_taken_a_few_at_a_time_have_the_neighbours_they_have_among_all(how):
    rng = np.random.default_rng(0)
    stack = ct(rng.random((7, 30, 20), np.float32))
    wanted = spec(**NEIGHBOURS, **how)
    whole, _ = prepare(stack, wanted)
    parts = [prepare(stack, wanted, slice(i, i + 3))[0] for i in range(0, 7, 3)]
    assert torch.equal(whole, torch.cat(parts))
    assert prepare(stack, wanted, slice(7, 9))[0].shape[0] == 0


def rgb(*colours, dtype=np.uint8):
    """One picture of one row of pixels."""
    return radiograph(np.array([colours], dtype=dtype))


def test_a_colour_pictures_grey_is_its_luminance():
    x = scaled(rgb((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)), spec())
    torch.testing.assert_close(x[0, 0, 0], torch.tensor([0.299, 0.587, 0.114, 1.0]))


def test_a_colour_model_sees_colours_in_their_order():
    colour = spec(colour="rgb", mean=[0.0] * 3, std=[1.0] * 3)
    x = scaled(rgb((255, 51, 0), (0, 102, 255)), colour)
    assert x.shape == (1, 3, 1, 2)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([1, 0.2, 0]))
    same = scaled(rgb((1, 0.2, 0), (0, 0.4, 1), dtype=np.float32), colour)
    torch.testing.assert_close(same, x)


def test_a_colour_model_sees_a_grey_picture_three_times():
    colour = spec(colour="rgb", mean=[0.0] * 3, std=[1.0] * 3)
    x = scaled(radiograph(np.array([[0.1, 0.9]], np.float32)), colour)
    assert x.shape == (1, 3, 1, 2)
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


def test_colours_keep_their_balance_under_percentiles():
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 200, 100
    how = spec(colour="rgb", window=None, percentiles=(0, 100), mean=[0.0] * 3, std=[1.0] * 3)
    x = scaled(radiograph(picture), how)
    torch.testing.assert_close(x[0, :, 5, 5], torch.tensor([1, 0.5, 0]))


def test_colour_pixels_that_are_not_valid_become_0():
    valid = np.array([[[True, False]]])
    stack = rgb((255, 255, 255), (255, 255, 255))
    for how in (spec(), spec(colour="rgb", mean=[0.0] * 3, std=[1.0] * 3)):
        x = scaled(ct(stack.pixels, valid=valid), how)
        assert x[0, :, 0, 0].min() == 1
        assert x[0, :, 0, 1].max() == 0


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_box_goes_where_its_pixels_go_and_comes_back(orientation, fit):
    pixels = np.zeros((80, 120), np.float32)
    pixels[10:30, 20:90] = 1
    turned = np.ascontiguousarray(TURNS[orientation](pixels))
    rows, columns = np.nonzero(turned)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], float)
    stack = radiograph(turned, patient_orientation=orientation)
    x, where = prepare(stack, spec(orient=True, fit=fit, size=(160, 160)))
    found = where.boxes_forward(box)
    rows, columns = np.nonzero(x[0, 0].numpy() > 0.5)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found[0], seen, atol=1)
    np.testing.assert_allclose(where.boxes_back(found), box, atol=1e-9)


def test_no_boxes_are_none_there_and_back():
    where = geometry(radiograph(corner()), spec())
    assert where.boxes_forward(np.zeros((0, 4))).shape == (0, 4)
    assert where.boxes_back(np.zeros((0, 4))).shape == (0, 4)
