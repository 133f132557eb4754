from __future__ import annotations

import numpy as np
import pytest

from inference.errors import ReadingError
from inference.reading import read
from tests import dicoms


def valid(ds):
    return read([ds]).valid


def test_without_padding_or_shutter_every_pixel_counts():
    assert valid(dicoms.ct_slice()) is None
    assert valid(dicoms.dx_image()) is None


def test_padding_does_not_count_and_keeps_its_value():
    values = np.full((4, 4), 1024)
    values[0] = -2000
    ds = dicoms.ct_slice(values)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    stack = read([ds])
    np.testing.assert_array_equal(stack.valid[0], values != -2000)
    assert stack.pixels[0, 0, 0] == -3024


def test_a_padding_value_written_as_unsigned_means_the_signed_one():
    ds = dicoms.ct_slice(np.array([[-2000, 0]]))
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert valid(ds).tolist() == [[[False, True]]]


@pytest.mark.parametrize("bounds", [(10, 20), (20, 10)])
def test_a_padding_range_includes_both_of_its_ends(bounds):
    ds = dicoms.mr_slice(np.array([[9, 10, 15, 20, 21]]))
    ds.add_new("PixelPaddingValue", "US", bounds[0])
    ds.add_new("PixelPaddingRangeLimit", "US", bounds[1])
    assert valid(ds).tolist() == [[[True, False, False, False, True]]]


def test_padding_that_no_pixel_can_hold_hides_nothing():
    ds = dicoms.us_image()
    ds.add_new("PixelPaddingValue", "US", 300)
    assert valid(ds) is None


def test_padding_of_a_radiograph_is_dark_even_in_monochrome1():
    values = np.array([[0, 4095], [4095, 2000]])
    ds = dicoms.dx_image(values, photometric="MONOCHROME1")
    ds.add_new("PixelPaddingValue", "US", 0)
    stack = read([ds])
    assert stack.pixels[0, 0, 0] == 0
    assert stack.valid[0].tolist() == [[False, True], [True, True]]


def test_only_frames_with_padding_are_marked():
    clean, padded = dicoms.ct_series(2)
    padded.PixelData = np.full((64, 64), -2000, "<i2").tobytes()
    for ds in (clean, padded):
        ds.add_new("PixelPaddingValue", "SS", -2000)
    stack = read([padded, clean])
    assert stack.valid[0].all()
    assert not stack.valid[1].any()


def test_a_rectangular_shutter_hides_what_lies_outside_and_shows_its_edges():
    ds = dicoms.dx_image(
        np.full((10, 12), 4095),
        ShutterShape="RECTANGULAR",
        ShutterUpperHorizontalEdge=3,
        ShutterLowerHorizontalEdge=8,
        ShutterLeftVerticalEdge=2,
        ShutterRightVerticalEdge=11,
    )
    seen = np.zeros((10, 12), bool)
    seen[2:8, 1:11] = True
    stack = read([ds])
    np.testing.assert_array_equal(stack.valid[0], seen)
    np.testing.assert_array_equal(stack.pixels[0] > 0, seen)


def test_a_circular_shutter_is_a_circle_in_millimetres():
    ds = dicoms.dx_image(
        np.zeros((41, 81)),
        spacing=(0.4, 0.2),
        ShutterShape="CIRCULAR",
        CenterOfCircularShutter=[21, 41],
        RadiusOfCircularShutter=20,
    )
    seen = valid(ds)[0]
    assert seen[20].sum() == 41
    assert seen[:, 40].sum() == 21
    np.testing.assert_array_equal(seen, seen[::-1, ::-1])


def test_a_polygonal_shutter_hides_what_lies_outside():
    ds = dicoms.dx_image(
        np.zeros((20, 20)),
        ShutterShape="POLYGONAL",
        VerticesOfThePolygonalShutter=[5, 5, 5, 15, 15, 15, 15, 5],
    )
    seen = np.zeros((20, 20), bool)
    seen[4:15, 4:15] = True
    np.testing.assert_array_equal(valid(ds)[0], seen)


def test_several_shapes_hide_what_any_of_them_hides():
    ds = dicoms.dx_image(
        np.zeros((20, 20)),
        ShutterShape=["RECTANGULAR", "CIRCULAR"],
        ShutterUpperHorizontalEdge=1,
        ShutterLowerHorizontalEdge=10,
        ShutterLeftVerticalEdge=1,
        ShutterRightVerticalEdge=20,
        CenterOfCircularShutter=[10, 10],
        RadiusOfCircularShutter=4,
    )
    seen = valid(ds)[0]
    assert seen[9, 13]
    assert not seen[10, 9]
    assert not seen[9, 14]


def test_a_shutter_of_an_enhanced_image_is_found_with_its_frame():
    ds = dicoms.enhanced_ct(2)
    ds.PerFrameFunctionalGroupsSequence[1].FrameDisplayShutterSequence = [
        dicoms.item(
            ShutterShape="CIRCULAR", CenterOfCircularShutter=[32, 32], RadiusOfCircularShutter=10
        )
    ]
    found = valid(ds)
    assert found[0].all()
    assert not found[1].all()


def test_a_shutter_that_hides_everything_is_a_mistake():
    ds = dicoms.dx_image(
        ShutterShape="CIRCULAR", CenterOfCircularShutter=[9999, 9999], RadiusOfCircularShutter=1
    )
    assert valid(ds) is None


def test_a_bitmap_shutter_is_ignored():
    assert valid(dicoms.dx_image(ShutterShape="BITMAP")) is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ShutterShape": "RECTANGULAR"}, "ShutterUpperHorizontalEdge is absent"),
        ({"ShutterShape": "CIRCULAR"}, "CenterOfCircularShutter is absent"),
        (
            {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 2]},
            "no polygon",
        ),
    ],
)
def test_a_shutter_without_its_edges_is_refused(attributes, reason):
    with pytest.raises(ReadingError, match=reason):
        read([dicoms.dx_image(**attributes)])
