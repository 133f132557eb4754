"""Owns the errors that training raises; knows nothing of how they are shown.

::

    TrainingError
    ├── RecipeError      a recipe says what cannot be done
    ├── DataError        samples are missing, broken or contradict each other
    │   └── LeakError    one patient, study or picture on both sides of a split
    ├── WeightsError     pretrained weights that are not those of the network
    ├── Diverged         the loss is no number any more
    ├── RunError         a run folder belongs to another recipe or other data
    └── ExportRefused    the bundle does not do what the training code did, or lacks its card

Each message says what happened, to which sample, key or file, and what to do. Samples are named by
their data set's own pseudonyms.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10


class TrainingError(Exception):
    """Anything that training can say went wrong."""


class RecipeError(TrainingError):
    """A recipe says what cannot be done."""


class DataError(TrainingError):
    """Samples are missing, broken or contradict each other."""


class LeakError(DataError):
    """One patient, study or picture on both sides of a split."""


class WeightsError(TrainingError):
    """Pretrained weights that are not those of the network."""


class Diverged(TrainingError):
    """The loss is no number any more."""


class RunError(TrainingError):
    """A run folder belongs to another recipe or other data."""


class ExportRefused(TrainingError):
    """The bundle does not do what the training code did, or lacks its card."""


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
