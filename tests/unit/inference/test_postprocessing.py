"""From probabilities to segments: cleaned as the label says, on the input's grid, measured."""

from __future__ import annotations

import numpy as np
import pytest

from inference.manifest import Manifest, Preprocessing
from inference.measure import (
    AT_DETECTOR,
    LONG_AXIS,
    NO_SPACING,
    NO_VOLUME_SPACING,
    longest_diameter,
    measure,
    notes,
    thicknesses,
)
from inference.postprocessing import largest_components, segments
from inference.preprocessing import geometry
from tests.bundles import tiny_manifest
from tests.stacks import ct, radiograph

SPEC = Preprocessing(window=(0, 1), size=(64, 64), mean=[0.0], std=[1.0])


def manifest(**label):
    keys = tiny_manifest()
    keys["labels"] = [{**entry, **label} for entry in keys["labels"]]
    names = ["weights.safetensors", "card.md", "evaluation.json", *keys["golden"].values()]
    return Manifest.model_validate({**keys, "files": dict.fromkeys(names, "0" * 64)})


def run(probability, stack, keep_probability=False, **label):
    """Segments of one channel's probabilities ``(frames, 64, 64)``; the other channel is empty."""
    both = np.stack([probability, np.zeros_like(probability)], 1).astype(np.float32)
    return segments(
        both, stack, geometry(stack, SPEC), manifest(**label), keep_probability=keep_probability
    )


def blank(frames=1):
    return np.zeros((frames, 64, 64), np.float32)


def test_a_mask_has_the_shape_and_place_of_the_image():
    p = blank()
    p[0, 16:32, 0:64] = 0.9
    first, second = run(p, radiograph(np.zeros((128, 128), np.float32)))
    assert first.mask.shape == (1, 128, 128)
    assert first.mask[0, 36:60].all()
    assert not first.mask[0, :30].any()
    assert not first.mask[0, 66:].any()
    assert second.empty
    assert first.laterality.meaning == "Right"


def test_probability_under_the_labels_threshold_is_nothing():
    p = np.full_like(blank(), 0.6)
    assert run(p, radiograph(np.zeros((64, 64))), threshold=0.7)[0].empty
    assert run(p, radiograph(np.zeros((64, 64))), threshold=0.6)[0].mask.all()


def two_parts():
    p = blank(2)
    p[0, 4:20, 4:20] = 0.9
    p[0, 40:44, 40:44] = 0.9
    p[1, 40:44, 40:44] = 0.9
    return p


def test_of_a_volume_the_largest_component_is_kept_across_slices():
    (first, _) = run(two_parts(), ct(np.zeros((2, 64, 64))), keep_components=1)
    assert first.mask[0, 10, 10]
    assert not first.mask[:, 42, 42].any()


def test_of_single_images_the_largest_component_of_each_is_kept():
    stack = ct(np.zeros((2, 64, 64)), positions=None, orientation=None)
    (first, _) = run(two_parts(), stack, keep_components=1)
    assert first.mask[0, 10, 10]
    assert not first.mask[0, 42, 42]
    assert first.mask[1, 42, 42]


def test_components_touch_by_their_faces_not_their_corners():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 1, 2] = True
    assert largest_components(mask, 1).sum() == 2


def test_holes_are_filled_only_where_the_label_says_so():
    p = blank()
    p[0, 10:50, 10:50] = 0.9
    p[0, 20:30, 20:30] = 0.1
    stack = radiograph(np.zeros((64, 64)))
    assert not run(p.copy(), stack)[0].mask[0, 25, 25]
    assert run(p.copy(), stack, fill_holes=True)[0].mask[0, 25, 25]


def test_what_is_smaller_than_the_least_share_is_nothing():
    p = blank()
    p[0, :4, :4] = 0.9
    stack = radiograph(np.zeros((64, 64)))
    assert run(p.copy(), stack, min_fraction=0.005)[0].empty
    assert not run(p.copy(), stack, min_fraction=0.003)[0].empty


def test_nothing_is_found_behind_a_shutter():
    valid = np.ones((1, 64, 64), bool)
    valid[:, :32] = False
    (first, _) = run(np.ones_like(blank()), radiograph(np.zeros((64, 64)), valid=valid))
    assert np.array_equal(first.mask, valid)


def test_probability_comes_along_only_when_asked_for():
    p = np.full_like(blank(), 0.75)
    stack = radiograph(np.zeros((128, 100)))
    assert run(p.copy(), stack)[0].probability is None
    kept = run(p.copy(), stack, keep_probability=True)[0].probability
    assert kept.shape == (1, 128, 100)
    assert kept.dtype == np.float32
    assert kept.max() == pytest.approx(0.75)


def test_an_area_is_pixels_times_their_size():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, :10, :10] = True
    (area,) = measure(mask, radiograph(np.zeros((64, 64)), spacing=(0.5, 0.2)))
    assert (area.name.value, area.unit.value, area.frame) == ("42798000", "mm2", 0)
    assert area.value == pytest.approx(10)


def test_without_spacing_an_area_counts_pixels_and_says_so():
    mask = np.ones((1, 64, 64), bool)
    stack = radiograph(np.zeros((64, 64)))
    (area,) = measure(mask, stack)
    assert (area.value, area.unit.value) == (4096, "{pixels}")
    assert notes(stack) == (NO_SPACING,)
    assert notes(radiograph(np.zeros((64, 64)), spacing=(1, 1))) == (AT_DETECTOR,)


def test_a_volume_is_the_sum_of_its_slices():
    mask = np.zeros((5, 64, 64), bool)
    mask[1:4, :10, :10] = True
    (volume,) = measure(mask, ct(np.zeros((5, 64, 64)), z=[0, 4, 8, 12, 16], spacing=(0.5, 0.5)))
    assert (volume.name.value, volume.unit.value, volume.frame) == ("118565006", "ml", None)
    assert volume.value == pytest.approx(3 * 100 * 0.25 * 4 / 1000)


def test_uneven_slices_stand_for_half_the_way_to_each_neighbour():
    stack = ct(np.zeros((4, 8, 8)), z=[0, 4, 5, 12])
    assert thicknesses(stack).tolist() == [4, 2.5, 4, 7]


def test_two_slices_at_one_place_do_not_count_twice():
    once = ct(np.zeros((3, 8, 8)), z=[0, 5, 10])
    twice = ct(np.zeros((4, 8, 8)), z=[0, 5, 5, 10])
    assert thicknesses(once).sum() == pytest.approx(thicknesses(twice).sum())


def test_a_tilted_gantry_measures_along_the_normal():
    tilt = np.deg2rad(20)
    stack = ct(
        np.zeros((3, 8, 8)),
        z=[0, 5, 10],
        orientation=np.array([1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]),
    )
    assert thicknesses(stack) == pytest.approx([5 * np.cos(tilt)] * 3)


def test_one_slice_has_an_area_and_no_volume():
    (area,) = measure(np.ones((1, 8, 8), bool), ct(np.zeros((1, 8, 8))))
    assert (area.value, area.unit.value) == (64, "mm2")


def test_nothing_is_measured_on_nothing():
    assert measure(np.zeros((3, 8, 8), bool), ct(np.zeros((3, 8, 8)))) == ()


def test_softmax_classes_above_half_never_overlap():
    rng = np.random.default_rng(1)
    p = rng.dirichlet([1, 1], (1, 64, 64)).transpose(0, 3, 1, 2).astype(np.float32)
    stack = radiograph(np.zeros((64, 64)))
    keys = {**manifest().model_dump(), "activation": "softmax"}
    one, other = segments(p, stack, geometry(stack, SPEC), Manifest.model_validate(keys))
    assert (one.mask & other.mask).mean() < 0.001  # exactly one half twice is possible
    assert (one.mask | other.mask).all()


def test_slices_without_spacing_give_no_numbers_and_the_reason():
    stack = ct(np.zeros((3, 8, 8)), spacing=None)
    assert measure(np.ones((3, 8, 8), bool), stack) == ()
    assert notes(stack) == (NO_VOLUME_SPACING,)


def test_the_longest_diameter_runs_between_the_farthest_corners_on_one_slice():
    mask = np.zeros((4, 64, 64), bool)
    mask[1, 10:13, 10:50] = True  # 3 by 40 pixels
    mask[2, 20:40, 20:30] = True  # 20 by 10 pixels
    (found,) = longest_diameter(mask, ct(np.zeros(mask.shape)))
    assert found.name == LONG_AXIS
    assert found.value == pytest.approx(np.hypot(3, 40))
    assert (found.frame, found.unit.value) == (1, "mm")
    assert sorted(found.line) in ([(10, 10), (50, 13)], [(10, 13), (50, 10)])


def test_the_longest_diameter_counts_millimetres_not_pixels():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 10:30, 10:12] = mask[0, 10:12, 10:35] = True  # longer across in pixels, down in mm
    (found,) = longest_diameter(mask, ct(np.zeros(mask.shape), spacing=(3.0, 0.5)))
    (_, top), (_, bottom) = found.line
    assert abs(bottom - top) == 20
    assert found.value == pytest.approx(
        np.hypot(20 * 3, 0.5 * abs(found.line[0][0] - found.line[1][0]))
    )


def test_without_spacing_the_longest_diameter_counts_pixels():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 5, 5] = True
    (found,) = longest_diameter(mask, radiograph(np.zeros((64, 64), np.float32)))
    assert (found.value, found.unit.value) == (pytest.approx(np.sqrt(2)), "{pixels}")


def test_no_pair_of_pixels_is_further_apart_than_the_longest_diameter():
    rng = np.random.default_rng(3)
    for _ in range(20):
        mask = rng.random((2, 12, 15)) > 0.8
        (found,) = longest_diameter(mask, ct(np.zeros(mask.shape), spacing=(1.0, 2.0)))
        farthest = 0.0
        for frame in mask:
            rows, columns = np.nonzero(frame)
            ends = np.array(
                [
                    (r + i, (c + j) * 2)
                    for r, c in zip(rows, columns, strict=True)
                    for i in (0, 1)
                    for j in (0, 1)
                ]
            )
            if len(ends):
                farthest = max(farthest, np.hypot(*(ends[:, None] - ends[None]).T).max())
        assert found.value == pytest.approx(farthest)


def test_the_longest_diameter_is_measured_where_the_label_asks_for_it():
    p = blank()
    p[0, 16:32, 0:64] = 0.9
    stack = radiograph(np.zeros((64, 64), np.float32))
    with_it, _ = run(p, stack, longest_diameter=True)
    without, _ = run(p, stack)
    assert [m.name for m in with_it.measurements if m.line] == [LONG_AXIS]
    assert not any(m.line for m in without.measurements)
    assert longest_diameter(np.zeros((1, 64, 64), bool), stack) == ()
