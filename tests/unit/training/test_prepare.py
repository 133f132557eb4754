"""Preparation: what the service would see, on one grid, with every fault told at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from inference.errors import ReadingError
from inference.preprocessing import normalise
from inference.preprocessing import prepare as serve
from tests.stacks import ct, radiograph
from tests.unit.training.learning import SIDE, recipe, samples
from training.errors import DataError
from training.prepare import ahead, check_classes, counts, prepare, subset, workers
from training.samples import Sample, TrueBox, Truth


def broken(name="torn"):
    def read():
        raise ReadingError("no pixels")

    return Sample(name, name, read, Truth(classes=(1.0, 0.0)))


def test_training_sees_what_the_service_sees():
    plan, found = recipe().bundle, samples("classification", 3)
    ready = prepare(found, plan)
    for i, sample in enumerate(found):
        x, _ = serve(sample.read(), plan.preprocessing)
        seen = normalise(ready.images[i : i + 1], plan.preprocessing)
        torch.testing.assert_close(seen, x, rtol=0, atol=0)


def test_every_slice_carries_what_is_true_of_its_volume():
    window = {"window": (-500.0, 500.0)}
    volumes = [
        Sample(name, name, lambda n=n: ct(np.zeros((n, 40, 40), np.int16)), Truth(classes=truth))
        for name, n, truth in (("a", 3, (1.0, 0.0)), ("b", 2, (0.0, 1.0)))
    ]
    ready = prepare(volumes, recipe(preprocessing=window).bundle)
    assert ready.sample.tolist() == [0, 0, 0, 1, 1]
    assert ready.classes is not None
    assert ready.classes[:, 0].tolist() == [1, 1, 1, 0, 0]


def test_masks_and_boxes_lie_where_the_picture_lies():
    spec = {"size": (SIDE, 2 * SIDE), "fit": "pad"}
    segmented = prepare(
        samples("segmentation", 2), recipe("segmentation", preprocessing=spec).bundle
    )
    assert segmented.masks is not None
    for image, masks in zip(segmented.images, segmented.masks, strict=True):
        inside = masks.any(0).bool()
        assert float(image[0][inside].min()) > 0.5
        assert float(image[0][~inside].max()) < 0.5
    detected = prepare(samples("detection", 2), recipe("detection", preprocessing=spec).bundle)
    assert detected.boxes is not None
    for masks, frame in zip(segmented.masks, detected.boxes, strict=True):
        rows, columns = torch.nonzero(masks.any(0), as_tuple=True)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert frame["boxes"][0].tolist() == pytest.approx([float(edge) for edge in edges], abs=0.6)


def test_a_picture_without_objects_has_an_empty_list_of_boxes():
    nothing = replace(samples("detection", 1)[0], truth=Truth(boxes=()))
    ready = prepare([nothing], recipe("detection").bundle)
    assert ready.boxes is not None
    assert ready.boxes[0]["boxes"].shape == (0, 4)
    assert ready.boxes[0]["labels"].dtype == torch.int64


def test_all_samples_that_cannot_be_read_are_named_at_once():
    found = [broken("torn"), *samples("classification", 2), broken("cut")]
    with pytest.raises(DataError, match=r"2 of 4 .*torn \(no pixels\), cut .*repair"):
        prepare(found, recipe().bundle)


@pytest.mark.parametrize(
    ("task", "truth", "said"),
    [
        ("classification", Truth(), "for 2 classes"),
        ("classification", Truth(classes=(1.0, 1.0)), "exclude each other"),
        ("grading", Truth(grade=7), "grade 7 of 0..2"),
        ("segmentation", Truth(), "no masks"),
        ("segmentation", Truth(masks=lambda: np.zeros((2, 1, 3, 3), bool)), "masks of"),
        ("detection", Truth(), "not told"),
        ("detection", Truth(boxes=(TrueBox(9, 0, 0, 5, 5),)), "kind 9"),
        ("detection", Truth(boxes=(TrueBox(0, 5, 5, 5, 9),)), "inside"),
    ],
)
def test_a_truth_that_is_not_the_tasks_is_named(task, truth, said):
    wrong = replace(samples(task, 1)[0], name="odd", truth=truth)
    with pytest.raises(DataError, match=rf"odd \(.*{said}"):
        prepare([wrong], recipe(task).bundle)


def test_pixels_that_are_no_numbers_are_refused():
    pixels = np.full((SIDE, SIDE), np.nan, np.float32)
    sample = Sample("nan", "nan", lambda: radiograph(pixels), Truth(classes=(1.0, 0.0)))
    with pytest.raises(DataError, match=r"nan \(pixels that are no numbers"):
        prepare([sample], recipe().bundle)


def test_what_does_not_fit_into_memory_lies_in_a_file_and_is_the_same(tmp_path):
    plan, found = recipe("segmentation").bundle, samples("segmentation", 5)
    kept = prepare(found, plan)
    mapped = prepare(found, plan, tmp_path, limit=3 * 4 * SIDE * SIDE)
    assert torch.equal(kept.images, mapped.images)
    assert kept.masks is not None
    assert mapped.masks is not None
    assert torch.equal(kept.masks, mapped.masks)
    assert kept.digest == mapped.digest
    assert not kept.images.is_shared()
    assert mapped.images.is_shared()
    assert not list(tmp_path.iterdir())  # its name is gone, a kill leaves nothing behind


def test_the_digest_tells_other_pixels_labels_and_groups():
    plan, found = recipe().bundle, samples("classification", 2)
    first, second = found
    others = [
        [second, first],
        [first, replace(second, group="p9")],
        [first, replace(second, truth=first.truth)],
        [first, replace(second, read=first.read)],
    ]
    digests = {prepare(some, plan).digest for some in [found, found[::1], *others]}
    assert len(digests) == 1 + len(others)


def test_some_samples_can_be_taken_from_prepared_ones():
    plan, found = recipe("detection").bundle, samples("detection", 4)
    some = subset(prepare(found, plan), [2, 0])
    alone = prepare([found[2], found[0]], plan)
    assert some.names == alone.names
    assert torch.equal(some.images, alone.images)
    assert torch.equal(some.sample, alone.sample)
    assert some.boxes is not None
    assert alone.boxes is not None
    assert torch.equal(some.boxes[1]["boxes"], alone.boxes[1]["boxes"])


@pytest.mark.parametrize("task", ["classification", "grading", "segmentation", "detection"])
def test_a_class_that_no_sample_shows_is_named(task):
    plan, found = recipe(task).bundle, samples(task, 6)
    check_classes(prepare(found, plan), plan)
    ready = prepare(found[:1], plan)
    assert counts(ready, plan)[0] == 1
    missing = "Grade 1, Grade 2" if task == "grading" else "Kind 1"
    with pytest.raises(DataError, match=f"no training sample shows {missing};"):
        check_classes(ready, plan)


def test_no_samples_are_an_error():
    with pytest.raises(DataError, match="no samples"):
        prepare([], recipe().bundle)


def test_work_ahead_keeps_its_order_and_leaves_torchs_threads_alone():
    torch.set_num_threads(1)
    before = torch.get_num_threads()
    begun = []
    with workers(3) as pool:
        results = ahead(pool, lambda i: begun.append(i) or i * i, range(50), depth=4)
        assert next(results) == 0
        assert len(begun) <= 4
        assert [0, *results] == [i * i for i in range(50)]
    assert torch.get_num_threads() == before
