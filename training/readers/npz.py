"""Owns MedMNIST's NPZ (Yang et al. 2023): arrays of small pictures with a published split."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError, RecipeError
from training.readers.common import Problems, Unusable, by_licence, one_hot, stacked
from training.recipe import Bundle, Npz
from training.samples import Part, Sample, Samples, Truth


def read(data: Npz, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Classes or grades; a label's number is its channel, or its grade, counted from 0.

    With one channel, label 1 says that the finding is present. All arrays stay in memory, in 8
    bits as they are. Nobody knows whose the pictures are: each is a group of its own.

    Raises:
        DataError: the file is missing, or laid out otherwise.
        RecipeError: it tells neither boxes nor masks.
    """
    if bundle.task not in ("classification", "grading"):
        raise RecipeError(f"data.kind: npz tells classes or grades, not what {bundle.task} needs")
    try:
        with np.load(root / data.file, allow_pickle=False) as arrays:
            parts = {
                part: (arrays[f"{part}_images"], arrays[f"{part}_labels"])
                for part in get_args(Part)
                if f"{part}_images" in arrays
            }
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data.file: {data.file} cannot be read: {type(error).__name__} {error}; it needs "
            "train_images, train_labels and the like for val and test"
        ) from error
    found = []
    for part, (images, labels) in parts.items():
        _check(part, images, labels, data)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{part}-{i:05}"
            try:
                truth = _truth(label, bundle)
            except Unusable as error:
                problems.add(str(error), f"{name} ({', '.join(map(str, label))})")
                continue
            found.append(_sample(name, part, image, truth, data))
    return by_licence(found, data.licences)


def _check(part: str, images: NDArray[np.generic], labels: NDArray[np.generic], data: Npz) -> None:
    grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not grey_or_rgb or images.dtype != np.uint8:
        raise DataError(
            f"{data.file}: {part}_images are {images.dtype} of shape {images.shape}; pictures are "
            "8 bits, (n, rows, columns) or (n, rows, columns, 3)"
        )
    if labels.ndim != 2 or len(labels) != len(images):
        raise DataError(
            f"{data.file}: {part}_labels are of shape {labels.shape} for {len(images)} pictures; "
            "they are (n, 1), or (n, classes) of 0 and 1"
        )


def _sample(name: str, part: Part, image: NDArray[np.generic], truth: Truth, data: Npz) -> Sample:
    def pixels() -> NDArray[np.generic]:
        return image if image.ndim == 3 else image.astype(np.float32) / np.float32(255)

    return Sample(
        name=name,
        group=name,
        read=lambda: stacked(pixels(), name, data),
        truth=truth,
        licence=data.licence,
        part=part,
    )


def _truth(label: NDArray[np.generic], bundle: Bundle) -> Truth:
    """What a row of labels says; raises `Unusable` if the recipe does not know it."""
    values = [int(v) for v in label.tolist()]
    steps = bundle.architecture.classes
    if bundle.grading:
        known = range(len(bundle.grading.grades))
    else:
        known = range(steps if steps > 1 and len(values) == 1 else 2)
    if len(values) not in (1, 1 if bundle.grading else steps) or not set(values) <= set(known):
        raise Unusable(f"labels that the recipe does not know (it knows 0 to {max(known)})")
    if bundle.grading:
        return Truth(grade=values[0])
    if len(values) == steps:
        return Truth(classes=tuple(map(float, values)))
    return Truth(classes=one_hot(values[0], bundle))
