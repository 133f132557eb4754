import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference.display import SOFT_TISSUE, shown, window_of
from inference.reading import read
from inference.types import ImageStack
from tests import dicoms, stacks


def hounsfield(*values: float, **changes: object) -> ImageStack:
    return stacks.ct(np.array(values, dtype=np.int16).reshape(1, 1, -1), **changes)


def raw(pixels: NDArray[np.generic], **changes: object) -> ImageStack:
    return stacks.ct(pixels[None], unit="raw", modality="MR", **changes)


def test_the_linear_window_is_the_standards_example() -> None:
    """PS3.3 C.11.2.1.2.1: center 2048 and width 4096 map 0 to black and 4095 to white."""
    grey = shown(hounsfield(-1, 0, 2047, 2048, 4095, 5000), 0, (2048.0, 4096.0))
    assert grey.tolist() == [[0, 0, 127, 128, 255, 255]]


def test_a_window_of_one_is_a_threshold() -> None:
    assert shown(hounsfield(0, 99, 100, 101), 0, (100.0, 1.0)).tolist() == [[0, 0, 255, 255]]


def test_a_narrower_window_is_taken_exactly() -> None:
    values = np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
    assert shown(raw(values), 0, (0.5, 0.5)).tolist() == [[0, 0, 128, 255]]


def test_a_ct_without_a_window_is_shown_as_soft_tissue() -> None:
    stack = hounsfield(-1000, -200, 40, 240, 2000)
    assert shown(stack, 0).tolist() == shown(stack, 0, SOFT_TISSUE).tolist()
    assert shown(stack, 0)[0, 1] == 0 and shown(stack, 0)[0, 3] == 255


@pytest.mark.parametrize(
    "window", [(np.nan, 400.0), (40.0, np.inf), (40.0, 0.0), (40.0, -400.0), (1e30, 400.0)]
)
def test_a_senseless_window_is_not_used(window: tuple[float, float]) -> None:
    stack = hounsfield(-1000, 0, 40, 240)
    assert shown(stack, 0, window).tolist() == shown(stack, 0).tolist()


def test_a_window_that_shows_nothing_is_not_used() -> None:
    stack = hounsfield(-1000, 0, 40, 240)
    assert shown(stack, 0, (30000.0, 100.0)).tolist() == shown(stack, 0).tolist()


def test_outliers_do_not_darken_raw_values() -> None:
    values = np.linspace(0, 100, 10_000, dtype=np.float32).reshape(100, 100)
    values[0, 0] = 1e6
    grey = shown(raw(values), 0)
    assert (grey[0, 0], grey[1, 0], grey[50, 0], grey[99, 99]) == (255, 1, 127, 255)


def test_brightness_is_stretched_and_asks_no_window() -> None:
    values = np.linspace(0.2, 0.4, 100, dtype=np.float32).reshape(10, 10)
    stack = stacks.radiograph(values)
    assert shown(stack, 0).tolist() == shown(stack, 0, (2048.0, 4096.0)).tolist()
    assert (shown(stack, 0).min(), shown(stack, 0).max()) == (0, 255)


def test_the_gain_of_an_ultrasound_is_left_alone() -> None:
    stored = np.array([[10, 20], [30, 40]], dtype=np.uint8)
    assert shown(read([dicoms.us_image(stored)]), 0).tolist() == stored.tolist()


@pytest.mark.parametrize("unit", ["raw", "[hnsf'U]"])
def test_monochrome1_turns_over_what_reading_did_not(unit: str) -> None:
    values = np.array([[0, 100, 200, 300]], dtype=np.float32)
    plain, turned = (
        shown(raw(values, photometric=name), 0, (150.0, 200.0))
        for name in ("MONOCHROME2", "MONOCHROME1")
    )
    assert (plain.astype(int) + turned).tolist() == [[255] * 4]


def test_monochrome1_brightness_is_turned_over_once() -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10) * 40
    film = read([dicoms.dx_image(stored, modality="CR", photometric="MONOCHROME1")])
    assert film.unit == "1"
    assert shown(film, 0)[0, 0] == 255 and shown(film, 0)[9, 9] == 0


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixels_that_do_not_count_are_black_and_count_for_nothing(photometric: str) -> None:
    values = np.linspace(0, 100, 100, dtype=np.float32).reshape(10, 10)
    valid = np.ones((1, 10, 10), dtype=bool)
    valid[0, 0] = False
    padded = values.copy()
    padded[0] = 60_000
    grey = shown(raw(padded, valid=valid, photometric=photometric), 0)
    assert not grey[0].any()
    assert (grey[1:].min(), grey[1:].max()) == (0, 255)


def test_values_that_are_not_finite_are_black() -> None:
    values = np.linspace(1, 100, 100, dtype=np.float32).reshape(10, 10)
    values[5, 5], values[6, 6] = np.nan, np.inf
    grey = shown(raw(values), 0)
    assert grey[5, 5] == grey[6, 6] == 0 and grey[9, 9] == 255


def test_a_frame_without_any_pixel_that_counts_is_black() -> None:
    nothing = np.zeros((1, 4, 4), dtype=bool)
    assert not shown(raw(np.ones((4, 4), np.float32), valid=nothing), 0).any()


def test_colour_comes_back_as_a_copy() -> None:
    clip = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    stack = read([dicoms.us_clip(pixels=clip)])
    picture = shown(stack, 1)
    assert picture.tolist() == clip[1].tolist()
    picture[:] = 0
    assert stack.pixels[1].tolist() == clip[1].tolist()


def test_the_stack_is_not_changed() -> None:
    stack = hounsfield(-1000, 0, 40, 240)
    before = stack.pixels.copy()
    shown(stack, 0)[:] = 7
    assert (stack.pixels == before).all()


@pytest.mark.parametrize("frame", [-1, 1])
def test_a_frame_that_is_not_there_is_refused(frame: int) -> None:
    with pytest.raises(IndexError):
        shown(hounsfield(0, 1), frame)


def test_the_window_of_a_single_frame_is_the_first_that_it_gives() -> None:
    assert window_of(dicoms.ct_slice(WindowCenter="40", WindowWidth="400")) == (40, 400)
    two = dicoms.ct_slice(WindowCenter=["40", "-600"], WindowWidth=["400", "1500"])
    assert window_of(two) == (40, 400)
    assert window_of(dicoms.ct_slice()) is None


def test_the_window_of_a_frame_is_its_own_then_the_shared_one() -> None:
    ds = dicoms.enhanced_ct(3)
    ds.PerFrameFunctionalGroupsSequence[1].FrameVOILUTSequence = [
        dicoms.item(WindowCenter="-600", WindowWidth="1500")
    ]
    assert [window_of(ds, n) for n in (1, 2, 3)] == [(40, 400), (-600, 1500), (40, 400)]


def test_a_senseless_window_of_a_frame_falls_back_to_the_shared_one() -> None:
    ds = dicoms.enhanced_ct(2)
    ds.PerFrameFunctionalGroupsSequence[0].FrameVOILUTSequence = [
        dicoms.item(WindowCenter="40", WindowWidth="0")
    ]
    assert window_of(ds, 1) == (40, 400)
    assert window_of(ds, 99) == (40, 400)


def test_hostile_windows_count_as_absent() -> None:
    strange = Dataset()
    strange.add_new(0x00281050, "LO", "Smith^John")
    strange.add_new(0x00281051, "LO", "400")
    assert window_of(strange) is None
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        ds = dicoms.ct_slice(WindowCenter="40", WindowWidth="400")
        ds.add_new(keyword, "OB", b"not a sequence")
        assert window_of(ds, 1) == (40, 400)


@given(st.floats(), st.floats(), st.sampled_from([0.0, 1.0, 1e-30]))
def test_no_window_makes_showing_fail(center: float, width: float, spread: float) -> None:
    values = np.array([[-3e38, -1, 0, 1, 3e38]], dtype=np.float32) * np.float32(spread)
    with np.errstate(all="raise", under="ignore"):
        assert shown(raw(values), 0, (center, width)).shape == (1, 5)
