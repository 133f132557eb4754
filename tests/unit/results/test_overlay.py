from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_node.errors import ResultError
from dicom_node.results.overlay import MARGIN, overlay_png

RED, BLUE = (230, 60, 40), (60, 120, 240)
GREY = np.full((90, 60), 100, dtype=np.uint8)


def drawn(*layers: tuple[NDArray[np.bool_], tuple[int, int, int], str]) -> NDArray[np.uint8]:
    png = overlay_png(GREY, layers, "Lungs 1.2.0")
    return np.asarray(Image.open(BytesIO(png)))


def square() -> NDArray[np.bool_]:
    mask = np.zeros(GREY.shape, dtype=bool)
    mask[30:60, 20:40] = True
    return mask


def test_the_border_lies_on_the_border_of_the_mask() -> None:
    page = drawn((square(), RED, "Right lung"))
    picture = page[MARGIN : MARGIN + 900, MARGIN : MARGIN + 600].astype(int)
    line = np.argwhere(np.abs(picture - RED).sum(2) < 30)
    assert line.min(axis=0).tolist() == pytest.approx([300, 200], abs=3)
    assert line.max(axis=0).tolist() == pytest.approx([599, 399], abs=3)


def test_the_border_is_a_thin_line() -> None:
    page = drawn((square(), RED, "Right lung"))
    row = page[MARGIN + 450, MARGIN : MARGIN + 600].astype(int)
    assert 6 <= np.count_nonzero(np.abs(row - RED).sum(1) < 60) <= 14


def test_texture_shows_through_and_the_rest_is_untouched() -> None:
    page = drawn((square(), RED, "Right lung"))
    inside, outside = page[MARGIN + 450, MARGIN + 300], page[MARGIN + 100, MARGIN + 100]
    assert outside.tolist() == [100, 100, 100]
    assert inside[0] > 110 and np.abs(inside.astype(int) - 100).max() < 40


def test_what_was_not_found_stands_in_the_legend_only() -> None:
    empty = np.zeros(GREY.shape, dtype=bool)
    page = drawn((empty, BLUE, "Left lung: not found"))
    picture, legend = page[:, : MARGIN + 600], page[:, MARGIN + 600 :].astype(int)
    assert (picture[MARGIN : MARGIN + 900, MARGIN:] == 100).all()
    assert (np.abs(legend - BLUE).sum(2) < 30).any()


def test_the_legend_never_covers_the_image() -> None:
    many = [(square(), RED, f"Structure {i} with a rather long description") for i in range(40)]
    page = drawn(*many)
    assert page.shape[0] > 900 + 2 * MARGIN
    assert page.shape[1] > 600 + 2 * MARGIN


def test_the_same_input_gives_the_same_picture() -> None:
    layers = [(square(), RED, "Right lung, 12 cm²")]
    assert overlay_png(GREY, layers, "T") == overlay_png(GREY, layers, "T")


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ResultError, match="shape"):
        drawn((np.ones((60, 90), dtype=bool), RED, "Right lung"))


def test_a_picture_that_is_not_grey_is_refused() -> None:
    with pytest.raises(ResultError, match="not grey"):
        overlay_png(np.zeros((4, 4, 3), dtype=np.uint8), [], "T")
