"""Recipes and samples that learn in a second: bright squares on grey noise, 64 x 64 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from inference.manifest import NETWORKS, Task
from tests.stacks import radiograph
from training.recipe import Recipe
from training.samples import Sample, TrueBox, Truth

CODE = {"value": "1", "scheme": "99T", "meaning": "Thing"}
SIDE = 64
STILL = {"degrees": 0.0, "zoom": (1.0, 1.0), "shift": 0.0, "intensity": 0.0}


def recipe(
    task: Task = "classification",
    *,
    classes: int = 2,
    backbone: str = "squeezenet1_1",
    network: str = "",
    activation: str = "softmax",
    size: int = SIDE,
    augment: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    channels: int = 3,
    **training: Any,
) -> Recipe:
    """A valid recipe of one task; keywords change its training."""
    exclusive = activation if task in ("classification", "segmentation") else "sigmoid"
    bundle: dict[str, Any] = {
        "name": "squares",
        "version": "1.0.0",
        "title": "Squares",
        "manufacturer": "tests",
        "description": "Finds squares.",
        "intended_use": "None.",
        "task": task,
        "activation": exclusive,
        "batch": 4,
        "architecture": {
            "name": network or NETWORKS[task][0],
            "backbone": backbone,
            "in_channels": channels,
            "classes": classes,
        },
        "select": {"unit": "image", "modality": ["CR"]},
        "input": {"unit": "1"},
        "preprocessing": {
            "window": (0.0, 1.0),
            "size": (size, size),
            "mean": [0.449] * channels,
            "std": [0.226] * channels,
            **(preprocessing or {}),
        },
    }
    named = [{"channel": i, "label": f"Kind {i}", "code": CODE} for i in range(classes)]
    if task == "segmentation":
        bundle["labels"] = [
            {
                "channel": i,
                "label": f"Kind {i}",
                "category": CODE,
                "type": CODE,
                "colour": (9, 9, 9),
            }
            for i in range(classes)
        ]
    elif task == "grading":
        grades = [{"label": f"Grade {i}"} for i in range(classes + 1)]
        bundle["grading"] = {"label": "Size", "code": CODE, "grades": grades}
    else:
        bundle["findings"] = named
    keys = {
        "data": {"kind": "npz", "file": "none.npz"},
        "training": {"weights": "none", "epochs": 2, "batch": 4, "ema": 0.5, **training},
        "augment": augment or {},
        "bundle": bundle,
        "card": {"data": "Squares that are drawn by tests.", "limits": "They are only squares."},
    }
    return Recipe.model_validate(keys)


def picture(number: int, edge: int) -> np.ndarray:
    """Noise with a bright square of that edge; none at 0."""
    pixels = np.random.default_rng(number).uniform(0, 0.3, (SIDE, SIDE)).astype(np.float32)
    top, left = (number * 7) % 20, (number * 11) % 20
    pixels[top : top + edge, left : left + edge] += 0.6
    return pixels


def samples(task: Task, count: int, classes: int = 2, start: int = 0) -> list[Sample]:
    """As many, of each class or grade in turn."""
    return [_sample(task, start + i, classes) for i in range(count)]


def _sample(task: Task, number: int, classes: int) -> Sample:
    steps = classes + 1 if task == "grading" else classes
    kind = number % steps
    edge = 12 * kind if task in ("classification", "grading") else 16 + 12 * kind
    pixels = picture(number, edge)
    top, left = (number * 7) % 20, (number * 11) % 20
    truth = Truth()
    if task == "classification":
        truth = Truth(classes=tuple(float(i == kind) for i in range(classes)))
    elif task == "grading":
        truth = Truth(grade=kind)
    elif task == "detection":
        truth = Truth(boxes=(TrueBox(kind, left, top, left + edge, top + edge),))
    else:
        masks = np.zeros((classes, 1, SIDE, SIDE), bool)
        masks[kind, 0, top : top + edge, left : left + edge] = True
        truth = Truth(masks=lambda: masks)
    return Sample(f"s{number}", f"p{number}", lambda: radiograph(pixels), truth)
