"""How many pictures the input checks of shipped models refuse: those they are for, and others.

python -m tests.benchmarks.input_check          # DICOM_NODE_DATA names the folder of the data

Pictures that a model is for are those that its recipe held out; the others are the same ones
turned, mirrored and inverted, breast ultrasound for chest models and the other way round, noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dicom_node.services.models import SHIPPED
from inference.bundle import open_bundle
from inference.engine import Engine
from inference.types import ImageStack
from tests.benchmarks.machine import machine, table
from tests.data import ROOT
from training import steps, wrong
from training.recipe import read

RECIPES = Path(steps.__file__).parent / "recipes"
MODELS = ("cxr-lungs", "cxr-lung-boxes", "cxr-pneumonia", "us-breast-category", "us-breast-grade")
TURNS: dict[str, wrong.Change] = {
    "turned by 90°": wrong.turned(1),
    "turned by 180°": wrong.turned(2),
    "upside down": lambda pixels: pixels[:, ::-1],
    "inverted": wrong.inverted,
}


def held_out(name: str, most: int) -> list[ImageStack]:
    """Pictures that the model is for and did not learn from."""
    parted = steps.part(read(RECIPES / f"{name}.toml"), ROOT)
    samples = [*parted.parts["test"], *(s for held in parted.extra.values() for s in held)]
    return [sample.read() for sample in samples[:: max(1, len(samples) // most)]][:most]


def refused(engine: Engine, stacks: Sequence[ImageStack]) -> str:
    """Share of pictures, in the words of a table."""
    modality = engine.manifest.select.modality[0]
    shown = [replace(stack, modality=modality) for stack in stacks]
    told = [engine.predict([stack])[0].not_analysed is not None for stack in shown]
    return f"{np.mean(told):.0%} of {len(told)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--most", type=int, default=80, help="pictures of each kind")
    chosen = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    rows = []
    for name in chosen.models:
        engine = Engine(open_bundle(SHIPPED / name))
        own = held_out(name, chosen.most)
        other = held_out("us-breast-category" if name.startswith("cxr") else "cxr-lungs", 40)
        noise = [
            replace(own[0], pixels=rng.random((1, 256, 256), np.float32), valid=None)
            for _ in range(10)
        ]
        turned = [refused(engine, [wrong.made(s, turn) for s in own]) for turn in TURNS.values()]
        rows.append([name, refused(engine, own), *turned, refused(engine, other),
                     refused(engine, noise)])  # fmt: skip
    print(f"{machine()}\n\nrefused by the input check:\n")
    print(table(["model", "held out", *TURNS, "other organ", "noise"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
