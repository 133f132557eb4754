"""Makes valid, signed bundles with small random weights in about a second, for all other tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from safetensors.torch import save

from dicom_node.services import trust
from inference.bundle import Bundle, open_bundle, write_bundle
from inference.manifest import Manifest
from inference.networks import build
from inference.preprocessing import prepare
from inference.runner import Runner
from inference.types import FrameRef, ImageStack

LUNG = {"value": "39607008", "scheme": "SCT", "meaning": "Lung"}
ANATOMY = {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}
SIDES = (("Right", "24028007", [86, 180, 233]), ("Left", "7771000", [230, 159, 0]))


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
"""Signs the bundles of tests."""
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
TRUST: dict[str, Any] = {"trusted_keys": [trust.setting("tests", KEY)]}
"""The settings' section under which they run."""


def signed(path: Path, key: Ed25519PrivateKey = KEY) -> Bundle:
    """A bundle's folder, signed as it is now."""
    bundle = open_bundle(path)
    trust.sign(bundle, key)
    return bundle


def tiny_manifest(name: str = "tiny", ct: bool = False, **changes: Any) -> dict[str, Any]:
    """All keys of a manifest but ``files``; projections by default, axial CT with ``ct``."""
    manifest: dict[str, Any] = {
        "name": name,
        "version": "0.0.1",
        "title": "Tiny test model",
        "manufacturer": "Tests",
        "description": "Random weights; its output means nothing.",
        "intended_use": "Tests of the node.",
        "task": "segmentation",
        "architecture": {"name": "unet", "backbone": "mobilenet_v2", "classes": 2},
        "select": {
            "unit": "series" if ct else "image",
            "modality": ["CT"] if ct else ["DX", "CR"],
            "orientation": "axial" if ct else "any",
            "take": "best" if ct else "all",
        },
        "input": {"unit": "[hnsf'U]" if ct else "1"},
        "preprocessing": {
            "orient": not ct,
            **({"window": [-1000, 1000]} if ct else {"percentiles": [1, 99]}),
            "size": [64, 64],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "labels": [
            {
                "channel": channel,
                "label": f"{side} lung",
                "category": ANATOMY,
                "type": LUNG,
                "laterality": {"value": code, "scheme": "SCT", "meaning": side},
                "colour": colour,
            }
            for channel, (side, code, colour) in enumerate(SIDES)
        ],
        "batch": 4,
        "golden": {"input": "golden_input.safetensors", "output": "golden_output.safetensors"},
    }
    return {**manifest, **changes}


def make_tiny_bundle(
    path: Path, name: str = "tiny", seed: int = 0, ct: bool = False, **changes: Any
) -> Bundle:
    """Write a valid bundle of a 64 x 64 U-Net on MobileNetV2 with random weights.

    Args:
        path: folder; made, must be empty.
        name: the model's.
        seed: another seed, another bundle with other weights.
        ct: take CT series instead of radiographs.
        changes: keys of the manifest to replace, such as ``batch`` or ``labels``.
    """
    manifest = tiny_manifest(name, ct, **changes)
    files = {"card.md": b"# Tiny test model\n", "evaluation.json": json.dumps({}).encode()}
    placeholder = dict.fromkeys(
        ["weights.safetensors", *files, *manifest["golden"].values()], "0" * 64
    )
    whole = Manifest.model_validate({**manifest, "files": placeholder})
    torch.manual_seed(seed)
    network = build(whole.architecture).eval()
    rng = np.random.default_rng(seed)
    pixels = _picture(rng, -1000, 1000) if ct else _picture(rng, 0, 1)
    stack = ImageStack(pixels, whole.input.unit, "", (FrameRef("", ""), FrameRef("", "")))
    with torch.no_grad():  # about half of a picture lies over the threshold, the rest under it
        x, _ = prepare(stack, whole.preprocessing)
        logits = network(x).transpose(0, 1).flatten(1)
        network.head.weight /= logits.std(1)[:, None, None, None]
        network.head.bias -= logits.median(1).values
        network.head.bias /= logits.std(1)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    output = Runner(whole, weights).golden_output(pixels)
    bundle = write_bundle(
        path,
        manifest,
        {
            **files,
            "weights.safetensors": save(weights),
            manifest["golden"]["input"]: save({"pixels": torch.from_numpy(pixels)}),
            manifest["golden"]["output"]: save(output),
        },
    )
    trust.sign(bundle, KEY)
    return bundle


def _picture(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float32]:
    """``(2, 80, 64)``: blobs rather than noise, as pictures are."""
    blobs = np.kron(rng.uniform(low, high, (2, 10, 8)), np.ones((1, 8, 8)))
    return np.asarray(blobs, np.float32)
