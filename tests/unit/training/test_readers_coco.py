"""COCO: boxes come to the picture and the kind that they were drawn for, or are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import dicoms
from tests.unit.training.reading import bundle, draw, loaded
from training.errors import DataError, RecipeError
from training.recipe import Coco
from training.samples import TrueBox
from training.sources import load

TWO = bundle("detection", "Right lung", "Left lung")


def image(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 30, "height": 40} | more


def box(number: int, on: int, of: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": on, "category_id": of, "bbox": bbox} | more


def coco(tmp_path: Path, images: list[Any], annotations: list[Any], **changes: Any) -> Coco:
    told = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": 7, "name": "left LUNG"},
            {"id": 3, "name": "right lung"},
            {"id": 9, "name": "heart"},
        ],
        "licenses": [{"id": 1, "name": "CC BY 4.0"}, {"id": 2, "name": "CC BY-NC 4.0"}],
    }
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / "set" / "boxes.json").write_text(json.dumps(told))
    return Coco.model_validate({"kind": "coco", "file": "set/boxes.json"} | changes)


def test_boxes_are_corners_and_kinds_are_found_by_name(tmp_path):
    draw(tmp_path / "set" / "a.png")
    data = coco(
        tmp_path,
        [image(1, "a.png")],
        [box(1, 1, 7, [2, 4.5, 10, 20]), box(2, 1, 3, [0, 0, 5, 6])],
    )
    (sample,) = loaded(data, TWO, tmp_path).learn
    assert sample.truth.boxes == (TrueBox(1, 2, 4.5, 12, 24.5), TrueBox(0, 0, 0, 5, 6))


def test_a_picture_without_boxes_is_one_on_which_there_is_nothing(tmp_path):
    draw(tmp_path / "set" / "a.png")
    draw(tmp_path / "set" / "b.png")
    data = coco(
        tmp_path,
        [image(1, "a.png"), image(2, "b.png")],
        [box(1, 1, 7, [2, 4, 10, 20]), box(2, 1, 3, [0, 0, 5, 6])],
    )
    assert loaded(data, TWO, tmp_path).learn[1].truth.boxes == ()


def test_everything_wrong_is_told_in_one_error(tmp_path):
    draw(tmp_path / "set" / "a.png")
    draw(tmp_path / "set" / "wide.png", shape=(40, 60))
    with pytest.raises(DataError) as caught:
        load(
            coco(
                tmp_path,
                [image(1, "a.png"), image(2, "gone.png"), image(3, "wide.png")],
                [
                    box(1, 1, 7, [2, 4, 10, 20]),
                    box(2, 1, 9, [2, 4, 10, 20]),
                    box(3, 77, 7, [2, 4, 10, 20]),
                    box(4, 1, 7, [2, 4, 0, 20]),
                    {"id": 5, "image_id": 1, "category_id": 7, "segmentation": [[1, 2, 3, 4, 5]]},
                    box(6, 1, 7, [2, 4, 10, 20], iscrowd=1),
                ],
            ),
            TWO,
            tmp_path,
        )
    told = str(caught.value)
    for said in (
        "it knows Right lung, Left lung; correct them or name them there): annotation 2 (heart)",
        "does not list (leave them out): annotation 3",
        "detection reads boxes, not masks): annotation 4, annotation 5",
        "crowd (draw one box an object, or leave them out): annotation 6",
        "missing (correct the path or leave the label out): gone.png",
        "their boxes are off): wide.png",
        "classes without a sample to learn from (add some): Right lung",
    ):
        assert said in told


def test_groups_and_licences_come_from_the_file(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / "pictures" / name)
    data = coco(
        tmp_path,
        [image(1, "a.png", who="p1", license=1), image(2, "b.png", who=2, license=2)],
        [box(1, 1, 7, [2, 4, 10, 20]), box(2, 1, 3, [0, 0, 5, 6])],
        folder="pictures",
        group="who",
        licences=["CC BY"],
    )
    samples = load(data, TWO, tmp_path)
    assert [(s.group, s.licence) for s in samples.learn] == [("p1", "CC BY 4.0")]
    assert [s.group for s in samples.test["under other licences"]] == ["2"]


def test_a_picture_without_its_patient_is_told(tmp_path):
    draw(tmp_path / "set" / "a.png")
    with pytest.raises(DataError, match=r"images without a who .*: a\.png"):
        load(coco(tmp_path, [image(1, "a.png")], [], group="who"), TWO, tmp_path)


def test_boxes_may_lie_on_dicom(tmp_path):
    dicoms.save(dicoms.dx_image(patient_id="SECRET"), tmp_path / "set" / "a.dcm")
    data = coco(
        tmp_path,
        [image(1, "a.dcm", width=80, height=96)],
        [box(1, 1, 7, [2, 4, 10, 20]), box(2, 1, 3, [0, 0, 5, 6])],
    )
    (sample,) = loaded(data, TWO, tmp_path).learn
    assert sample.group not in ("a.dcm", "SECRET")
    assert sample.attributes["view"] == "PA"


@pytest.mark.parametrize("content", ["", "[]", '{"images": []}', None])
def test_a_file_that_is_no_coco_is_named(tmp_path, content):
    data = coco(tmp_path, [], [])
    path = tmp_path / "set" / "boxes.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=r"set/boxes\.json"):
        load(data, TWO, tmp_path)


def test_coco_tells_no_classes(tmp_path):
    with pytest.raises(RecipeError, match="polygons and masks are not read"):
        load(coco(tmp_path, [], []), bundle("segmentation", "Lung"), tmp_path)
