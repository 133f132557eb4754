"""Owns what a bundle will hold before there is one: its manifest, and its weights as stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inference.manifest import Manifest
from training.calibration import Decisions
from training.recipe import Recipe

GOLDEN = {"input": "golden_input.safetensors", "output": "golden_output.safetensors"}
FAMILIAR = "familiar.safetensors"
NOWHERE = "0" * 64


def manifest_keys(recipe: Recipe, decisions: Decisions | None = None) -> dict[str, Any]:
    """The manifest without ``files``: the recipe's own words, and what validation data decided."""
    keys = recipe.bundle.manifest()
    keys["golden"] = GOLDEN
    if decisions is None:
        return keys
    if recipe.bundle.task in ("classification", "grading"):
        keys["temperature"] = decisions.temperature
    for label in [*keys["labels"], *keys["findings"], *filter(None, [keys["grading"]])]:
        label["threshold"] = decisions.thresholds.get(label["label"], label["threshold"])
    if decisions.input_check is not None:
        keys["input_check"] = {"file": FAMILIAR, "threshold": decisions.input_check}
    return keys


def draft(recipe: Recipe, decisions: Decisions | None = None) -> Manifest:
    """A manifest to run weights that are not yet a bundle; its digests are nought.

    Raises:
        pydantic.ValidationError: the recipe makes no valid manifest.
    """
    names = ["weights.safetensors", "card.md", "evaluation.json", *GOLDEN.values(), FAMILIAR]
    keys = manifest_keys(recipe, decisions)
    return Manifest.model_validate({**keys, "files": dict.fromkeys(names, NOWHERE)})


def cast(weights: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Floating point tensors in the precision in which a bundle stores them.

    Raises:
        OverflowError: a finite value does not fit.
    """
    wanted = {"float16": torch.float16, "float32": torch.float32}[precision]
    stored = {k: v.to(wanted) if v.is_floating_point() else v for k, v in weights.items()}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise OverflowError(f"{name} does not fit {precision}")
    return stored


def weights_digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, types and values of a state dict, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else b"%d" % tensor)
    return digest.hexdigest()
