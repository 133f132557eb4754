"""Owns what a sample is: one picture or volume with its truth and where it comes from.

Refuses to know how it is read, split or learnt from. Nothing here names a patient to a reader:
``name`` and ``group`` are the data set's own pseudonyms and stay in the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference.types import ImageStack

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class TrueBox:
    """An object's place on one frame, edges in pixels of the sample's grid, as ``inference.Box``.

    ``kind`` is its channel in the recipe.
    """

    kind: int
    left: float
    top: float
    right: float
    bottom: float
    frame: int = 0


@dataclass(frozen=True)
class Truth:
    """What is known of a sample; exactly what its task asks for is set.

    Attributes:
        classes: ``(classes,)`` 0 or 1 in the order of the recipe's channels; one 1 where classes
            exclude each other.
        grade: counts from 0, the lowest.
        boxes: of all frames; an empty tuple says that there is nothing.
        masks: gives ``(classes, frames, rows, columns)`` bool on the sample's grid.
    """

    classes: tuple[float, ...] | None = None
    grade: int | None = None
    boxes: tuple[TrueBox, ...] | None = None
    masks: Callable[[], NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class Sample:
    """One picture or volume with its truth.

    Attributes:
        name: tells it from all others of its data set; no patient's name, number or date.
        group: samples of one group (a patient, and whoever shares a picture with them) are never
            parted by a split.
        read: gives what a model is shown; called when it is needed, and may raise ``ReadingError``.
        truth: what is known of it.
        licence: under which it may be used.
        study: the study it belongs to, where that is known; "" where it is not.
        attributes: what subgroups are made of, such as sex, age, view, site.
        part: where a published split puts it; None leaves it to the recipe.
        generated: drawn by us; learnt from, never evaluated on as if it were a patient.
    """

    name: str
    group: str
    read: Callable[[], ImageStack]
    truth: Truth
    licence: str = ""
    study: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    part: Part | None = None
    generated: bool = False


@dataclass(frozen=True)
class Samples:
    """What a recipe learns from and is split, and what it never sees until it is measured.

    Attributes:
        learn: parted into training, validation and test by the recipe's split.
        test: further sets by title, all of groups that ``learn`` does not hold.
    """

    learn: list[Sample]
    test: dict[str, list[Sample]] = field(default_factory=dict)
