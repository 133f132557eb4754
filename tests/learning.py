"""Recipes that learn in a second, and pictures to learn from: grey noise with bright discs in it.

One kind of picture serves every task: a class is "a disc", a grade the number of discs, a box or a
mask its place. ``recipe("detection")`` is a recipe for it, ``samples("detection", 12)`` its data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.types import FrameRef, ImageStack
from training.recipe import Recipe
from training.samples import Sample, TrueBox, Truth

CR = "1.2.840.10008.5.1.4.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
SIZE = 64
LESION = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
LUNG = {"value": "39607008", "scheme": "SCT", "meaning": "Lung"}
NETWORK = {
    "classification": "classifier",
    "grading": "ordinal",
    "detection": "retinanet",
    "segmentation": "unet",
}
CLASSES = {"classification": 1, "grading": 2, "detection": 1, "segmentation": 1}
TOLD: dict[str, dict[str, Any]] = {
    "classification": {"findings": [{"channel": 0, "label": "Disc", "code": LESION}]},
    "detection": {"findings": [{"channel": 0, "label": "Disc", "code": LESION}]},
    "grading": {
        "grading": {
            "label": "Discs",
            "code": LESION,
            "grades": [{"label": "None"}, {"label": "One"}, {"label": "Two"}],
        }
    },
    "segmentation": {
        "labels": [
            {
                "channel": 0,
                "label": "Disc",
                "category": {
                    "value": "49755003",
                    "scheme": "SCT",
                    "meaning": "Morphologically Abnormal Structure",
                },
                "type": LESION,
                "colour": [230, 159, 0],
            }
        ]
    },
}


def keys(task: str, network: str = "", backbone: str = "mobilenet_v2", ct: bool = False) -> Any:
    """The keys of a recipe, to be changed at will; ``ct``: volumes, three slices as channels."""
    return {
        "data": {"kind": "table", "file": "labels.csv", "label": ["label"]},
        "split": {"test": 0.25, "validation": 0.25, "folds": 2},
        "training": {
            "weights": "none",
            "epochs": 1,
            "batch": 4,
            "encoder_rate": 1e-3,
            "head_rate": 1e-3,
        },
        "evaluation": {"bootstrap": 100},
        "bundle": {
            "task": task,
            "name": f"tiny-{task}",
            "version": "0.0.1",
            "title": f"Tiny {task}",
            "manufacturer": "Tests",
            "description": "Learns discs; means nothing.",
            "intended_use": "Tests.",
            "batch": 4,
            "architecture": {
                "name": network or NETWORK[task],
                "backbone": backbone,
                "classes": CLASSES[task],
            },
            "select": {
                "unit": "series" if ct else "image",
                "modality": ["CT"] if ct else ["DX", "CR"],
                "take": "best" if ct else "all",
            },
            "input": {"unit": "[hnsf'U]" if ct else "1"},
            "preprocessing": {
                "size": [SIZE, SIZE],
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                **({"window": [0, 1000], "neighbours": 1} if ct else {"percentiles": [0, 100]}),
            },
            **TOLD[task],
        },
        "card": {
            "data": "Pictures that a test drew, of nobody, without licence.",
            "limits": "Everything: it was learnt in a second.",
        },
    }


def recipe(task: str, network: str = "", backbone: str = "mobilenet_v2", **training: Any) -> Recipe:
    """A valid recipe; ``training`` changes that section."""
    found = keys(task, network, backbone)
    found["training"] |= training
    return Recipe.model_validate(found)


def discs(seed: int, count: int) -> tuple[NDArray[np.float32], list[TrueBox], NDArray[np.bool_]]:
    """A picture in 0..1, its discs' boxes, and their mask ``(rows, columns)``."""
    rng = np.random.default_rng(seed)
    picture = rng.uniform(0.1, 0.4, (SIZE, SIZE)).astype(np.float32)
    mask = np.zeros((SIZE, SIZE), bool)
    boxes = []
    down, across = np.mgrid[:SIZE, :SIZE]
    for i in range(count):
        radius = int(rng.integers(6, 11))
        row = int(rng.integers(radius + 1, SIZE - radius - 1))
        column = int(rng.integers(radius + 1, SIZE // 2 - radius)) + i * SIZE // 2
        inside = (down - row) ** 2 + (across - column) ** 2 <= radius**2
        mask |= inside
        boxes.append(
            TrueBox(0, column - radius, row - radius, column + radius + 1.0, row + radius + 1.0)
        )
    picture[mask] += 0.5
    return picture, boxes, mask


def samples(task: str, count: int, start: int = 0, ct: bool = False) -> list[Sample]:
    """So many, each a patient of its own; one in two, or one in three, shows each answer."""
    return [_sample(task, start + i, ct) for i in range(count)]


def _sample(task: str, seed: int, ct: bool) -> Sample:
    discs_in = seed % 3 if task == "grading" else seed % 2 + (task == "segmentation")
    picture, boxes, mask = discs(seed, min(discs_in, 2))
    name = f"disc-{seed}"
    frames = 3 if ct else 1
    truth = {
        "classification": Truth(classes=(float(discs_in > 0),)),
        "grading": Truth(grade=discs_in),
        "detection": Truth(boxes=tuple(boxes)),
        "segmentation": Truth(masks=lambda: np.repeat(mask[None, None], frames, axis=1)),
    }[task]
    return Sample(
        name, name, lambda: stack(picture, name, ct), truth, "CC0",
        attributes={"sex": "FM"[seed % 2]},
    )  # fmt: skip  # one sample, one line


def stack(picture: NDArray[np.float32], name: str, ct: bool = False) -> ImageStack:
    """The picture as a radiograph, or three times as slices of a CT."""
    if not ct:
        return ImageStack(picture[None], "1", "CR", (FrameRef(name, CR),))
    return ImageStack(
        pixels=np.repeat((picture * 1000).astype(np.int16)[None], 3, axis=0),
        unit="[hnsf'U]",
        modality="CT",
        frames=tuple(FrameRef(f"{name}-{i}", CT) for i in range(3)),
        positions=np.array([[0.0, 0, 5 * i] for i in range(3)]),
        orientation=np.array([1.0, 0, 0, 0, 1, 0]),
        spacing=(1.0, 1.0),
    )


# --- as files, for the commands ----------------------------------------------------------------


def toml(told: dict[str, Any]) -> str:
    """The keys of a recipe as TOML, every section on one line."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in told.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        held = [f"{json.dumps(k)} = {_value(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(held) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def write_table(folder: Path, count: int) -> None:
    """``labels.csv`` and PNG files: "disc" has a disc in it, each of a patient of its own."""
    lines = ["path,label,patient,sex"]
    for i in range(count):
        picture, _, _ = discs(i, i % 2)
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'Disc' if i % 2 else 'Empty'},p{i},{'FM'[i % 3 == 0]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def table_keys(**training: Any) -> Any:
    """A recipe for `write_table`: two classes that exclude each other."""
    told = keys("classification")
    told["data"] |= {"group": "patient", "attributes": ["sex"], "licence": "CC0"}
    told["training"] |= training
    told["bundle"] |= {
        "activation": "softmax",
        "findings": [
            {"channel": 0, "label": "Empty", "code": LUNG},
            {"channel": 1, "label": "Disc", "code": LESION, "saliency": True},
        ],
    }
    told["bundle"]["architecture"]["classes"] = 2
    return told
