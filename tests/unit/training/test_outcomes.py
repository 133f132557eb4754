"""What was said of a sample: distances by hand, boxes on the sample's grid, a table that holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from inference.errors import ReadingError
from tests.stacks import ct, radiograph
from tests.unit.training import learning, said
from training.drafts import draft
from training.errors import DataError
from training.outcomes import (
    Outcome,
    batches,
    dice,
    hausdorff95,
    judged,
    of_stacks,
    read,
    truth,
    write,
)
from training.samples import Sample, Truth


def square(top=10, left=10, edge=20, shape=(64, 64)):
    mask = np.zeros((1, *shape), bool)
    mask[0, top : top + edge, left : left + edge] = True
    return mask


def flat(spacing=None):
    return replace(radiograph(np.zeros((64, 64), np.float32)), spacing=spacing)


def test_dice_is_twice_the_overlap_by_the_sum():
    one, other = np.zeros((2, 4, 4), bool)
    one[:2] = True
    other[1:3] = True
    assert dice(one, other) == 0.5
    assert dice(one, one) == 1
    assert dice(one, ~one) == 0


def test_nothing_found_where_nothing_is_counts_as_right():
    assert dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1


def test_two_shifted_squares_are_their_shift_apart():
    assert hausdorff95(square(), square(left=13), flat()) == 3
    assert hausdorff95(square(), square(), flat()) == 0


def test_distances_are_in_millimetres_where_the_spacing_is_known():
    assert hausdorff95(square(), square(left=13), flat((0.5, 0.2))) == pytest.approx(0.6)
    assert hausdorff95(square(), square(top=13), flat((0.5, 0.2))) == pytest.approx(1.5)


def edge_of(mask):
    """Pixels with a neighbour outside, one by one."""
    padded = np.pad(mask, 1)
    return [
        (r, c)
        for r, c in np.argwhere(mask)
        if not all(padded[r + 1 + y, c + 1 + x] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0)))
    ]


def test_the_distance_is_that_of_all_pairs_of_edge_pixels():
    rng = np.random.default_rng(0)
    one, other = square(5, 8, 17), square(12, 4, 25)
    other[0, 30:34, 40:47] = True
    one[0, 20:26, rng.integers(30, 50)] = True
    apart = cdist(edge_of(one[0]), edge_of(other[0]))
    expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
    assert hausdorff95(one, other, flat()) == pytest.approx(expected)


def test_one_percent_of_strays_does_not_count():
    stray = square(edge=30)
    stray[0, 60, 60] = True
    assert hausdorff95(square(edge=30), stray, flat()) == 0


def test_a_mask_that_is_missing_has_no_distance():
    assert hausdorff95(square(), np.zeros((1, 64, 64), bool), flat()) is None
    assert hausdorff95(np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool), flat()) == 0


def test_a_volume_is_measured_across_its_slices():
    stack = ct(np.zeros((6, 32, 32), np.int16), z=[0.0, 2.5, 5.0, 7.5, 10.0, 12.5])
    one = np.zeros((6, 32, 32), bool)
    one[1, 8:20, 8:20] = True
    assert hausdorff95(one, np.roll(one, 2, 0), stack) == 5


# --- boxes -------------------------------------------------------------------------------------


def detection(**changes):
    recipe = learning.recipe("detection")
    keys = recipe.model_dump()
    for finding in keys["bundle"]["findings"]:
        finding.update(changes)
    return draft(type(recipe).model_validate(keys))


def raw(boxes):
    table = np.array(boxes, np.float32)[None]
    return {"boxes": table[..., 1:5], "scores": table[..., 5], "kinds": table[..., 0].astype(int)}


def test_boxes_come_back_to_the_samples_own_grid():
    stack = radiograph(np.zeros((128, 128), np.float32))
    told = judged(raw([(1, 8, 16, 24, 32, 0.9), (0, 0, 0, 0, 0, 0)]), stack, detection())
    assert told["output"]["boxes"] == [[1, 0, 16.0, 32.0, 48.0, 64.0, 0.9]]
    assert told["verdict"]["boxes"] == [1]


def test_only_so_many_boxes_of_a_kind_are_told_as_the_service_tells():
    found = [(0, 0, 0, 9, 9, 0.4), (0, 20, 20, 40, 40, 0.8), (1, 0, 0, 9, 9, 0.3)]
    stack = radiograph(np.zeros((64, 64), np.float32))
    told = judged(raw(found), stack, detection(max_boxes=1))
    assert [(box[0], box[6]) for box in told["output"]["boxes"]] == [(0, 0.8), (1, 0.3)]
    assert told["verdict"]["boxes"] == [1, 0]


def test_what_lies_outside_the_picture_is_no_box():
    stack = radiograph(np.zeros((64, 64), np.float32))
    told = judged(raw([(0, -20, 0, -5, 9, 0.9), (0, 50, 50, 90, 90, 0.7)]), stack, detection())
    assert told["output"]["boxes"] == [[0, 0, 50.0, 50.0, 64.0, 64.0, 0.7]]


# --- samples -----------------------------------------------------------------------------------


def test_a_sample_that_cannot_be_read_is_named():
    def broken():
        raise ReadingError("no pixels")

    sample = Sample("s7", "p7", broken, Truth(grade=0))
    with pytest.raises(DataError, match="s7: no pixels"):
        list(batches([sample], 4))


def test_a_sample_without_the_truth_of_the_task_is_named():
    sample = Sample("s7", "p7", lambda: None, Truth(grade=0))
    with pytest.raises(DataError, match="s7: no truth for detection"):
        truth(sample, detection())


def test_pictures_are_read_a_few_at_a_time():
    samples = learning.samples("classification", 7)
    assert [len(held) for held, _ in batches(samples, 3)] == [3, 3, 1]


def test_one_odd_slice_says_nothing_of_a_volume():
    assert of_stacks(np.array([1.0, 1.0, 50.0, 2.0]), [3, 1]).tolist() == [1.0, 2.0]


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcomes",
    [
        said.simulated_binary(5, attributes=[{"sex": "F", "age": "063Y"}] * 5),
        said.grades([0, 1], [2, 1]),
        said.lungs([(0.5, 0.25)], [(3.5, None)], "mm"),
        said.boxes([[(0, 1.5, 2, 3, 4)], []], [[(1, 1, 2, 3, 4, 0.25)], []]),
        [Outcome("t", "a,b", 'g"', "CC", 3, True, unlike=1.5, refused="too small; 1")],
    ],
)
def test_outcomes_come_back_from_their_table(outcomes, tmp_path):
    write(outcomes, tmp_path / "predictions.csv")
    assert read(tmp_path / "predictions.csv") == outcomes
