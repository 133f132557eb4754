"""The shipped models on images that none of them learnt from, made into DICOM and pushed through a
node: each is routed to its model, and the report says what the truth says, more often than not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data import shared
from training import steps
from training.recipe import read
from training.samples import Sample

RECIPES = Path(steps.__file__).parent / "recipes"
SHOWN = 12


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def held_out(recipe: str, count: int = SHOWN) -> list[Sample]:
    """Samples that the recipe's model did not learn from, of every class alike."""
    plan = read(RECIPES / f"{recipe}.toml")
    parted = steps.part(plan, shared())
    offered = [*parted.parts["test"], *(s for extra in parted.extra.values() for s in extra)]
    by: dict[object, list[Sample]] = {}
    for sample in offered:
        by.setdefault(sample.truth.classes or sample.truth.grade, []).append(sample)
    return [sample for mine in by.values() for sample in mine[: count // len(by)]]
