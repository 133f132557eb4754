"""From a network's numbers to findings: verdicts, words, boxes in their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inference.findings import NOT_SHOWN, UNCALIBRATED, findings, grade
from inference.manifest import Manifest
from inference.preprocessing import geometry
from tests.bundles import tiny_manifest
from tests.stacks import radiograph

LESION = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
MALIGNANT = {"value": "21594007", "scheme": "SCT", "meaning": "Malignant"}
NAMES = {"classification": "classifier", "grading": "ordinal", "detection": "retinanet"}


def manifest(task, classes=2, **changes):
    keys = tiny_manifest(task=task, labels=[], **changes)
    keys["architecture"] = {"name": NAMES[task], "backbone": "mobilenet_v2", "classes": classes}
    names = ["weights.safetensors", "card.md", "evaluation.json", *keys["golden"].values()]
    return Manifest.model_validate({**keys, "files": dict.fromkeys(names, "0" * 64)})


def label(channel, **changes):
    return {"channel": channel, "label": f"Kind {channel}", "code": LESION, **changes}


def grading(**changes):
    grades = [{"label": "Normal"}, {"label": "Benign"}]
    grades.append({"label": "Malignant", "severity": MALIGNANT})
    return {"label": "Breast lesion", "code": LESION, "grades": grades, **changes}


def stack(frames=1, shape=(40, 60), **changes):
    one = radiograph(np.zeros(shape, np.float32), **changes)
    return replace(one, pixels=np.zeros((frames, *shape), np.float32))


def told(raw, spec, seen=None, look=lambda *_: None):
    seen = seen or stack(len(next(iter(raw.values()))))
    return findings(raw, seen, geometry(seen, spec.preprocessing), spec, look)


def chances(*frames):
    return {"probability": np.array(frames, np.float32)}


def test_of_several_labels_each_is_present_from_its_own_threshold():
    spec = manifest("classification", findings=[label(0, threshold=0.3), label(1, threshold=0.8)])
    (first, second), notes = told(chances([0.3001, 0.7]), spec)
    assert (first.present, second.present) == (True, False)
    assert (first.threshold, second.threshold) == (0.3, 0.8)
    assert second.probability == pytest.approx(0.7)
    assert notes == ()


def test_of_exclusive_classes_the_most_probable_is_present_and_no_threshold_is_told():
    spec = manifest(
        "classification", 3, activation="softmax", findings=[label(2), label(1, threshold=0.9)]
    )
    (last, middle), _ = told(chances([0.3, 0.4, 0.3]), spec)
    assert (last.present, middle.present) == (False, True)
    assert middle.threshold is None


@pytest.mark.parametrize(("pool", "expected"), [("mean", 0.5), ("max", 0.9)])
def test_frames_speak_together_and_the_reader_is_told_how(pool, expected):
    spec = manifest("classification", 1, pool=pool, findings=[label(0, threshold=0.6)])
    (found,), notes = told(chances([0.1], [0.9], [0.5]), spec)
    assert found.probability == pytest.approx(expected)
    assert found.present == (pool == "max")
    name = {"mean": "mean", "max": "highest"}[pool]
    assert notes == (f"Probabilities are the {name} of 3 frames.",)


def test_what_is_present_is_shown_on_the_frame_that_spoke_loudest():
    spec = manifest(
        "classification", pool="max", findings=[label(0, saliency=True), label(1, saliency=True)]
    )
    asked = []

    def look(frame, channel):
        asked.append((frame, channel))
        return np.ones((40, 60), np.float32)

    (shown, absent), _ = told(chances([0.2, 0.1], [0.9, 0.2]), spec, look=look)
    assert asked == [(1, 0)]
    assert shown.saliency.shape == (2, 40, 60)
    assert shown.saliency.max((1, 2)).tolist() == [0, 1]
    assert absent.saliency is None


def test_a_network_without_places_says_so():
    spec = manifest("classification", 1, findings=[label(0, saliency=True)])
    (found,), notes = told(chances([0.9]), spec)
    assert found.saliency is None
    assert notes == (NOT_SHOWN,)


@pytest.mark.parametrize(
    ("reached", "threshold", "expected"),
    [([0.4, 0.3], 0.5, 0), ([0.5, 0.3], 0.5, 1), ([0.9, 0.6], 0.5, 2), ([0.9, 0.6], 0.7, 1)],
)
def test_the_grade_is_the_highest_whose_chance_is_at_the_threshold(reached, threshold, expected):
    assert grade(np.array(reached), threshold) == expected


def test_a_grade_reaches_the_reader_by_name_number_code_and_chance():
    spec = manifest("grading", grading=grading())
    (found,), (note,) = told(chances([0.9, 0.6]), spec)
    assert found.label == "Breast lesion"
    assert (found.present, found.score, found.severity.value) == (True, 2.0, "21594007")
    assert found.probability == pytest.approx(0.9)
    assert note == (
        "Breast lesion: Malignant, grade 2 of 0 (Normal) to 2 (Malignant); "
        "probability of Benign or higher 0.90, Malignant or higher 0.60."
    )


def test_the_lowest_grade_is_told_and_nothing_is_present():
    (found,), _ = told(chances([0.2, 0.1]), manifest("grading", grading=grading()))
    assert (found.label, found.present, found.score) == ("Breast lesion", False, 0.0)
    assert found.severity is None


def test_a_finding_is_present_from_the_grade_that_the_manifest_says():
    spec = manifest("grading", grading=grading(present_from=2))
    (benign,), _ = told(chances([0.9, 0.3]), spec)
    assert (benign.present, benign.label) == (False, "Breast lesion")
    assert benign.probability == pytest.approx(0.3)


def boxes(*found):
    """One frame of (left, top, right, bottom, score, kind) on the network's 64 x 64."""
    table = np.zeros((1, 100, 6))
    table[0, : len(found)] = found
    return {
        "boxes": table[..., :4].astype(np.float32),
        "scores": table[..., 4].astype(np.float32),
        "kinds": table[..., 5].astype(np.int64),
    }


DETECTION = {"findings": [label(0, max_boxes=2), label(1)]}


def test_boxes_come_back_to_the_stacks_grid_and_are_clipped_to_it():
    # 40 x 60 pixels fill columns 0..64 and rows 10.67 -> 11..54 of 64 x 64.
    raw = boxes((-4, 0, 32, 32, 0.9, 0))
    (found, _), notes = told(raw, manifest("detection", **DETECTION))
    (box,) = found.boxes
    assert (box.frame, box.left, box.top) == (0, 0, 0)
    assert box.right == pytest.approx(30, abs=0.1)
    assert box.bottom == pytest.approx(20, abs=1)
    assert notes == (UNCALIBRATED,)


def test_the_boxes_of_a_mirrored_picture_are_mirrored():
    seen = stack(shape=(64, 64), patient_orientation=("R", "F"))
    (found, _), _ = told(boxes((0, 0, 16, 32, 0.9, 0)), manifest("detection", **DETECTION), seen)
    (box,) = found.boxes
    assert (box.left, box.top, box.right, box.bottom) == (48, 0, 64, 32)


def test_only_the_best_boxes_over_the_threshold_stay():
    raw = boxes(*[(4, 14, 40, 40, score, 0) for score in (0.6, 0.9, 0.4, 0.7)])
    (found, other), _ = told(raw, manifest("detection", **DETECTION))
    assert len(found.boxes) == 2
    assert found.probability == pytest.approx(0.9)
    assert (other.present, other.probability, other.boxes) == (False, None, ())


def test_what_is_under_the_threshold_is_absent_with_its_score():
    (_, found), notes = told(boxes((4, 14, 40, 40, 0.3, 1)), manifest("detection", **DETECTION))
    assert (found.present, found.boxes) == (False, ())
    assert found.probability == pytest.approx(0.3)
    assert notes == ()


def test_a_box_in_the_padding_is_no_box():
    (found, _), _ = told(boxes((4, 0, 40, 9, 0.9, 0)), manifest("detection", **DETECTION))
    assert (found.present, found.boxes, found.probability) == (False, (), None)
