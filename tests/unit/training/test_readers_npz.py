"""MedMNIST's files: pictures, labels and the published split come as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.reading import bundle, loaded
from training.errors import DataError, RecipeError
from training.recipe import Npz
from training.sources import load

RNG = np.random.default_rng(0)
BINARY = bundle("classification", "Pneumonia")


def npz(tmp_path: Path, labels: Any, shape: tuple[int, ...] = (28, 28), **arrays: Any) -> Npz:
    """Three parts with the same labels."""
    labels = np.array(labels, np.uint8)
    made = {}
    for part in ("train", "val", "test"):
        made[f"{part}_images"] = RNG.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
        made[f"{part}_labels"] = labels
    np.savez(tmp_path / "set.npz", **(made | arrays))
    return Npz(kind="npz", file="set.npz", licence="CC BY 4.0")


def test_the_published_split_and_the_pictures_are_kept(tmp_path):
    data = npz(tmp_path, [[0], [1]])
    samples = loaded(data, BINARY, tmp_path).learn
    assert [(s.name, s.part) for s in samples[::2]] == [
        ("train-00000", "train"),
        ("val-00000", "val"),
        ("test-00000", "test"),
    ]
    assert len({s.group for s in samples}) == 6
    with np.load(tmp_path / "set.npz") as arrays:
        wanted = arrays["val_images"][1] / 255
    stack = samples[3].read()
    assert np.allclose(stack.pixels[0], wanted, atol=1e-6)
    assert stack.pixels.dtype == np.float32


def test_one_channel_is_present_at_label_one(tmp_path):
    samples = load(npz(tmp_path, [[0], [1]]), BINARY, tmp_path).learn
    assert [s.truth.classes for s in samples[:2]] == [(0.0,), (1.0,)]


def test_a_label_is_the_number_of_its_channel(tmp_path):
    of = bundle("classification", "A", "B", "C", activation="softmax")
    samples = load(npz(tmp_path, [[2], [0], [1]]), of, tmp_path).learn
    assert samples[0].truth.classes == (0.0, 0.0, 1.0)


def test_several_classes_may_be_present(tmp_path):
    of = bundle("classification", "A", "B", "C")
    samples = load(npz(tmp_path, [[1, 0, 1], [0, 1, 0]]), of, tmp_path).learn
    assert samples[0].truth.classes == (1.0, 0.0, 1.0)


def test_a_label_is_a_grade(tmp_path):
    of = bundle("grading", "None", "Mild", "Severe")
    samples = load(npz(tmp_path, [[2], [0], [1]]), of, tmp_path).learn
    assert [s.truth.grade for s in samples[:3]] == [2, 0, 1]


def test_colour_stays_in_bytes(tmp_path):
    samples = load(npz(tmp_path, [[0], [1]], (28, 28, 3)), BINARY, tmp_path).learn
    stack = samples[0].read()
    assert (stack.pixels.shape, stack.pixels.dtype) == ((1, 28, 28, 3), np.uint8)


@pytest.mark.parametrize(
    ("of", "labels", "name"),
    [
        (BINARY, [[0], [1], [2]], r"train-00002 \(2\)"),
        (bundle("classification", "A", "B"), [[0], [1], [5]], r"train-00002 \(5\)"),
        (bundle("classification", "A", "B"), [[0, 1], [1, 0], [3, 0]], r"train-00002 \(3, 0\)"),
        (bundle("classification", "A", "B"), [[0, 1, 1], [1, 0, 0]], r"train-00000 \(0, 1, 1\)"),
        (bundle("grading", "A", "B"), [[0], [1], [2]], r"train-00002 \(2\)"),
    ],
)
def test_labels_that_the_recipe_does_not_know_are_named(tmp_path, of, labels, name):
    with pytest.raises(DataError, match=f"does not know .*{name}"):
        load(npz(tmp_path, labels), of, tmp_path)


def test_a_class_that_nothing_shows_is_named(tmp_path):
    with pytest.raises(DataError, match=r"without a sample to learn from \(add some\): C"):
        load(npz(tmp_path, [[0], [1]]), bundle("classification", "A", "B", "C"), tmp_path)
    with pytest.raises(DataError, match="all but Pneumonia"):
        load(npz(tmp_path, [[1], [1]]), BINARY, tmp_path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"val_images": np.zeros((2, 28, 28, 28), np.uint8)}, "val_images are uint8"),
        ({"val_images": np.zeros((2, 28, 28), np.float32)}, "val_images are float32"),
        ({"val_images": np.zeros((3, 28, 28), np.uint8)}, "for 3 pictures"),
        ({"val_labels": np.zeros(2, np.uint8)}, r"val_labels are of shape \(2,\)"),
    ],
)
def test_another_layout_is_refused_in_words(tmp_path, arrays, said):
    with pytest.raises(DataError, match=said):
        load(npz(tmp_path, [[0], [1]], **arrays), BINARY, tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz cannot be read"):
        load(Npz(kind="npz", file="set.npz"), BINARY, tmp_path)


def test_pickled_objects_are_not_opened(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=np.array([{}]), train_labels=np.array([[0]]))
    with pytest.raises(DataError, match="cannot be read"):
        load(Npz(kind="npz", file="set.npz"), BINARY, tmp_path)


def test_an_npz_tells_no_boxes(tmp_path):
    with pytest.raises(RecipeError, match="not what detection needs"):
        load(npz(tmp_path, [[0], [1]]), bundle("detection", "A"), tmp_path)
