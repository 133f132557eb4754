"""Owns the question whether transfer helps: the same learning from pretrained weights and from
scratch, over backbones, shares of the data, folds and seeds.

Refuses to say more than its cells do: each is one number on one fold, kept in a table, so that an
interrupted grid goes on and anyone can draw other conclusions.

Two modes. ``frozen``: features of the untouched encoder, then a logistic regression, its strength
chosen on a part of the training data; scratch is an encoder with random weights. ``finetune``: the
recipe's own training. Groups are never parted, and smaller shares are subsets of larger ones.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load_file, save_file

from inference.networks import build
from inference.preprocessing import normalise
from training import leaks, sources, splits, weights
from training import recipe as recipes
from training.errors import DataError, RecipeError
from training.prepare import Prepared, prepare, subset
from training.recipe import Recipe, Split
from training.samples import Sample

Init = Literal["pretrained", "scratch"]
INITS: tuple[Init, Init] = ("pretrained", "scratch")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the logistic regression, scikit-learn's C
FEATURE_BATCH = 32
Report = Callable[[int, int, str], None]
"""Told after each cell: how many are done, of how many, and which it was."""


class Grid(BaseModel):
    """What a grid file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    mode: Literal["frozen", "finetune"]
    recipes: dict[str, str] = Field(description="name of a data set -> recipe, beside the grid")
    backbones: dict[str, str] = Field(description="torchvision's name -> weights, as in a recipe")
    fractions: list[float] = Field(min_length=1, description="shares of the training groups")
    folds: int = Field(ge=2)
    seeds: list[int] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One learning, and how well it did on the fold that it did not see."""

    data: str
    mode: str
    backbone: str
    init: str
    fraction: float
    fold: int
    seed: int
    learnt_from: int = 0
    measured_on: int = 0
    auc: float = float("nan")

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the others."""
        return (self.data, self.mode, self.backbone, self.init, self.fraction, self.fold, self.seed)


def read_grid(path: Path) -> Grid:
    """A grid from its file.

    Raises:
        RecipeError: it is none.
    """
    try:
        return Grid.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecipeError(f"{path.name}: {error}") from error


def run(
    path: Path,
    root: Path,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    report: Report = lambda *_: None,
) -> list[Cell]:
    """All cells of a grid; those in ``out/cells.csv`` are not repeated.

    Args:
        path: the grid's file.
        root: folder of the data.
        out: where the table, features and runs are kept.
        device: to run on.
        report: hears of each cell.

    Raises:
        RecipeError: the grid or a recipe cannot be used.
        DataError: the data are not there, or too few for so many folds.
    """
    grid = read_grid(path)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "cells.csv"
    cells = read_cells(table)
    done = {cell.key for cell in cells}
    total = len(list(_planned(grid)))
    for name, file in grid.recipes.items():
        plan = recipes.read(path.parent / file)
        samples = _binary(plan, root)
        dealt = splits.folds(samples, Split(folds=grid.folds, validation=0.2), plan.bundle.task)
        prepared = prepare(samples, plan.bundle)
        for cell in _planned(grid, name):
            if cell.key in done:
                continue
            learn = [s for part in ("train", "val") for s in dealt[cell.fold][part]]
            chosen = share(learn, cell.fraction, cell.seed)
            held = dealt[cell.fold]["test"]
            measure = _frozen if grid.mode == "frozen" else _finetuned
            auc = measure(
                Place(plan, prepared, samples, root, out, device), grid, cell, chosen, held
            )
            found = Cell(
                **{
                    **asdict(cell),
                    "learnt_from": len(chosen),
                    "measured_on": len(held),
                    "auc": round(auc, 5),
                }
            )
            cells.append(found)
            _append(table, found)
            report(len(cells), total, f"{name} {cell.backbone} {cell.init} {cell.fraction:.0%}")
    return cells


@dataclass(frozen=True)
class Place:
    """What all cells of one data set share."""

    recipe: Recipe
    prepared: Prepared
    samples: list[Sample]
    root: Path
    out: Path
    device: torch.device | str


def share(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """That share of the groups of each class, at least two of each; a larger share holds it.

    Args:
        samples: of two classes.
        fraction: 0..1.
        seed: of the drawing.
    """
    chosen: list[Sample] = []
    for label in (0, 1):
        mine = [sample for sample in samples if _label(sample) == label]
        groups = sorted({sample.group for sample in mine})
        drawn = np.random.default_rng([seed, label]).permutation(groups)
        kept = set(drawn[: max(2, round(fraction * len(drawn)))])
        chosen += [sample for sample in mine if sample.group in kept]
    return chosen


# --- the two modes -----------------------------------------------------------------------------


def _frozen(
    place: Place, grid: Grid, cell: Cell, learn: Sequence[Sample], held: Sequence[Sample]
) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score
    from sklearn.model_selection import GroupShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = _features(place, grid, cell)
    row = {sample.name: i for i, sample in enumerate(place.samples)}
    x, y = features[[row[s.name] for s in learn]], np.array([_label(s) for s in learn])

    def fitted(c: float, chosen: NDArray[np.intp]) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
        return model.fit(x[chosen], y[chosen])

    every = np.arange(len(y))
    inner = GroupShuffleSplit(3, test_size=0.25, random_state=cell.seed)
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for fit_on, judge_on in inner.split(x, y, [s.group for s in learn]):
        if len(set(y[fit_on])) == 2:
            for c in STRENGTHS:
                told = fitted(c, fit_on).predict_proba(x[judge_on])
                losses[c] += log_loss(y[judge_on], told, labels=[0, 1])
    best = min(STRENGTHS, key=lambda c: losses[c])
    scores = fitted(best, every).predict_proba(features[[row[s.name] for s in held]])[:, 1]
    return float(roc_auc_score([_label(s) for s in held], scores))


def _features(place: Place, grid: Grid, cell: Cell) -> NDArray[np.float32]:
    """``(samples, features)`` of the untouched encoder, kept in ``out/features``."""
    seed = cell.seed if cell.init == "scratch" else 0
    file = place.out / "features" / f"{cell.data}-{cell.backbone}-{cell.init}-{seed}.safetensors"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        network = _network(place, grid, cell, seed)
        spec = place.recipe.bundle.preprocessing
        found = []
        with torch.inference_mode():
            for start in range(0, len(place.prepared.images), FEATURE_BATCH):
                x = normalise(place.prepared.images[start : start + FEATURE_BATCH], spec)
                x = x.to(place.device).contiguous(memory_format=torch.channels_last)
                found.append(network.encoder(x)[-1].mean((2, 3)).float().cpu().numpy())
        save_file({"features": np.concatenate(found)}, file)
    return load_file(file)["features"]


def _network(place: Place, grid: Grid, cell: Cell, seed: int) -> Any:
    """The cell's untouched network, in evaluation mode."""
    torch.manual_seed(seed)
    architecture = place.recipe.bundle.architecture.model_copy(update={"backbone": cell.backbone})
    network: Any = build(architecture)
    if cell.init == "pretrained":
        state = weights.load(grid.backbones[cell.backbone], cell.backbone, place.root)
        network.encoder.load_state_dict(network.encoder.from_torchvision(state))
    else:
        # Random weights with the statistics of one pass, or features would fade to nothing.
        network.train()
        spec = place.recipe.bundle.preprocessing
        with torch.no_grad():
            network.encoder(normalise(place.prepared.images[: 2 * FEATURE_BATCH], spec))
    return network.eval().to(place.device, memory_format=torch.channels_last)


def _finetuned(
    place: Place, grid: Grid, cell: Cell, learn: Sequence[Sample], held: Sequence[Sample]
) -> float:
    from sklearn.metrics import roc_auc_score

    from inference.runner import Runner
    from training import finetune as learning
    from training.drafts import draft
    from training.run import Run

    keys = place.recipe.model_dump()
    keys["bundle"]["architecture"]["backbone"] = cell.backbone
    keys["training"]["seed"] = cell.seed
    keys["training"]["patience"] = 0
    if cell.init == "pretrained":
        keys["training"]["weights"] = grid.backbones[cell.backbone]
    else:
        # Nothing was pretrained, so that nothing is to be treated gently.
        keys["training"] |= {"weights": "none", "encoder_rate": keys["training"]["head_rate"]}
    plan = Recipe.model_validate(keys)
    start = weights.load(plan.training.weights, cell.backbone, place.root)
    folder = place.out / "runs" / "-".join(str(part) for part in cell.key)
    row = {sample.name: i for i, sample in enumerate(place.samples)}
    shown = subset(place.prepared, [row[sample.name] for sample in learn])
    run = Run.open(folder, plan)
    learnt = learning.learn(plan, shown, None, run, weights=start, device=place.device)
    runner = Runner(draft(plan), learnt, place.device)
    told = runner.raw([sample.read() for sample in held])
    scores = [float(found["probability"].mean(0)[-1]) for found in told]
    return float(roc_auc_score([_label(s) for s in held], scores))


# --- cells -------------------------------------------------------------------------------------


def _planned(grid: Grid, data: str | None = None) -> Iterator[Cell]:
    for name in [data] if data else grid.recipes:
        for backbone in grid.backbones:
            for init in INITS:
                for fraction in grid.fractions:
                    for fold in range(grid.folds):
                        for seed in grid.seeds:
                            yield Cell(name, grid.mode, backbone, init, fraction, fold, seed)


def _binary(plan: Recipe, root: Path) -> list[Sample]:
    """What a recipe learns from, a published test split left alone; what looks the same, together.

    Raises:
        DataError: the task is not one of two classes.
    """
    if plan.bundle.task != "classification" or len(plan.bundle.findings) > 2:
        raise DataError("a grid measures AUC: its recipes classify into two classes")
    loaded = sources.load(plan.data, plan.bundle, root).learn
    kept = [sample for sample in loaded if sample.part != "test" and not sample.generated]
    free = [replace(sample, part=None) for sample in kept]
    return leaks.grouped(free, leaks.near_duplicates(free))


def _label(sample: Sample) -> int:
    assert sample.truth.classes is not None  # noqa: S101  # _binary admits classification alone
    return int(sample.truth.classes[-1])


def read_cells(path: Path) -> list[Cell]:
    """What earlier runs found; none where there is no table."""
    if not path.is_file():
        return []
    kinds: dict[str, Callable[[str], Any]] = {
        field.name: {"str": str, "int": int, "float": float}[str(field.type)]
        for field in fields(Cell)
    }
    with path.open(newline="") as file:
        return [Cell(**{k: kinds[k](v) for k, v in line.items()}) for line in csv.DictReader(file)]


def _append(path: Path, cell: Cell) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cell)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(cell))
