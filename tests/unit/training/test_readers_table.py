"""Tables: each line becomes what it says, and all that is wrong is told at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.errors import ReadingError
from tests import dicoms
from tests.unit.training.reading import bundle, draw, loaded
from training.errors import DataError, RecipeError
from training.recipe import Table
from training.sources import load

TWO = bundle("classification", "Normal", "Pneumonia", activation="softmax")


def table(tmp_path: Path, lines: str, **changes: object) -> Table:
    (tmp_path / "labels.csv").write_text(lines)
    keys = {"kind": "table", "file": "labels.csv", "label": ["label"]} | changes
    return Table.model_validate(keys)


def pictures(tmp_path: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        draw(tmp_path / name, seed)


def test_a_label_becomes_its_channel_whatever_its_case(tmp_path):
    pictures(tmp_path, "a.png", "b.jpg")
    data = table(tmp_path, "path,label\na.png,PNEUMONIA\nb.jpg,normal\n")
    samples = loaded(data, TWO, tmp_path).learn
    assert [(s.name, s.truth.classes) for s in samples] == [
        ("a.png", (0.0, 1.0)),
        ("b.jpg", (1.0, 0.0)),
    ]
    assert [s.group for s in samples] == ["a.png", "b.jpg"]


def test_a_column_a_class_says_which_of_several_are_there(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    data = table(tmp_path, "path,x,y\na.png,1,1\nb.png,0,1.0\nc.png,0,0\n", label=["x", "y"])
    samples = load(data, bundle("classification", "X", "Y"), tmp_path).learn
    assert [s.truth.classes for s in samples] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]


def test_one_channel_takes_zero_and_one(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    data = table(tmp_path, "path,label\na.png,0\nb.png,1\n")
    samples = load(data, bundle("classification", "Pneumonia"), tmp_path).learn
    assert [s.truth.classes for s in samples] == [(0.0,), (1.0,)]


def test_a_grade_is_told_by_its_label_or_its_number(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    data = table(tmp_path, "path,label\na.png,mild\nb.png,0\nc.png,2.0\n")
    samples = load(data, bundle("grading", "None", "Mild", "Severe"), tmp_path).learn
    assert [s.truth.grade for s in samples] == [1, 0, 2]


def test_a_grade_whose_label_is_a_number_means_the_label(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    data = table(tmp_path, "path,label\na.png,2\nb.png,1\n")
    samples = load(data, bundle("grading", "1", "2"), tmp_path).learn
    assert [s.truth.grade for s in samples] == [1, 0]


def test_everything_wrong_is_told_in_one_error(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    (tmp_path / "words.txt").write_text("no picture")
    lines = (
        "path,label,part\na.png,Normal,train\nb.png,Normal,later\nmissing.png,Pneumonia,\n"
        "broken.png,Pneumonia,\nwords.txt,Normal,\na.png,Tuberculosis,\na.png,Normal,\nb.png,,\n"
        ",Normal,\n"
    )
    with pytest.raises(DataError) as caught:
        load(table(tmp_path, lines, part="part"), TWO, tmp_path)
    told = str(caught.value)
    for said in (
        "missing (correct the path or leave the label out): missing.png",
        "damaged (replace them): broken.png, words.txt",
        "it knows Normal, Pneumonia",
        "a.png (Tuberculosis)",
        "without a label (fill it in or leave them out): b.png",
        "b.png (later)",
        "line 10",
        "come more than once (keep one): a.png",
        "classes without a sample to learn from (add some): Pneumonia",
    ):
        assert said in told


def test_long_lists_of_problems_are_cut(tmp_path):
    lines = "path,label\n" + "".join(f"{i}.png,Normal\n" for i in range(25))
    with pytest.raises(DataError, match="and 15 more"):
        load(table(tmp_path, lines), TWO, tmp_path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    with pytest.raises(DataError, match="no column label, sex; it has path, klass"):
        load(table(tmp_path, "path,klass\n", attributes=["sex"]), TWO, tmp_path)


@pytest.mark.parametrize("content", [None, b"path,label\n\xff\xfe,Normal\n"])
def test_a_file_that_is_no_table_is_named(tmp_path, content):
    if content:
        (tmp_path / "labels.csv").write_bytes(content)
    data = Table(kind="table", file="labels.csv", label=["label"])
    with pytest.raises(DataError, match=r"labels\.csv is no CSV"):
        load(data, TWO, tmp_path)


def test_what_a_spreadsheet_writes_is_read(tmp_path):
    pictures(tmp_path, "ä.png", "b.png")
    data = table(tmp_path, "")
    text = "path;label\r\nä.png; Normal\r\nb.png;Pneumonia\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    assert [s.name for s in load(data, TWO, tmp_path).learn] == ["ä.png", "b.png"]


def test_groups_studies_parts_licences_and_attributes_come_from_their_columns(tmp_path):
    pictures(tmp_path, "in/a.png", "in/b.png")
    lines = (
        "path,label,who,st,rights,side,use\na.png,Normal,p1,s1,CC0,L,train\n"
        "b.png,Pneumonia,p2,s2,CC BY 4.0,,TEST\n"
    )
    data = table(
        tmp_path,
        lines,
        folder="in",
        group="who",
        study="st",
        licence_column="rights",
        attributes=["side"],
        part="use",
    )
    one, other = load(data, TWO, tmp_path).learn
    assert (one.group, one.study, one.licence, one.attributes, one.part) == (
        "p1",
        "s1",
        "CC0",
        {"side": "L"},
        "train",
    )
    assert (other.licence, dict(other.attributes), other.part) == ("CC BY 4.0", {}, "test")


def test_a_line_without_a_patient_is_refused_where_patients_are_told(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    data = table(tmp_path, "path,label,who\na.png,Normal,\nb.png,Pneumonia,p\n", group="who")
    with pytest.raises(DataError, match=r"lines without a who .*: a\.png"):
        load(data, TWO, tmp_path)


def test_other_licences_are_tested_on_unless_their_patient_is_learnt_from(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    lines = (
        "path,label,who,rights\na.png,Normal,1,CC BY 4.0\nb.png,Pneumonia,2,CC BY 4.0\n"
        "c.png,Normal,1,CC BY-NC 4.0\nd.png,Normal,3,CC BY-NC 4.0\n"
    )
    data = table(tmp_path, lines, group="who", licence_column="rights", licences=["CC BY", "CC0"])
    samples = load(data, TWO, tmp_path)
    assert [s.name for s in samples.learn] == ["a.png", "b.png"]
    assert {k: [s.name for s in v] for k, v in samples.test.items()} == {
        "under other licences": ["d.png"]
    }


def test_licences_that_allow_nothing_are_told(tmp_path):
    pictures(tmp_path, "a.png")
    data = table(tmp_path, "path,label\na.png,Normal\n", licences=["CC0"])
    with pytest.raises(DataError, match=r"data\.licences allow none"):
        load(data, TWO, tmp_path)


def test_an_empty_table_has_nothing_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="the data hold no sample"):
        load(table(tmp_path, "path,label\n"), TWO, tmp_path)


def test_pictures_are_read_in_their_own_depth_and_colour(tmp_path):
    draw(tmp_path / "rgb.png", shape=(20, 10, 3))
    Image.fromarray(np.full((20, 10), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((20, 10), 51, np.uint8)).save(tmp_path / "grey.png")
    lines = "path,label\nrgb.png,Normal\ndeep.png,Pneumonia\ngrey.png,Normal\n"
    data = table(tmp_path, lines, modality="US", patient_orientation=("L", "F"))
    rgb, deep, grey = (s.read() for s in load(data, TWO, tmp_path).learn)
    assert (rgb.pixels.shape, rgb.pixels.dtype) == ((1, 20, 10, 3), np.uint8)
    assert (deep.pixels.shape, deep.pixels.dtype) == ((1, 20, 10), np.float32)
    assert deep.pixels.max() == 1
    assert grey.pixels[0, 0, 0] == pytest.approx(0.2)
    assert (grey.modality, grey.unit, grey.patient_orientation) == ("US", "1", ("L", "F"))


def test_a_picture_that_breaks_off_is_told_when_it_is_read(tmp_path):
    path = draw(tmp_path / "a.png", shape=(200, 200))
    draw(tmp_path / "b.png")
    path.write_bytes(path.read_bytes()[:9000])
    data = table(tmp_path, "path,label\na.png,Normal\nb.png,Pneumonia\n")
    broken = load(data, TWO, tmp_path).learn[0]
    with pytest.raises(ReadingError, match="cannot be decoded"):
        broken.read()


def test_dicom_files_tell_patient_study_and_attributes_but_not_in_clear(tmp_path):
    for i in range(2):
        dicoms.save(
            dicoms.dx_image(
                number=i, patient_id="SECRET-7", PatientSex="F", PatientAge="067Y", view="AP"
            ),
            tmp_path / f"{i}.dcm",
        )
    dicoms.save(dicoms.dx_image(patient_id="OTHER", PatientAge="010M"), tmp_path / "2.dcm")
    data = table(tmp_path, "path,label\n0.dcm,Normal\n1.dcm,Pneumonia\n2.dcm,Normal\n")
    one, other, third = loaded(data, TWO, tmp_path).learn
    assert one.group == other.group != third.group
    assert one.study
    assert one.attributes == {"sex": "F", "age": "60-69", "view": "AP"}
    assert third.attributes["age"] == "0-9"
    for sample in (one, other, third):
        assert "SECRET" not in repr(sample)
        assert "OTHER" not in repr(sample)
        assert dicoms.dx_image(patient_id="SECRET-7").StudyInstanceUID not in repr(sample)


def test_a_folder_is_one_series(tmp_path):
    for i, ds in enumerate(dicoms.ct_series(3)):
        dicoms.save(ds, tmp_path / "series" / f"{i}.dcm")
    (tmp_path / "series" / "notes.txt").write_text("not DICOM")
    draw(tmp_path / "b.png")
    data = table(tmp_path, "path,label\nseries,Normal\nb.png,Pneumonia\n")
    sample = loaded(data, TWO, tmp_path).learn[0]
    assert sample.read().shape == (3, 64, 64)


def test_folders_without_or_with_several_series_are_named(tmp_path):
    for name in ("one", "two"):
        series = dicoms.uid(name)
        dicoms.save(dicoms.ct_slice(series_uid=series), tmp_path / "mixed" / f"{name}.dcm")
    (tmp_path / "empty").mkdir()
    data = table(tmp_path, "path,label\nmixed,Normal\nempty,Pneumonia\n")
    with pytest.raises(DataError) as caught:
        load(data, TWO, tmp_path)
    assert "more than one DICOM series (give each a folder of its own): mixed" in str(caught.value)
    assert "without a DICOM file (correct the path or leave the label out): empty" in str(
        caught.value
    )


def test_dicom_without_an_image_and_damaged_dicom_are_named(tmp_path):
    dicoms.save(dicoms.dx_image(Rows=None), tmp_path / "report.dcm")
    whole = dicoms.save(dicoms.dx_image(), tmp_path / "cut.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:140])
    data = table(tmp_path, "path,label\nreport.dcm,Normal\ncut.dcm,Pneumonia\n")
    with pytest.raises(DataError) as caught:
        load(data, TWO, tmp_path)
    assert "report.dcm" in str(caught.value)
    assert "cut.dcm" in str(caught.value)


@pytest.mark.parametrize(
    ("of", "label", "said"),
    [
        (bundle("detection", "Lung"), ["label"], "coco and dicom-sr tell boxes"),
        (bundle("classification", "A", "B", "C"), ["x", "y"], "takes 1 or 3"),
        (bundle("grading", "A", "B"), ["x", "y"], "takes 1"),
    ],
)
def test_what_a_table_cannot_tell_is_a_matter_of_the_recipe(tmp_path, of, label, said):
    with pytest.raises(RecipeError, match=said):
        load(table(tmp_path, "path,x,y\n", label=label), of, tmp_path)
