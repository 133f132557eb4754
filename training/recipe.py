"""Owns what a recipe file may say; refuses to know how any of it is done.

A recipe is one TOML file from which a bundle can be made again: the data, the training, and all
of the manifest that is not measured.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inference.manifest import Architecture, InputContract, Label, Preprocessing, SeriesSelection


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Strict):
    """Which samples to learn from."""

    kind: Literal["chest-lungs", "ct-body"] = Field(description="a loader of training.datasets")
    licences: list[str] = Field(description="prefixes of the licences that may be learnt from")
    phantoms: int = Field(default=0, ge=0, description="generated samples; never evaluated on")
    phantom_seed: int = 1


class Training(_Strict):
    """How to learn."""

    weights: str = Field(description="file of torchvision's names, below the data folder")
    epochs: int = Field(ge=1)
    batch: int = Field(default=8, ge=2)
    encoder_rate: float = Field(description="learning rate of what was pretrained")
    decoder_rate: float = Field(description="learning rate of what starts at random")
    weight_decay: float = 0.01
    ema: float = Field(default=0.98, ge=0, lt=1, description="decay of the averaged weights")
    autocast: bool = Field(default=True, description="bfloat16 where the operation allows")
    folds: int = Field(default=5, ge=2)
    seed: int = 0
    flips: bool = Field(default=False, description="mirror samples: only where no label has a side")
    degrees: float = 10.0
    zoom: tuple[float, float] = (0.8, 1.2)
    shift: float = 0.08
    intensity: float = Field(default=0.3, description="strength of gamma, contrast, noise; 0..1")


class Bundle(_Strict):
    """The manifest, less what is measured at export."""

    name: str
    version: str
    title: str
    manufacturer: str
    description: str
    intended_use: str
    batch: int
    hardware: Literal["any", "gpu"] = "any"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    precision: Literal["float16", "float32"] = "float16"
    architecture: Architecture
    select: SeriesSelection
    input: InputContract
    preprocessing: Preprocessing
    labels: list[Label]

    def manifest(self) -> dict[str, Any]:
        """As the manifest's own keys."""
        return self.model_dump(mode="json")


class Card(_Strict):
    """What the model card says that no program can measure."""

    data: str
    limits: str


class Recipe(_Strict):
    """The whole file."""

    data: Data
    training: Training
    bundle: Bundle
    card: Card


def read(path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        pydantic.ValidationError: a key is missing, unknown or wrong.
    """
    return Recipe.model_validate(tomllib.loads(path.read_text()))
