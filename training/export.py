"""Owns turning a run that was measured into a bundle that the service may be given.

What is written is opened, run through ``inference`` and held against the training code before
anyone is told that it is there. Refuses to measure: the figures are those of ``evaluate``, and of
these very weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from inference.bundle import Bundle, write_bundle
from inference.engine import Engine
from inference.errors import BundleError
from inference.manifest import Manifest
from inference.networks import build
from inference.phantoms import chest_radiograph, ct_volume
from inference.pixels import PROJECTIONS
from inference.preprocessing import geometry, normalise, scaled
from inference.runner import Runner
from training.calibration import Decisions
from training.drafts import FAMILIAR, GOLDEN, cast, draft, manifest_keys, weights_digest
from training.errors import ExportRefused
from training.page import card_table
from training.recipe import Recipe
from training.samples import Sample

TOLERANCE = 1e-4  # between the training code's answers and inference's, same weights
COMPARED = 8  # samples that both answer
GOLDEN_FRAMES, GOLDEN_ROWS = 2, 320


def export(recipe: Recipe, run: Path, folder: Path, samples: Sequence[Sample]) -> Bundle:
    """Write a bundle.

    Args:
        recipe: whose weights these are; may have other words than when they were learnt.
        run: a run's folder, trained and evaluated.
        folder: of the bundle, new or empty.
        samples: any that a model may be shown, on which the two code paths are compared.

    Raises:
        ExportRefused: the run was not evaluated, or with other weights; the recipe has no card;
            answers through ``inference`` differ from the training code's.
        BundleError: the folder is not empty or the recipe makes no valid manifest.
    """
    if recipe.card is None:
        raise ExportRefused(
            "the recipe has no [card]: say in it which data were learnt from, under which "
            "licences (data), and where the model must not be trusted (limits)"
        )
    learnt, evaluation = _measured(run)
    weights = cast(learnt, recipe.bundle.precision)
    if evaluation.get("weights_sha256") != weights_digest(weights):
        raise ExportRefused(
            "the evaluation is of other weights, or of another precision; run evaluate again"
        )
    decisions = Decisions.read(run / "decisions.json")
    familiar = load_file(run / FAMILIAR) if decisions.input_check is not None else None
    runner = Runner(draft(recipe, decisions), weights, familiar=familiar)
    pixels = golden_pixels(runner.manifest)
    files = {
        "weights.safetensors": save({k: v.contiguous() for k, v in weights.items()}),
        "card.md": card(recipe, evaluation).encode(),
        "evaluation.json": (json.dumps(evaluation, indent=1) + "\n").encode(),
        GOLDEN["input"]: save({"pixels": torch.from_numpy(pixels).half()}),
        GOLDEN["output"]: save(runner.golden_output(pixels)),
    }
    if familiar is not None:
        files[FAMILIAR] = save(familiar)
    bundle = write_bundle(folder, manifest_keys(recipe, decisions), files)
    try:
        engine = Engine(bundle)
        engine.check_golden()
        difference = disagreement(recipe, weights, engine, samples[:COMPARED])
        if not difference <= TOLERANCE:  # a NaN is not
            raise ExportRefused(
                f"answers differ by {difference:.3g} between training and inference, over "
                f"{TOLERANCE:g}"
            )
    except (ExportRefused, BundleError):
        shutil.rmtree(folder)  # new or empty before; what was refused must not be found
        raise
    return bundle


def _measured(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A run's weights and evaluation.

    Raises:
        ExportRefused: it has not got so far.
    """
    for name, command in (("weights.safetensors", "train"), ("evaluation.json", "evaluate")):
        if not (run / name).is_file():
            raise ExportRefused(f"{run.name} holds no {name}; run {command} first")
    return load_file(run / "weights.safetensors"), json.loads((run / "evaluation.json").read_text())


@torch.no_grad()
def disagreement(
    recipe: Recipe, weights: dict[str, Tensor], engine: Engine, samples: Sequence[Sample]
) -> float:
    """Largest difference of any answer, training's own forward pass against the engine's.

    Probabilities and scores as they are, boxes as shares of the network's input.
    """
    network = build(recipe.bundle.architecture)
    network.load_state_dict(weights)
    network = network.float().eval()
    spec, task = recipe.bundle.preprocessing, recipe.bundle.task
    worst = 0.0
    for sample in samples:
        stack = sample.read()
        x = normalise(geometry(stack, spec).forward(scaled(stack, spec)), spec)
        (theirs,) = engine.raw([stack])
        for i, frame in enumerate(x):
            ours = network(frame[None])
            if task == "detection":
                worst = max(worst, _apart(ours[0], {k: v[i] for k, v in theirs.items()}, spec.size))
                continue
            logits = ours / engine.manifest.temperature
            exclusive = recipe.bundle.activation == "softmax"
            told = (logits.softmax(1) if exclusive else logits.sigmoid())[0].numpy()
            worst = max(worst, float(np.abs(told - theirs["probability"][i]).max()))
    return worst


def _apart(
    ours: dict[str, Tensor], theirs: dict[str, NDArray[Any]], size: tuple[int, int]
) -> float:
    """Of two detections of one frame; 1 where one sees another number of objects."""
    count = int((theirs["scores"] > 0).sum())
    if count != len(ours["scores"]):
        return 1.0
    if not count:
        return 0.0
    order = ours["scores"].argsort(descending=True, stable=True)
    scores = np.abs(ours["scores"][order].numpy() - theirs["scores"][:count]).max()
    boxes = np.abs(ours["boxes"][order].numpy() - theirs["boxes"][:count]).max() / max(size)
    return float(max(scores, boxes))


def golden_pixels(manifest: Manifest) -> NDArray[np.float32]:
    """Generated frames ``(frames, rows, columns)`` in values that float16 holds exactly.

    A golden example shows that a machine computes what was exported, so it need not be a patient,
    and is none: a drawn chest for radiographs, drawn slices for CT, smooth noise for all else.
    """
    if manifest.input.unit == "[hnsf'U]":
        volume, _ = ct_volume(1, GOLDEN_FRAMES, GOLDEN_ROWS, "chest")
        found = volume.astype(np.float32)
    elif set(manifest.select.modality) <= PROJECTIONS:
        found = chest_radiograph(1, (GOLDEN_ROWS, GOLDEN_ROWS))[0][None]
    else:
        noise = torch.rand(1, GOLDEN_FRAMES, 12, 12, generator=torch.Generator().manual_seed(1))
        size = (GOLDEN_ROWS, GOLDEN_ROWS)
        found = torch.nn.functional.interpolate(noise, size, mode="bicubic")[0].clamp(0, 1).numpy()
    return found.astype(np.float16).astype(np.float32)


def card(recipe: Recipe, evaluation: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    bundle = recipe.bundle
    assert recipe.card is not None  # noqa: S101  # export refuses before
    rows, columns = bundle.preprocessing.size
    parts = [
        f"# {bundle.title} ({bundle.name} {bundle.version})",
        f"{bundle.description}\n\n**Research use, not for diagnosis.** {bundle.intended_use}",
        f"## Data and licences\n{recipe.card.data.strip()}",
        f"## Quality\n{card_table(evaluation)}",
        f"## Limits\n{recipe.card.limits.strip()}",
        f"## Network\n{bundle.architecture.name} on {bundle.architecture.backbone}, {rows} x "
        f"{columns} pixels, weights in {bundle.precision}, made by the recipe "
        f"`{bundle.name}.toml`. The figures of every sample are in `evaluation.json`.",
    ]
    return "\n\n".join(parts) + "\n"
