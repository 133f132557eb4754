"""Bundles and small files for tests of how samples are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.recipe import Bundle, Data
from training.samples import Samples
from training.sources import load

LUNG = {"value": "39607008", "scheme": "SCT", "meaning": "Lung"}
NETWORKS = {
    "classification": "classifier",
    "grading": "ordinal",
    "detection": "retinanet",
    "segmentation": "unet",
}


def coded(value: str) -> dict[str, str]:
    return {"value": value, "scheme": "SCT", "meaning": f"concept {value}"}


def bundle(task: str, *labels: str, classes: int | None = None, **changes: Any) -> Bundle:
    """A bundle of these labels in the order of channels; codes are those of ``codes``."""
    codes = changes.pop("codes", [f"100{i}" for i in range(len(labels))])
    count = classes or (len(labels) - 1 if task == "grading" else len(labels))
    keys: dict[str, Any] = {
        "name": "test-bundle",
        "version": "1.0.0",
        "title": "A test",
        "manufacturer": "tests",
        "description": "for tests",
        "intended_use": "tests",
        "task": task,
        "architecture": {
            "name": NETWORKS[task],
            "backbone": "mobilenet_v2",
            "classes": count,
        },
        "select": {"unit": changes.pop("unit", "image"), "modality": ["CR"]},
        "input": {"unit": "1"},
        "preprocessing": {
            "percentiles": [1, 99],
            "size": [32, 32],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
        },
    }
    if task == "grading":
        keys["grading"] = {
            "label": "Severity",
            "code": coded("1"),
            "grades": [{"label": label} for label in labels],
        }
    elif task == "segmentation":
        keys["labels"] = [
            {"channel": i, "label": label, "category": LUNG, "type": LUNG, "colour": [0, 0, 0]}
            for i, label in enumerate(labels)
        ]
    else:
        keys["findings"] = [
            {"channel": i, "label": label, "code": coded(code)}
            for i, (label, code) in enumerate(zip(labels, codes, strict=True))
        ]
    return Bundle.model_validate(keys | changes)


def draw(path: Path, seed: int = 0, shape: tuple[int, ...] = (40, 30)) -> Path:
    """A picture of noise, grey, or RGB if the shape has three axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def loaded(data: Data, of: Bundle, root: Path) -> Samples:
    """The samples; each is read once, for a sample that cannot be read is none."""
    samples = load(data, of, root)
    for sample in samples.learn:
        sample.read()
    return samples
