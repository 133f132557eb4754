"""A recipe that learns in a second, for tests: two lungs of generated radiographs at 64 pixels."""

from __future__ import annotations

from pathlib import Path

import training.recipes
from training.datasets import Sample, Samples, _chest_phantom
from training.recipe import Recipe, read

SHIPPED = sorted(Path(training.recipes.__path__[0]).glob("*.toml"))


def small_recipe(**changes: object) -> Recipe:
    recipe = read(next(path for path in SHIPPED if path.stem == "cxr-lungs"))
    keys = recipe.model_dump()
    keys["training"] |= {"epochs": 2, "batch": 4, "folds": 2, "autocast": False, **changes}
    keys["bundle"]["preprocessing"]["size"] = (64, 64)
    return Recipe.model_validate(keys)


def drawn(count: int, generated: bool = True, start: int = 0) -> list[Sample]:
    samples = [_chest_phantom(start + i) for i in range(count)]
    if generated:
        return samples
    return [Sample(s.name, s.group, s.stack, s.masks, "CC0") for s in samples]


def small_samples() -> Samples:
    return Samples(drawn(8), {"others": drawn(2, generated=False, start=50)})
