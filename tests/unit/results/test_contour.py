from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.results.contour import MAX_POINTS, Polygon, enclosed, outlines, regions

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda s: arrays(np.bool_, s))


def inside(polygon: Polygon, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre a polygon encloses, by the even-odd rule."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    result = np.zeros(shape, dtype=bool)
    for (x0, y0), (x1, y1) in pairwise(polygon):
        if y0 != y1:
            crosses = (y0 <= rows) != (y1 <= rows)
            result ^= crosses & (columns < x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    return result


@given(masks)
def test_outlines_enclose_the_filled_regions_to_the_pixel(mask: NDArray[np.bool_]) -> None:
    drawn = np.zeros(mask.shape, dtype=int)
    for line in outlines(mask):
        drawn += inside(line, mask.shape)
    labels, count = ndimage.label(mask)
    expected = np.zeros(mask.shape, dtype=int)
    for region in range(1, count + 1):
        # Holes are what the outside does not reach; across corners it does.
        background = np.pad(labels != region, 1, constant_values=True)
        reached, _ = ndimage.label(background, np.ones((3, 3)))
        expected += (reached != reached[0, 0])[1:-1, 1:-1]
    assert np.array_equal(drawn, expected)


@given(masks)
def test_the_largest_comes_first_and_all_are_closed(mask: NDArray[np.bool_]) -> None:
    lines = outlines(mask)
    areas = [enclosed(line) for line in lines]
    assert areas == sorted(areas, reverse=True)
    assert all(np.array_equal(line[0], line[-1]) for line in lines)
    assert len(lines) == ndimage.label(mask)[1]


@given(masks)
def test_regions_have_the_pixels_of_the_mask_and_the_outlines_of_its_parts(
    mask: NDArray[np.bool_],
) -> None:
    found = regions(mask)
    assert sum(region.pixels for region in found) == mask.sum()
    assert [r.pixels for r in found] == sorted((r.pixels for r in found), reverse=True)
    assert {r.outline.tobytes() for r in found} == {line.tobytes() for line in outlines(mask)}


def test_a_single_pixel_has_its_four_corners() -> None:
    mask = np.zeros((5, 5), dtype=bool)
    mask[2, 3] = True
    (line,) = outlines(mask)
    assert {tuple(p) for p in line.tolist()} == {(3, 2), (4, 2), (4, 3), (3, 3)}
    assert enclosed(line) == 1


def test_a_full_mask_reaches_the_edges_of_the_image() -> None:
    (line,) = outlines(np.ones((4, 7), dtype=bool))
    assert line.min(axis=0).tolist() == [0, 0]
    assert line.max(axis=0).tolist() == [7, 4]


def test_an_empty_mask_has_no_outline() -> None:
    assert outlines(np.zeros((4, 4), dtype=bool)) == []


def test_a_long_outline_is_simplified_and_stays_close() -> None:
    rows, columns = np.mgrid[:1000, :1200]
    angle = np.arctan2(rows - 500, columns - 600)
    mask = np.hypot(rows - 500, columns - 600) < 300 + 40 * np.sin(9 * angle)
    (line,) = outlines(mask)
    assert len(line) <= MAX_POINTS + 1
    assert np.count_nonzero(inside(line, mask.shape) ^ mask) < 0.01 * mask.sum()
