from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import ReadingError
from inference.reading import read
from tests import dicoms


def uids(stack):
    return [frame.sop_instance_uid for frame in stack.frames]


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(6)),
    st.sampled_from([0, 20, -15]),
    st.floats(-300, 300, allow_nan=False),
)
def test_slices_in_any_order_give_the_same_stack(order, tilt, start):
    series = dicoms.ct_series(6, tilt=tilt, shape=(8, 8), origin=(0, 0, start))
    expected, shuffled = read(series), read([series[i] for i in order])
    assert shuffled.frames == expected.frames
    np.testing.assert_array_equal(shuffled.pixels, expected.pixels)
    np.testing.assert_array_equal(shuffled.positions, expected.positions)
    np.testing.assert_array_equal(shuffled.affine, expected.affine)


def test_positions_decide_the_order_and_instance_numbers_do_not():
    series = dicoms.ct_series(4)
    for ds, number in zip(series, (9, 1, 7, 3), strict=True):
        ds.InstanceNumber = number
    stack = read(series[::-1])
    assert uids(stack) == [ds.SOPInstanceUID for ds in series]
    np.testing.assert_array_equal(stack.positions[:, 2], [0, 5, 10, 15])


def test_order_follows_the_normal_of_the_orientation():
    downwards = [
        dicoms.ct_slice(position=(0, 0, z), orientation=(1, 0, 0, 0, -1, 0), number=i)
        for i, z in enumerate((0, 5, 10))
    ]
    assert read(downwards).positions[:, 2].tolist() == [10, 5, 0]
    sagittal = [
        dicoms.ct_slice(position=(x, 0, 0), orientation=(0, 1, 0, 0, 0, -1), number=i)
        for i, x in enumerate((10, -10, 0))
    ]
    assert read(sagittal).positions[:, 0].tolist() == [10, 0, -10]


def test_a_tilted_gantry_keeps_its_true_positions():
    series = dicoms.ct_series(5, tilt=20, step=7.5)
    random.Random(1).shuffle(series)
    stack = read(series)
    np.testing.assert_array_equal(stack.positions[:, 2], np.arange(5) * 7.5)
    step = np.diff(stack.positions, axis=0)[0]
    normal = np.cross(stack.orientation[:3], stack.orientation[3:])
    assert step @ normal == pytest.approx(7.5 * np.cos(np.radians(20)))
    np.testing.assert_allclose(stack.affine[:3, 0], (0, 0, 7.5))


def test_uneven_steps_are_allowed():
    heights = [0, 2.5, 5, 12.5, 20]
    stack = read([dicoms.ct_slice(position=(0, 0, z), number=i) for i, z in enumerate(heights)])
    assert stack.positions[:, 2].tolist() == heights


def test_slices_at_one_place_are_kept_in_an_order_of_their_own():
    def at(acquisition, number, uid):
        return dicoms.ct_slice(AcquisitionNumber=acquisition, number=number, sop_uid=uid)

    series = [at(2, 1, "1.1"), at(1, 2, "1.2"), at(1, 1, "1.4"), at(1, 1, "1.3")]
    for order in (series, series[::-1]):
        assert uids(read(order)) == ["1.3", "1.4", "1.2", "1.1"]


def test_the_same_place_in_other_digits_is_the_same_place():
    first = dicoms.ct_slice(position=(0, 0, 1.00001), number=1)
    second = dicoms.ct_slice(position=(0, 0, 1.0), number=2)
    assert uids(read([second, first])) == [first.SOPInstanceUID, second.SOPInstanceUID]


def test_without_positions_instance_numbers_decide_and_millimetres_remain():
    series = dicoms.ct_series(3)
    for ds in series:
        del ds.ImagePositionPatient
    stack = read(series[::-1])
    assert uids(stack) == [ds.SOPInstanceUID for ds in series]
    assert stack.positions is None
    assert stack.orientation is None
    assert stack.affine is None
    assert stack.spacing == (1.0, 1.0)


def test_a_position_without_an_orientation_is_no_place():
    assert read([dicoms.ct_slice(ImageOrientationPatient=None)]).positions is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"orientation": (1, 0, 0, 0, 0, -1)}, "Image Orientation"),
        ({"spacing": (1.0, 1.1)}, "pixel spacing"),
        ({"pixels": np.zeros((32, 64))}, "Rows"),
        ({"pixels": np.zeros((64, 32))}, "Columns"),
        ({"FrameOfReferenceUID": "1.2.3"}, "Frame of Reference"),
        ({"Modality": "PT"}, "Modality"),
        ({"RescaleType": "US"}, "unit of values"),
        ({"ImagePositionPatient": None}, "having a position"),
    ],
)
def test_frames_on_different_grids_are_refused_with_what_differs(changes, reason):
    odd = dicoms.ct_slice(number=9, sop_uid="1.9", **changes)
    with pytest.raises(ReadingError, match=reason) as caught:
        read([*dicoms.ct_series(2), odd])
    assert caught.value.sop_instance_uid == "1.9"


@pytest.mark.parametrize(
    "cosines", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (1, 0, 0, 0, 1.1, 0), (1, 0, 0, 0, 1)]
)
def test_directions_that_are_no_plane_are_refused(cosines):
    with pytest.raises(ReadingError, match="ImageOrientationPatient"):
        read([dicoms.ct_slice(orientation=cosines)])


def test_frames_of_an_enhanced_ct_are_ordered_and_named():
    order = [2, 0, 3, 1]
    enhanced = dicoms.enhanced_ct(4, order=order, step=2.5, spacing=(0.7, 0.8))
    stack = read([enhanced])
    assert [frame.frame for frame in stack.frames] == [2, 4, 1, 3]
    assert stack.positions[:, 2].tolist() == [0, 2.5, 5, 7.5]
    assert stack.spacing == (0.7, 0.8)
    assert stack.frame_of_reference_uid == enhanced.FrameOfReferenceUID
    for place in range(4):
        expected = dicoms.phantom(seed=place).astype(int) - 1024
        np.testing.assert_array_equal(stack.pixels[place], expected)


def test_a_legacy_converted_ct_gives_the_stack_of_its_slices():
    series = dicoms.ct_series(4, tilt=10)
    converted = dicoms.legacy_enhanced_ct(series[::-1])
    one, many = read([converted]), read(series)
    np.testing.assert_array_equal(one.pixels, many.pixels)
    np.testing.assert_array_equal(one.positions, many.positions)
    np.testing.assert_array_equal(one.orientation, many.orientation)
    assert (one.unit, one.spacing) == (many.unit, many.spacing)


def test_one_orientation_for_all_or_one_for_each_frame_is_the_same():
    shared, each = dicoms.enhanced_ct(3), dicoms.enhanced_ct(3)
    plane = each.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    del each.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for group in each.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = plane
    np.testing.assert_array_equal(read([shared]).affine, read([each]).affine)


def test_a_multi_frame_with_several_orientations_is_refused():
    enhanced = dicoms.enhanced_ct(3)
    enhanced.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [
        dicoms.item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    ]
    with pytest.raises(ReadingError, match="frames differ in Image Orientation"):
        read([enhanced])


def test_functional_groups_that_do_not_match_the_frames_are_refused():
    enhanced = dicoms.enhanced_ct(3)
    del enhanced.PerFrameFunctionalGroupsSequence[0]
    with pytest.raises(ReadingError, match="2 functional groups for 3 frames"):
        read([enhanced])


def test_one_position_for_many_frames_is_the_position_of_none():
    clip = dicoms.mr_slice(np.zeros((2, 8, 8)), NumberOfFrames=2)
    assert read([clip]).positions is None


def test_projections_lie_nowhere_in_the_patient():
    stack = read([dicoms.dx_image(ImagePositionPatient=[0, 0, 0], FrameOfReferenceUID="1.2")])
    assert stack.positions is None
    assert stack.frame_of_reference_uid is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["L", "F"], ("L", "F")),
        (["R", "F"], ("R", "F")),
        (["A", "FR"], ("A", "FR")),
        ("", None),
        ("L", None),
        (["L", "X"], None),
    ],
)
def test_the_patient_orientation_of_a_projection_is_told(value, expected):
    ds = dicoms.dx_image(ImageLaterality="R")
    ds.PatientOrientation = value
    assert read([ds]).patient_orientation == expected


PROJECTION = {"PixelSpacing": None, "ImagerPixelSpacing": None}


@pytest.mark.parametrize(
    ("attributes", "spacing", "source"),
    [
        ({"ImagerPixelSpacing": ["0.2", "0.3"]}, (0.2, 0.3), "Imager Pixel Spacing"),
        (
            {
                "ImagerPixelSpacing": ["0.2", "0.3"],
                "EstimatedRadiographicMagnificationFactor": "1.25",
            },
            (0.16, 0.24),
            "Imager Pixel Spacing / Estimated Radiographic Magnification Factor",
        ),
        (
            {
                "ImagerPixelSpacing": ["0.2", "0.2"],
                "EstimatedRadiographicMagnificationFactor": "0",
            },
            (0.2, 0.2),
            "Imager Pixel Spacing",
        ),
        (
            {
                "ImagerPixelSpacing": ["0.2", "0.2"],
                "PixelSpacing": ["0.15", "0.15"],
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            (0.15, 0.15),
            "Pixel Spacing (FIDUCIAL)",
        ),
        (
            {"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.15", "0.15"]},
            (0.15, 0.15),
            "Pixel Spacing (differs from Imager Pixel Spacing: calibrated)",
        ),
        (
            {
                "ImagerPixelSpacing": ["0.2", "0.2"],
                "PixelSpacing": ["0.2", "0.2"],
                "EstimatedRadiographicMagnificationFactor": "2",
            },
            (0.1, 0.1),
            "Imager Pixel Spacing / Estimated Radiographic Magnification Factor",
        ),
        ({"PixelSpacing": ["0.2", "0.2"]}, (0.2, 0.2), "Pixel Spacing"),
        (
            {"NominalScannedPixelSpacing": ["0.17", "0.17"]},
            (0.17, 0.17),
            "Nominal Scanned Pixel Spacing",
        ),
        (
            {"PixelSpacing": ["0", "0"]},
            None,
            "Imager Pixel Spacing absent; Nominal Scanned Pixel Spacing absent;"
            " Pixel Spacing is not positive",
        ),
        (
            {"ImagerPixelSpacing": ["-0.2", "0.2"]},
            None,
            "Imager Pixel Spacing is not positive; Nominal Scanned Pixel Spacing absent;"
            " Pixel Spacing absent",
        ),
    ],
)
def test_the_spacing_of_a_radiograph_says_where_it_came_from(attributes, spacing, source):
    stack = read([dicoms.dx_image(modality="CR", **{**PROJECTION, **attributes})])
    assert stack.spacing == (None if spacing is None else pytest.approx(spacing))
    assert stack.spacing_source == source


def test_a_slice_without_spacing_gives_no_millimetres():
    stack = read([dicoms.ct_slice(PixelSpacing=None)])
    assert stack.spacing is None
    assert stack.affine is None
    assert "Pixel Spacing absent" in stack.spacing_source


def test_ultrasound_is_measured_by_its_regions():
    assert read([dicoms.us_clip(spacing_cm=(0.02, 0.03))]).spacing == pytest.approx((0.2, 0.3))


def test_ultrasound_without_regions_or_with_regions_that_disagree_has_no_millimetres():
    assert read([dicoms.us_clip(spacing_cm=None)]).spacing is None
    two = dicoms.us_image()
    two.SequenceOfUltrasoundRegions = [
        *two.SequenceOfUltrasoundRegions,
        *dicoms.us_image(spacing_cm=(0.05, 0.05)).SequenceOfUltrasoundRegions,
    ]
    stack = read([two])
    assert stack.spacing is None
    assert "different scale" in stack.spacing_source


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PhysicalUnitsXDirection": 4}, "not in centimetres"),
        ({"PhysicalDeltaX": -0.02}, "not positive"),
        ({"RegionSpatialFormat": 3}, "no two-dimensional region"),
    ],
)
def test_an_ultrasound_region_that_is_no_ruler_is_not_used(change, reason):
    ds = dicoms.us_image()
    for keyword, value in change.items():
        setattr(ds.SequenceOfUltrasoundRegions[0], keyword, value)
    stack = read([ds])
    assert stack.spacing is None
    assert reason in stack.spacing_source


def test_a_clip_keeps_its_frames_in_their_order():
    stack = read([dicoms.us_clip(4)])
    assert [frame.frame for frame in stack.frames] == [1, 2, 3, 4]
    assert stack.unit == "1"
    assert stack.positions is None
