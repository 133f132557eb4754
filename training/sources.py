"""Owns the door by which samples come in: a recipe's data, checked, or one error that names all.

Refuses to know how any kind of data set is laid out (``training.readers``, ``training.public``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from training import public
from training.errors import DataError
from training.readers import coco, npz, reports, segmentations, table
from training.readers.common import Problems, duplicates
from training.recipe import Bundle, Coco, Data, DicomSeg, DicomSr, Npz, Table
from training.samples import Sample, Samples


def load(data: Data, bundle: Bundle, root: Path) -> Samples:
    """The samples of a recipe; nothing is decoded that the truth does not need.

    Args:
        data: the recipe's.
        bundle: what is to be learnt of them.
        root: folder of the data; all paths of the recipe start there.

    Raises:
        DataError: something is missing, damaged, unknown or empty: all that is, in one error.
        RecipeError: this kind of data cannot tell what the task needs.
    """
    if not root.is_dir():
        raise DataError(f"there is no data folder {root}")
    problems = Problems()
    samples = _read(data, bundle, root, problems)
    everyone = [*samples.learn, *(s for found in samples.test.values() for s in found)]
    for name in duplicates(Counter(sample.name for sample in everyone)):
        problems.add("samples that come more than once (keep one)", name)
    if samples.learn:
        for name in _empty(samples.learn, bundle):
            problems.add("classes without a sample to learn from (add some)", name)
    elif not problems.found:
        hint = "data.licences allow none of them" if everyone else "the data hold no sample"
        raise DataError(f"nothing to learn from: {hint}")
    problems.settle()
    return samples


def _read(data: Data, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    match data:
        case Table():
            return table.read(data, bundle, root, problems)
        case Coco():
            return coco.read(data, bundle, root, problems)
        case Npz():
            return npz.read(data, bundle, root, problems)
        case DicomSeg():
            return segmentations.read(data, bundle, root, problems)
        case DicomSr():
            return reports.read(data, bundle, root, problems)
        case _:
            return public.read(data, bundle, root, problems)


def _empty(samples: Sequence[Sample], bundle: Bundle) -> Iterator[str]:
    """Classes, grades or kinds of object that no sample shows, and classes that all of them show.

    Masks are read when they are needed; their readers know what is drawn.
    """
    names = {found.channel: found.label for found in bundle.findings}
    if bundle.task == "classification":
        exclusive = bundle.activation == "softmax" and bundle.architecture.classes > 1
        for channel in range(bundle.architecture.classes):
            name = names.get(channel, f"channel {channel}")
            held = {s.truth.classes[channel] for s in samples if s.truth.classes is not None}
            if 1.0 not in held:
                yield name
            elif 0.0 not in held and not exclusive:
                yield f"all but {name}"
    elif bundle.grading:
        grades = {sample.truth.grade for sample in samples}
        yield from (g.label for i, g in enumerate(bundle.grading.grades) if i not in grades)
    elif bundle.task == "detection":
        kinds = {box.kind for sample in samples for box in sample.truth.boxes or ()}
        for channel in range(bundle.architecture.classes):
            if channel not in kinds:
                yield names.get(channel, f"channel {channel}")
