"""Owns what a model bundle says of itself; refuses to know how it is run, stored or trusted.

A bundle is a folder (or a zip of one) that holds ``manifest.json``, the weights as safetensors,
``card.md``, ``evaluation.json`` and a golden example. The manifest names each with its SHA-256;
its own SHA-256 is the bundle's identity. Unknown keys are refused, so that a misspelt threshold
cannot be silently ignored.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inference.types import Code

MANIFEST_NAME = "manifest.json"
SHA256 = re.compile(r"[0-9a-f]{64}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Coded(_Strict):
    """A coded concept as written in a manifest."""

    value: str
    scheme: str
    meaning: str

    def code(self) -> Code:
        """As the plain value that predictions carry."""
        return Code(self.value, self.scheme, self.meaning)


class Architecture(_Strict):
    """Which of our networks to build; the code is ours, the bundle only names it."""

    name: Literal["unet"]
    backbone: str = Field(description="a torchvision classification network, e.g. mobilenet_v2")
    in_channels: Literal[1, 3] = 3
    classes: int = Field(ge=1, le=256)


class SeriesSelection(_Strict):
    """Which series or images of a study the model wants, and which of several it prefers.

    Empty lists ask nothing. ``body_part``, ``kernel`` and ``description_excludes`` are
    case-insensitive regular expressions; an image that tells no body part or view passes.
    Localisers and derived images are left out unless ``allow_derived`` says otherwise.
    """

    unit: Literal["image", "series"] = Field(
        description="one job per projection image, or one per cross-sectional series"
    )
    modality: list[str] = Field(min_length=1)
    sop_class: list[str] = []
    body_part: list[str] = []
    view_position: list[str] = Field(
        default=[],
        description="an image that tells no view is taken; one that tells another is not",
    )
    image_type_excludes: list[str] = ["LOCALIZER", "SCOUT"]
    allow_derived: bool = False
    orientation: Literal["any", "axial", "coronal", "sagittal"] = "any"
    thickness_mm: tuple[float, float] | None = None
    kernel: list[str] = []
    description_excludes: list[str] = []
    instances: tuple[int, int] = (1, 100_000)
    rank: list[Literal["thinnest", "most_instances", "kernel_order", "first_acquired"]] = [
        "thinnest",
        "most_instances",
        "first_acquired",
    ]
    take: Literal["best", "all"] = "best"


class InputContract(_Strict):
    """What an input must be for a prediction to mean anything; broken, it is not analysed."""

    unit: Literal["[hnsf'U]", "1", "raw"]
    min_rows: int = 32
    min_columns: int = 32
    max_frames: int = 5000
    spacing_mm: tuple[float, float] | None = Field(
        default=None, description="allowed in-plane range; a source without spacing passes"
    )
    colour: Literal["grey", "rgb", "any"] = "grey"


class Preprocessing(_Strict):
    """From an ImageStack to the network's tensor, in this order.

    orient (projections to L\\F) -> window to 0..1 -> resize -> repeat to channels -> normalise.
    """

    orient: bool = Field(default=False, description="turn projections so that rows run to L, F")
    window: tuple[float, float] | None = Field(
        default=None, description="low and high value mapped to 0 and 1, in the contract's unit"
    )
    percentiles: tuple[float, float] | None = Field(
        default=None, description="the same bounds taken from each frame instead"
    )
    size: tuple[int, int] = Field(description="rows, columns of the network's input")
    fit: Literal["stretch", "pad"] = "pad"
    mean: list[float]
    std: list[float]

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if (self.window is None) == (self.percentiles is None):
            raise ValueError("give exactly one of window and percentiles")
        return self


class Label(_Strict):
    """One output channel of a segmentation network."""

    channel: int = Field(ge=0)
    label: str = Field(max_length=64)
    category: Coded
    type: Coded
    laterality: Coded | None = None
    colour: tuple[int, int, int]
    threshold: float = Field(default=0.5, gt=0, lt=1)
    keep_components: int | None = Field(
        default=None, ge=1, description="keep this many largest connected components"
    )
    min_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="smaller than this share of the image: nothing"
    )
    fill_holes: bool = False
    longest_diameter: bool = Field(
        default=False, description="measure and draw it: for lesions rather than organs"
    )


class Golden(_Strict):
    """An input with the output that these weights gave for it when they were exported."""

    input: str = Field(description="safetensors file with 'pixels' (frames, rows, columns)")
    output: str = Field(description="safetensors file with 'probability' (channels, frames, r, c)")
    tolerance: float = 1e-3


class Manifest(_Strict):
    """All that the node needs to know of a model before it runs it."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,31}$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    title: str = Field(max_length=64)
    manufacturer: str = Field(max_length=64)
    description: str
    intended_use: str
    research_only: bool = True
    task: Literal["segmentation"]
    architecture: Architecture
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    precision: Literal["float16", "float32"] = "float16"
    weights: str = "weights.safetensors"
    files: dict[str, str] = Field(description="path in the bundle -> SHA-256, all but the manifest")
    select: SeriesSelection
    input: InputContract
    preprocessing: Preprocessing
    labels: list[Label] = Field(min_length=1)
    batch: int = Field(default=8, ge=1, le=512, description="frames per forward pass, at most")
    hardware: Literal["any", "gpu"] = "any"
    golden: Golden

    @field_validator("files")
    @classmethod
    def _plain_paths(cls, files: dict[str, str]) -> dict[str, str]:
        for path, digest in files.items():
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or "\\" in path or ".." in parts:
                raise ValueError(f"{path!r} is not a path inside the bundle")
            if not SHA256.fullmatch(digest):
                raise ValueError(f"{path!r}: {digest!r} is not a SHA-256 in lower-case hex")
        return files

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for needed in (
            self.weights,
            "card.md",
            "evaluation.json",
            self.golden.input,
            self.golden.output,
        ):
            if needed not in self.files:
                raise ValueError(f"files does not list {needed!r}")
        if not self.weights.endswith(".safetensors"):
            raise ValueError("weights come as safetensors, nothing else is loaded")
        for label in self.labels:
            if label.channel >= self.architecture.classes:
                raise ValueError(
                    f"label {label.label!r}: the network has no channel {label.channel}"
                )
        channels = self.architecture.in_channels
        if len(self.preprocessing.mean) != channels or len(self.preprocessing.std) != channels:
            raise ValueError(f"mean and std need {channels} values each")
        return self
