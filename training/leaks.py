"""Owns whether held-out samples are known already: by patient, by study, by what they look like.

Refuses to part samples. Two pictures are near-duplicates where three criteria agree:

- their difference hashes (64 bits; Zauner 2010 compares such hashes) differ in few bits,
- their thumbnails correlate, and
- so does what is left of the thumbnails without their coarse shading. Radiographs of one view
  are alike in shading whoever they show; at 28 pixels only detail tells people apart.

Cropped, turned or mirrored copies are not found. Of a volume or clip the middle frame is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from inference.errors import ReadingError
from inference.types import ImageStack
from training.errors import DataError, LeakError, listed
from training.samples import Part, Sample, Samples

MOST_BITS = 10
SHADING = 0.95
DETAIL = 0.8
"""Bits of 64 that may differ; correlations that are reached.

Chosen on BUSI, where they find 138 of the 141 pairs that its clusters hold and 15 more, all the
same scene to the eye; on PneumoniaMNIST they find its 31 copies and three pairs more.
"""

SIDE = 32
COARSE = 2.0
"""Thumbnails are SIDE x SIDE; detail is what a Gaussian of COARSE pixels takes away."""

CHUNK = 1024

Pair = tuple[str, str]


def check(parts: Mapping[Any, Sequence[Sample]], pairs: Iterable[Pair] = ()) -> None:
    """Nothing, if no patient, study or picture is in more than one part.

    Args:
        parts: samples by part; further test sets may stand beside them.
        pairs: near-duplicates that must not be parted.

    Raises:
        LeakError: with the samples that give it away.
    """
    found = {
        "patients (or groups)": _shared(parts, "group"),
        "studies": _shared(parts, "study"),
        "near-duplicates": _apart(parts, pairs),
    }
    said = [f"{what}: {listed(list(names))}" for what, names in found.items() if names]
    if said:
        raise LeakError(
            f"on both sides of a split: {'; '.join(said)}; correct the column of the patient or of "
            'the part, or join near-duplicates (split.near_duplicates = "group")'
        )


def report(parts: Mapping[Any, Sequence[Sample]], pairs: Iterable[Pair]) -> dict[str, Any]:
    """What a run folder says of leaks: near-duplicates of different groups, and those apart.

    Parts that are published stay as they are; how far they leak is worth knowing.
    """
    pairs = list(pairs)
    apart = _apart(parts, pairs)
    return {
        "samples": {str(part): len(samples) for part, samples in parts.items()},
        "groups": {str(part): len({s.group for s in found}) for part, found in parts.items()},
        "near_duplicates": len(pairs),
        "near_duplicates_on_both_sides": len(apart),
        "on_both_sides": apart,
    }


def _shared(parts: Mapping[Any, Sequence[Sample]], key: str) -> list[str]:
    """A sample of each side for each group or study that is in several parts."""
    first: dict[str, tuple[Any, str]] = {}
    told: dict[str, str] = {}
    for part, samples in parts.items():
        for sample in samples:
            value = getattr(sample, key)
            where, name = first.setdefault(value, (part, sample.name))
            if value and where != part:
                told.setdefault(value, f"{name} ({where}) and {sample.name} ({part})")
    return list(told.values())


def _apart(parts: Mapping[Any, Sequence[Sample]], pairs: Iterable[Pair]) -> list[str]:
    where = {sample.name: part for part, samples in parts.items() for sample in samples}
    return [
        f"{one} ({where[one]}) and {other} ({where[other]})"
        for one, other in pairs
        if one in where and other in where and where[one] != where[other]
    ]


def grouped(samples: Sequence[Sample], pairs: Iterable[Pair]) -> list[Sample]:
    """The samples, with the groups of near-duplicates joined.

    A sample that is free to be in any part joins the part of its duplicate. Groups that the data
    put into different parts stay apart: `report` tells of them.
    """
    group_of = {sample.name: sample.group for sample in samples}
    parent = {group: group for group in group_of.values()}
    part_of: dict[str, Part | None] = dict.fromkeys(parent)
    for sample in samples:
        part_of[sample.group] = part_of[sample.group] or sample.part

    def find(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for one, other in pairs:
        if one not in group_of or other not in group_of:
            continue
        kept, joined = sorted((find(group_of[one]), find(group_of[other])))
        fixed = {part_of[kept], part_of[joined]} - {None}
        if len(fixed) < 2:
            parent[joined] = kept
            part_of[kept] = part_of[kept] or part_of[joined]
    return [
        replace(sample, group=(root := find(sample.group)), part=sample.part or part_of[root])
        for sample in samples
    ]


def joined(samples: Samples, pairs: Iterable[Pair]) -> Samples:
    """`grouped` for all that a recipe has: test sets lose what now is in a group that is learnt."""
    sets = [samples.learn, *samples.test.values()]
    together = iter(grouped([sample for found in sets for sample in found], pairs))
    learn, *tests = ([next(together) for _ in found] for found in sets)
    seen = {sample.group for sample in learn}
    return Samples(
        learn,
        {
            title: [sample for sample in found if sample.group not in seen]
            for title, found in zip(samples.test, tests, strict=True)
        },
    )


# --- what looks the same ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Looks:
    """Of n samples, each row of length 1 so that a product of two is their correlation.

    Attributes:
        bits: ``(n, 64)`` +-1/8, the difference hash.
        shading: ``(n, SIDE * SIDE)`` thumbnails.
        detail: the same without what is coarse.
    """

    bits: NDArray[np.float32]
    shading: NDArray[np.float32]
    detail: NDArray[np.float32]


def near_duplicates(samples: Sequence[Sample]) -> list[Pair]:
    """Names of samples of different groups that look the same, in the order of the samples.

    Generated samples are passed over. Reads every sample once; compares all with all, by matrix
    products (6,000 pictures: some seconds).

    Raises:
        DataError: samples cannot be read; all of them are named.
    """
    real = [sample for sample in samples if not sample.generated]
    if not real:
        return []
    looks = _looks(real)
    most = 1 - 2 * MOST_BITS / 64
    pairs = []
    for start in range(0, len(real), CHUNK):
        rows = slice(start, start + CHUNK)
        alike = looks.bits[rows] @ looks.bits[start:].T >= most - 1e-6
        alike &= looks.shading[rows] @ looks.shading[start:].T >= SHADING
        alike &= looks.detail[rows] @ looks.detail[start:].T >= DETAIL
        for i, j in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
            one, other = real[start + i], real[start + j]
            if one.group != other.group:
                pairs.append((one.name, other.name))
    return pairs


def _looks(samples: Sequence[Sample]) -> _Looks:
    bits, shading, detail = [], [], []
    unread = []
    for sample in samples:
        try:
            grey = _grey(sample.read())
        except ReadingError as error:
            unread.append(f"{sample.name} ({error.reason})")
            continue
        small = _resized(grey, 9, 8)
        thumbnail = _resized(grey, SIDE, SIDE)
        bits.append((small[:, 1:] > small[:, :-1]).ravel() * 0.25 - 0.125)
        shading.append(thumbnail.ravel())
        detail.append((thumbnail - ndimage.gaussian_filter(thumbnail, COARSE)).ravel())
    if unread:
        raise DataError(f"images that cannot be read (replace them): {listed(unread)}")
    return _Looks(np.array(bits, np.float32), *map(_unit, (shading, detail)))


def _unit(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Without mean, of length 1; rows of one value stay 0 and are like nothing."""
    table = np.array(rows, np.float32)
    table -= table.mean(1, keepdims=True)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    table /= np.where(length > 1e-6, length, np.inf)
    return table


def _grey(stack: ImageStack) -> NDArray[np.float32]:
    """The middle frame, ``(rows, columns)``."""
    frame = stack.pixels[len(stack.pixels) // 2].astype(np.float32)
    grey: NDArray[np.float32] = frame.mean(axis=2) if frame.ndim == 3 else frame
    return grey


def _resized(grey: NDArray[np.float32], columns: int, rows: int) -> NDArray[np.float32]:
    """By area."""
    return np.asarray(Image.fromarray(grey).resize((columns, rows), Image.Resampling.BOX))
