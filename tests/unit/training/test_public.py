"""Public collections: who may be learnt from, which lung is which, and what a rule calls bone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data import shared
from tests.unit.training.reading import bundle, draw
from training.errors import DataError
from training.public import boxes_around, linked_groups, right_and_left, rule_masks
from training.readers.common import allowed
from training.recipe import Public, Split
from training.samples import TrueBox
from training.sources import load
from training.splits import parts

LUNGS = bundle("segmentation", "Right lung", "Left lung")
BOXES = bundle("detection", "Right lung", "Left lung")
OPEN = ["CC BY 3.0", "CC BY 4.0", "CC0"]


def boxes(right, left):
    return [
        {"label": "Right Lung", "bbox": right, "source": "GB-boxes"},
        {"label": "Left Lung", "bbox": left, "source": "GB-boxes"},
        {"label": "Left Lung", "bbox": [0, 0, 1, 1], "source": "GB-seg"},
        {"label": "Airways", "bbox": [0, 0, 1, 1], "source": "GB-boxes"},
    ]


def test_each_part_of_a_mask_goes_to_the_box_that_holds_more_of_it():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 2:12] = True
    mask[5:15, 18:28] = True
    right, left = right_and_left(mask, boxes([0, 0, 14, 20], [10, 0, 20, 20]))
    assert right[10, 5]
    assert not right[10, 20]
    assert left[10, 20]
    assert np.array_equal(right | left, mask)


def test_sides_follow_the_boxes_not_the_place_in_the_image():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 2:12] = True
    right, left = right_and_left(mask, boxes([15, 0, 15, 20], [0, 0, 14, 20]))
    assert not right.any()
    assert np.array_equal(left, mask)


def test_images_of_a_patient_and_their_duplicates_are_one_group():
    entries = [
        {"id": "a", "patient": "1"},
        {"id": "b", "patient": "2", "dup_of": "a"},
        {"id": "c", "patient": "2"},
        {"id": "d", "patient": "3", "dup_of": None},
    ]
    groups = linked_groups(entries)
    assert groups["a"] == groups["b"] == groups["c"]
    assert groups["d"] != groups["a"]


def test_a_licence_is_allowed_by_its_whole_name():
    assert allowed("CC BY 4.0", ["CC BY 4.0"])
    assert allowed("CC BY 4.0", [])
    assert not allowed("CC BY-NC-SA 4.0", ["CC BY", "CC BY 4.0"])
    assert not allowed("CC BY", ["CC BY 4.0"])


def collection(root: Path, *entries: dict[str, Any]) -> None:
    """A small chest collection: a picture and a mask of two lungs for each entry."""
    folder = root / "images" / "cxr"
    mask = np.zeros((40, 30), np.uint8)
    mask[5:30, 2:12], mask[5:30, 18:28] = 255, 255
    listed = []
    for seed, entry in enumerate(entries):
        draw(folder / "images" / f"{entry['id']}.jpg", seed)
        told = {
            "patient": entry["id"],
            "sex": "F",
            "age": "47",
            "view": "PA",
            "finding": "todo",
            "licence": "CC BY 4.0",
            "boxes": boxes([1, 4, 12, 27], [17.5, 4, 12, 27]),
            "mask_lung_v7": f"masks/{entry['id']}.png",
        }
        listed.append({k: v for k, v in (told | entry).items() if v is not None})
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / f"{entry['id']}.png")
    (folder / "labels.json").write_text(json.dumps({"images": listed}))


def test_lungs_and_boxes_come_with_who_they_are_of(tmp_path):
    collection(tmp_path, {"id": "a"}, {"id": "b", "mask_lung_v7": None, "age": "", "view": "?"})
    (lungs,) = load(Public(kind="chest-lungs"), LUNGS, tmp_path).learn
    right, left = lungs.truth.masks()[:, 0]
    assert right.sum() == left.sum() == 250
    assert right[10, 5]
    assert left[10, 20]
    assert lungs.attributes == {"sex": "F", "age": "40-49", "view": "PA"}
    stack = lungs.read()
    assert (stack.modality, stack.patient_orientation, stack.unit) == ("CR", ("L", "F"), "1")
    boxed, other = load(Public(kind="chest-boxes"), BOXES, tmp_path).learn
    assert boxed.truth.boxes == (TrueBox(0, 1, 4, 13, 31), TrueBox(1, 17.5, 4, 29.5, 31))
    assert other.attributes == {"sex": "F"}


def test_a_picture_that_is_missing_or_broken_is_named(tmp_path):
    collection(tmp_path, {"id": "a"}, {"id": "b"}, {"id": "c"})
    folder = tmp_path / "images" / "cxr" / "images"
    (folder / "a.jpg").unlink()
    (folder / "b.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"missing or damaged .*: a, b$"):
        load(Public(kind="chest-lungs"), LUNGS, tmp_path)


@pytest.mark.parametrize(
    ("kind", "of", "learnt", "tested"),
    [("chest-lungs", LUNGS, 61, 50), ("chest-boxes", BOXES, 80, 100)],
)
def test_only_licensed_radiographs_are_learnt_from_and_no_patient_is_on_both_sides(
    kind, of, learnt, tested
):
    root = shared("images", "cxr", "labels.json").parents[2]
    samples = load(Public(kind=kind, licences=OPEN, phantoms=2), of, root)
    real = [s for s in samples.learn if not s.generated]
    assert len(real) >= learnt
    assert {s.licence for s in real} <= set(OPEN)
    assert len(samples.learn) - len(real) == 2
    held = samples.test["radiographs under other licences"]
    assert len(held) >= tested
    assert not {s.group for s in held} & {s.group for s in samples.learn}


def test_outlined_lungs_lie_in_their_boxes():
    root = shared("images", "cxr", "labels.json").parents[2]
    boxed = {s.name: s for s in load(Public(kind="chest-boxes"), BOXES, root).learn}
    for lungs in load(Public(kind="chest-lungs"), LUNGS, root).learn[::12]:
        masks = lungs.truth.masks()
        assert masks.shape[1:] == lungs.read().shape
        assert not masks.all(axis=0).any()
        drawn = {box.kind: box for box in boxes_around(masks[:, 0])}
        for box in boxed[lungs.name].truth.boxes:
            assert drawn[box.kind].left == pytest.approx(box.left, abs=100)
            assert drawn[box.kind].right == pytest.approx(box.right, abs=100)


def test_generated_radiographs_carry_the_truth_of_the_task(tmp_path):
    collection(tmp_path, {"id": "a"})
    for kind, of in (("chest-lungs", LUNGS), ("chest-boxes", BOXES)):
        drawn = load(Public(kind=kind, phantoms=1), of, tmp_path).learn[1]
        assert drawn.generated
        assert drawn.read().shape[1] == 320
        if drawn.truth.boxes is not None:
            right, left = drawn.truth.boxes
            assert right.left < right.right < left.left < left.right
        else:
            assert drawn.truth.masks().any(axis=(1, 2, 3)).all()


def test_a_box_goes_around_a_mask_by_its_edges():
    masks = np.zeros((3, 10, 12), bool)
    masks[0, 2:5, 3:7] = True
    masks[2, 9, 11] = True
    assert boxes_around(masks) == (TrueBox(0, 3, 2, 7, 5), TrueBox(2, 11, 9, 12, 10))


def ultrasound(root: Path) -> None:
    labels = ["normal", "benign", "malignant", "benign"]
    listed = []
    for i, label in enumerate(labels):
        name = f"{label}/{i}.jpg"
        draw(root / "images" / "busi256" / name, i)
        listed.append({"path": name, "label": label, "cluster": "x", "label_conflict": i == 3})
    (root / "images" / "busi256" / "labels.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("of", "wanted"),
    [
        (
            bundle("classification", "Malignant", "Benign", "Normal", activation="softmax"),
            [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
        ),
        (bundle("classification", "benign", "malignant"), [(1, 0), (0, 1)]),
        (bundle("classification", "malignant"), [(0,), (0,), (1,)]),
        (bundle("grading", "normal", "benign", "malignant"), [0, 1, 2]),
        (bundle("grading", "benign", "malignant"), [0, 1]),
    ],
    ids=["three classes", "two of three", "one against all", "grades", "two grades"],
)
def test_breast_ultrasound_has_the_categories_that_the_recipe_names(tmp_path, of, wanted):
    ultrasound(tmp_path)
    samples = load(Public(kind="busi", licences=["CC BY 4.0"]), of, tmp_path).learn
    told = [s.truth.classes if of.task == "classification" else s.truth.grade for s in samples]
    assert told == wanted
    assert {(s.group, s.licence) for s in samples} == {("x", "CC BY 4.0")}
    stack = samples[0].read()
    assert (stack.modality, stack.unit, stack.patient_orientation) == ("US", "1", None)
    assert stack.pixels.dtype == np.float32
    assert 0.5 < stack.pixels.max() <= 1


def test_images_whose_label_is_in_doubt_are_left_out():
    root = shared("images", "busi256", "labels.json").parents[2]
    of = bundle("classification", "normal", "benign", "malignant", activation="softmax")
    samples = load(Public(kind="busi"), of, root).learn
    counted = Counter(s.truth.classes.index(1) for s in samples)
    assert counted == {0: 111, 1: 341, 2: 165}


def test_the_rule_leaves_the_table_fills_the_body_and_finds_air_and_bone_in_it():
    hu = np.full((1, 128, 128), -1000, np.int16)
    hu[0, 20:90, 20:110] = 40
    hu[0, 40:60, 40:60] = -900
    hu[0, 70:80, 70:80] = 700
    hu[0, 95:100, :] = 300  # the table
    body, air, bone = rule_masks(hu)[:, 0]
    assert body[50, 50]
    assert not body[97, 60]
    assert air.sum() == 400
    assert bone.sum() == 100


def test_the_head_is_learnt_from_and_generated_volumes_decide():
    root = shared("dicom", "dcm_qa_ct", "In").parents[2]
    of = bundle("segmentation", "Body", "Air", "Bone")
    samples = load(Public(kind="ct-body", phantoms=3), of, root)
    made = parts(samples.learn, Split(), "segmentation")
    assert [s.name for s in made["train"] if not s.generated] == ["head-1", "head-2", "head-3"]
    assert all(s.generated for s in made["val"])
    assert made["test"] == []
    assert not {s.name for s in made["train"]} & {s.name for s in made["val"]}
    assert len(samples.test) == 3
    seen = {ref for s in made["train"] for ref in s.read().frames}
    for found in samples.test.values():
        for sample in found:
            assert not seen & set(sample.read().frames)
    head = made["train"][0]
    assert head.truth.masks().shape == (3, *head.read().shape)
