"""The door by which samples come in: every kind of data by its name, and no class is empty.

What each kind of file holds is tested beside its reader.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import dicoms
from tests.unit.training.reading import bundle, draw
from training.errors import DataError, RecipeError
from training.recipe import Coco, Data, DicomSeg, DicomSr, Npz, Public, Table
from training.sources import load


def test_every_kind_of_data_is_asked_for_its_own_files(tmp_path):
    dicoms.save(dicoms.dx_image(), tmp_path / "in" / "a.dcm")
    kinds: list[tuple[Data, str, str]] = [
        (Table(kind="table", file="a.csv", label=["x"]), "classification", r"a\.csv is no CSV"),
        (Coco(kind="coco", file="a.json"), "detection", r"a\.json cannot be read"),
        (Npz(kind="npz", file="a.npz"), "classification", r"a\.npz cannot be read"),
        (DicomSeg(kind="dicom-seg", folder="in"), "segmentation", "hold no sample"),
        (DicomSr(kind="dicom-sr", folder="in"), "detection", "hold no sample"),
        (Public(kind="chest-lungs"), "segmentation", r"images/cxr/labels\.json is not there"),
        (Public(kind="chest-boxes"), "detection", r"images/cxr/labels\.json is not there"),
        (Public(kind="busi"), "grading", r"images/busi256/labels\.json is not there"),
        (Public(kind="ct-body"), "segmentation", "CT of the public data are not there"),
    ]
    for data, task, said in kinds:
        with pytest.raises(DataError, match=said):
            load(data, bundle(task, "A", "B"), tmp_path)


def test_a_data_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no data folder .*nowhere"):
        load(Public(kind="busi"), bundle("grading", "A", "B"), tmp_path / "nowhere")


def test_empty_classes_grades_and_kinds_are_named_by_their_label(tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    (tmp_path / "t.csv").write_text("path,class,grade\na.png,A,low\nb.png,A,low\n")
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 40}],
                "annotations": boxes,
                "categories": [{"id": 1, "name": "A"}],
            }
        )
    )
    np.savez(
        tmp_path / "n.npz",
        train_images=np.zeros((2, 8, 8), np.uint8),
        train_labels=np.array([[1, 0, 1], [0, 0, 1]], np.uint8),
    )
    table = Table(kind="table", file="t.csv", label=["class"])
    for data, of, empty in (
        (table, bundle("classification", "A", "B", activation="softmax"), "B"),
        (table.model_copy(update={"label": ["grade"]}), bundle("grading", "low", "high"), "high"),
        (Coco(kind="coco", file="c.json"), bundle("detection", "A", "B"), "B"),
        (Npz(kind="npz", file="n.npz"), bundle("classification", "A", "B", "C"), "B, all but C"),
        (
            Npz(kind="npz", file="n.npz"),
            bundle("classification", "A", "C", classes=3, findings=_two()),
            "channel 1, all but C",
        ),
    ):
        with pytest.raises(DataError, match=rf"learn from \(add some\): {empty}$"):
            load(data, of, tmp_path)


def _two():
    of = bundle("classification", "A", "B", "C")
    return [found.model_dump() for found in of.findings if found.label != "B"]


def test_what_a_collection_does_not_know_is_a_matter_of_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match="busi is for classification or grading"):
        load(Public(kind="busi"), bundle("detection", "A"), tmp_path)
