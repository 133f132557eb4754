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

Task = Literal["segmentation", "classification", "grading", "detection"]
NETWORKS: dict[str, tuple[str, ...]] = {
    "segmentation": ("unet", "deeplabv3"),
    "classification": ("classifier",),
    "grading": ("ordinal",),
    "detection": ("fasterrcnn", "retinanet"),
}
"""Which networks do which task."""

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

    name: Literal["unet", "deeplabv3", "classifier", "ordinal", "fasterrcnn", "retinanet"]
    backbone: str = Field(description="a torchvision classification network, e.g. mobilenet_v2")
    in_channels: int = Field(default=3, ge=1, le=9)
    classes: int = Field(
        ge=1, le=256, description="masks, classes, grades above the lowest, or kinds of object"
    )


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

    colour -> window to 0..1 -> orient (projections to L\\F) -> resize -> neighbouring slices as
    channels, or one grey repeated -> normalise.
    """

    colour: Literal["grey", "rgb"] = Field(
        default="grey",
        description="grey: of RGB the luminance (ITU-R BT.601); rgb: grey is repeated. RGB counts "
        "as 0..1 before the window",
    )
    neighbours: int = Field(
        default=0,
        ge=0,
        le=4,
        description="2.5D: so many slices on either side become channels, in reading order; at "
        "the ends the last slice is repeated",
    )

    orient: bool = Field(default=False, description="turn projections so that rows run to L, F")
    window: tuple[float, float] | None = Field(
        default=None, description="low and high value mapped to 0 and 1, in the contract's unit"
    )
    percentiles: tuple[float, float] | None = Field(
        default=None, description="the same bounds taken from each frame instead"
    )
    size: tuple[int, int] = Field(description="rows, columns of the network's input")
    fit: Literal["stretch", "pad", "crop"] = Field(
        default="pad", description="to the size: aspect lost, borders added, or borders cut off"
    )
    through: tuple[int, int] | None = Field(
        default=None,
        description="rows, columns that a picture is shrunk to on its way, for models that learnt "
        "from pictures of that size: what they never saw, nobody shows them",
    )
    mean: list[float]
    std: list[float]

    @model_validator(mode="after")
    def _one_scaling(self) -> Self:
        if (self.window is None) == (self.percentiles is None):
            raise ValueError("give exactly one of window and percentiles")
        if self.neighbours and self.colour == "rgb":
            raise ValueError("neighbours are slices of grey images, not of colour ones")
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


class FindingLabel(_Strict):
    """One class of a classification network, or one kind of object of a detection network.

    A multi-label class is present from its threshold on; of exclusive classes (softmax) the most
    probable is present. An object counts from its threshold on.
    """

    channel: int = Field(ge=0)
    label: str = Field(max_length=64)
    code: Coded
    site: Coded | None = None
    threshold: float = Field(default=0.5, gt=0, lt=1)
    max_boxes: int = Field(default=100, ge=1, le=100, description="detection: the best so many")
    saliency: bool = Field(
        default=False, description="classification: show where the network looked (Grad-CAM)"
    )


class Grade(_Strict):
    """One step of an ordinal scale."""

    label: str = Field(max_length=64)
    severity: Coded | None = Field(
        default=None, description="as the report codes it; the lowest grade may have none"
    )


class Grading(_Strict):
    """What an ordinal network grades, from the lowest grade to the highest.

    The grade is the highest whose chance of being reached, ``P(grade >= k)``, is at least
    ``threshold``.
    """

    label: str = Field(max_length=64)
    code: Coded
    site: Coded | None = None
    grades: list[Grade] = Field(min_length=2)
    threshold: float = Field(default=0.5, gt=0, lt=1)
    present_from: int = Field(default=1, ge=1, description="the finding is present from this grade")
    saliency: bool = False


class InputCheck(_Strict):
    """How unlike its training data an input may be (``inference.familiarity``)."""

    file: str = Field(description="safetensors file with what the training data looked like")
    threshold: float = Field(gt=0, description="a higher score is not analysed")


class Golden(_Strict):
    """An input with the outputs that these weights gave for it when they were exported."""

    input: str = Field(description="safetensors file with 'pixels' (frames, rows, columns[, 3])")
    output: str = Field(description="safetensors file with what Runner.golden_output gives")
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
    task: Task
    architecture: Architecture
    activation: Literal["sigmoid", "softmax"] = Field(
        default="sigmoid", description="softmax: classes exclude each other"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="calibration: logits are divided by it (Guo et al. 2017)"
    )
    pool: Literal["mean", "max"] = Field(
        default="mean", description="how the frames of one stack speak together of one finding"
    )
    precision: Literal["float16", "float32"] = "float16"
    weights: str = "weights.safetensors"
    files: dict[str, str] = Field(description="path in the bundle -> SHA-256, all but the manifest")
    select: SeriesSelection
    input: InputContract
    preprocessing: Preprocessing
    labels: list[Label] = Field(default=[], description="of a segmentation")
    findings: list[FindingLabel] = Field(
        default=[], description="of a classification or a detection"
    )
    grading: Grading | None = None
    input_check: InputCheck | None = None
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
        needed = [self.weights, "card.md", "evaluation.json"]
        needed += [self.golden.input, self.golden.output]
        needed += [self.input_check.file] if self.input_check else []
        for name in needed:
            if name not in self.files:
                raise ValueError(f"files does not list {name!r}")
        if not self.weights.endswith(".safetensors"):
            raise ValueError("weights come as safetensors, nothing else is loaded")
        return self

    @model_validator(mode="after")
    def _input_fits(self) -> Self:
        channels, spec = self.architecture.in_channels, self.preprocessing
        if len(spec.mean) != channels or len(spec.std) != channels:
            raise ValueError(f"mean and std need {channels} values each")
        if spec.neighbours and channels != 2 * spec.neighbours + 1:
            raise ValueError(
                f"{spec.neighbours} neighbours on either side make {2 * spec.neighbours + 1} "
                f"channels, the network takes {channels}"
            )
        if spec.colour == "rgb" and channels != 3:
            raise ValueError(f"rgb makes 3 channels, the network takes {channels}")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Self:
        if self.architecture.name not in NETWORKS[self.task]:
            wanted = " or ".join(NETWORKS[self.task])
            raise ValueError(f"{self.task} is done by {wanted}, not {self.architecture.name}")
        told = {
            "labels": bool(self.labels),
            "findings": bool(self.findings),
            "grading": self.grading is not None,
        }
        wanted_key = {"segmentation": "labels", "grading": "grading"}.get(self.task, "findings")
        for key, there in told.items():
            if there != (key == wanted_key):
                said = "needs" if key == wanted_key else "has no use for"
                raise ValueError(f"{self.task} {said} {key!r}")
        classes = self.architecture.classes
        channels: list[Label | FindingLabel] = [*self.labels, *self.findings]
        for label in channels:
            if label.channel >= classes:
                raise ValueError(
                    f"label {label.label!r}: the network has no channel {label.channel}"
                )
        if self.grading and len(self.grading.grades) != classes + 1:
            raise ValueError(f"{classes} steps part {classes + 1} grades")
        if self.task in ("grading", "detection") and self.activation != "sigmoid":
            raise ValueError(f"{self.task} has no exclusive classes: activation is sigmoid")
        if self.task == "detection" and self.temperature != 1:
            raise ValueError("the scores of a detection are not calibrated: temperature is 1")
        return self
