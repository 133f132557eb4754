"""Owns turning learnt weights into a bundle that the service may be given; measures it again.

What is written is opened, run through ``inference`` and held against the training code before
anyone is told that it is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from inference.bundle import Bundle, write_bundle
from inference.engine import Engine, Runner
from inference.errors import BundleError
from inference.manifest import Manifest
from inference.networks import build
from inference.preprocessing import normalise
from training.datasets import Sample, Samples, tensors
from training.evaluate import Row, cast, measured, summary
from training.recipe import Recipe

TOLERANCE = 1e-4  # between the training code's probabilities and inference's, same weights
GOLDEN = {"input": "golden_input.safetensors", "output": "golden_output.safetensors"}
GOLDEN_FRAMES = 2
NOWHERE = "0" * 64


class ExportRefused(Exception):
    """The bundle does not do what the training code did."""


def manifest_keys(recipe: Recipe) -> dict[str, Any]:
    """The manifest without ``files``."""
    return {**recipe.bundle.manifest(), "task": "segmentation", "golden": GOLDEN}


def draft(recipe: Recipe) -> Manifest:
    """A manifest whose digests are not yet known, to run weights that are not yet a bundle."""
    names = ["weights.safetensors", "card.md", "evaluation.json", *GOLDEN.values()]
    return Manifest.model_validate(
        {**manifest_keys(recipe), "files": dict.fromkeys(names, NOWHERE)}
    )


def export(
    recipe: Recipe,
    learnt: dict[str, Tensor],
    folder: Path,
    samples: Samples,
    *,
    cross_validation: Sequence[Row],
    made: Mapping[str, Any],
) -> Bundle:
    """Write a bundle.

    Args:
        recipe: that the weights came from.
        learnt: float32 weights.
        folder: new or empty.
        samples: what was learnt from, on which the two code paths are compared and of whose
            generated pictures the golden example is made; and what was not, measured now with
            the stored weights.
        cross_validation: figures of the recipe, from folds cast like these weights; may be none.
        made: versions and seeds for the evaluation file.

    Raises:
        ExportRefused: probabilities through ``inference`` differ from the training code's.
        BundleError: the folder is not empty or the recipe makes no valid manifest.
    """
    weights = cast(learnt, recipe.bundle.precision)
    runner = Runner(draft(recipe), weights)
    evaluation: dict[str, Any] = {
        "metric": "Dice of the cleaned masks on the input's grid, 0..1",
        "interval": "95%, bootstrap over groups (patients or volumes)",
        "weights": f"as stored, {recipe.bundle.precision}",
        "made": dict(made),
        "sets": {},
    }
    if cross_validation:
        evaluation["sets"]["cross-validation of this recipe, each patient held out once"] = {
            **summary(cross_validation),
            "rows": [_row(row) for row in cross_validation],
        }
    for title, held in samples.test.items():
        rows = measured(runner, held)
        evaluation["sets"][title] = {**summary(rows), "rows": [_row(row) for row in rows]}
    frame = _golden_frames(samples.learn)
    bundle = write_bundle(
        folder,
        manifest_keys(recipe),
        {
            "weights.safetensors": save({k: v.contiguous() for k, v in weights.items()}),
            "card.md": card(recipe, evaluation).encode(),
            "evaluation.json": (json.dumps(evaluation, indent=1) + "\n").encode(),
            GOLDEN["input"]: save({"pixels": frame}),
            GOLDEN["output"]: save({"probability": runner.golden_output(frame.float().numpy())}),
        },
    )
    try:
        _check(recipe, weights, bundle, samples)
    except (ExportRefused, BundleError):
        shutil.rmtree(folder)  # new or empty before; what was refused must not be found
        raise
    return bundle


def _check(recipe: Recipe, weights: dict[str, Tensor], bundle: Bundle, samples: Samples) -> None:
    engine = Engine(bundle)
    engine.check_golden()
    difference = disagreement(recipe, weights, engine, samples.learn)
    if not difference <= TOLERANCE:
        raise ExportRefused(
            f"probabilities differ by {difference:.3g} between training and inference, "
            f"over {TOLERANCE:g}"
        )


def disagreement(
    recipe: Recipe, weights: dict[str, Tensor], engine: Engine, samples: Sequence[Sample]
) -> float:
    """Largest difference of probabilities, training's own forward pass against the engine's."""
    network = build(recipe.bundle.architecture)
    network.load_state_dict(weights)
    network = network.float().eval()
    worst = 0.0
    for sample in samples[:8]:
        images, _ = tensors([sample], recipe.bundle.preprocessing)
        with torch.no_grad():
            logits = network(normalise(images, recipe.bundle.preprocessing))
        ours = logits.sigmoid() if recipe.bundle.activation == "sigmoid" else logits.softmax(1)
        x, _ = engine.prepared(sample.stack)
        for i in range(0, len(x), engine.batch):
            part = slice(i, i + engine.batch)
            theirs = engine.probabilities(x[part]).cpu()
            worst = max(worst, float((ours[part] - theirs).abs().max()))
    return worst


def _golden_frames(samples: Sequence[Sample]) -> Tensor:
    """Frames of the last generated sample, in values that float16 holds exactly."""
    stack = [sample.stack for sample in samples if sample.generated][-1]
    chosen = np.linspace(0, len(stack.pixels) - 1, GOLDEN_FRAMES).round().astype(int)
    frames = np.asarray(stack.pixels[np.unique(chosen)], np.float32)
    return torch.from_numpy(frames).half()


def card(recipe: Recipe, evaluation: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    bundle = recipe.bundle
    parts = [
        f"# {bundle.title} ({bundle.name} {bundle.version})",
        f"{bundle.description}\n\n**Research use, not for diagnosis.** {bundle.intended_use}",
        f"## Data and licences\n{recipe.card.data.strip()}",
        "## Quality\n" + _quality(evaluation),
        f"## Limits\n{recipe.card.limits.strip()}",
        "## Network\n"
        f"U-Net on {bundle.architecture.backbone}, {bundle.preprocessing.size[0]} x "
        f"{bundle.preprocessing.size[1]} pixels, weights in {bundle.precision}, made by the "
        f"recipe `{bundle.name}.toml`; per-sample figures are in `evaluation.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _quality(evaluation: Mapping[str, Any]) -> str:
    lines = ["Dice, mean over samples with its 95% interval (bootstrap over patients or volumes)."]
    for title, found in evaluation["sets"].items():
        heading = title[:1].upper() + title[1:]
        lines.append(f"\n{heading}: {found['samples']} samples of {found['groups']} groups.\n")
        lines.append("| | mean | 95% interval | worst |\n|---|---|---|---|")
        for label, figures in found["dice"].items():
            low, high = figures["interval_95"]
            interval = f"{low:.3f} to {high:.3f}" if found["groups"] > 1 else "one group"
            lines.append(
                f"| {label} | {figures['mean']:.3f} | {interval} | {figures['worst']:.3f} |"
            )
    return "\n".join(lines)


def _row(row: Row) -> dict[str, Any]:
    figures = {label: round(value, 4) for label, value in row.dice.items()}
    return {"name": row.name, "licence": row.licence, "fold": row.fold, "dice": figures}
