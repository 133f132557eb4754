"""Owns what a recipe file may say; refuses to know how any of it is done.

A recipe is one TOML file from which a bundle can be made again: the data, the split, the training,
the evaluation, and all of the manifest that is not measured. A key that is misspelt is an error
that names the key it resembles.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inference.manifest import (
    Architecture,
    FindingLabel,
    Grading,
    InputContract,
    Label,
    Preprocessing,
    SeriesSelection,
    Task,
)
from training.errors import RecipeError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- data: one class for each kind of source ---------------------------------------------------


class _Pictures(_Strict):
    """What JPEG, PNG and arrays do not tell of themselves, and DICOM does."""

    modality: str = Field(default="CR", description="of files that are not DICOM")
    patient_orientation: tuple[str, str] | None = Field(
        default=None,
        description='of files that are not DICOM: rows, then columns, run to, e.g. ["L", "F"]',
    )
    licence: str = Field(default="", description="of all samples where no column tells it")
    licences: list[str] = Field(
        default=[], description="prefixes of those that may be learnt from; empty: all"
    )


class Table(_Pictures):
    """A CSV file with one line for each sample: DICOM files, series folders, JPEG or PNG."""

    kind: Literal["table"]
    file: str = Field(description="the CSV, below the data folder")
    folder: str = Field(
        default="", description="that paths in the CSV start from; its own if empty"
    )
    path: str = Field(default="path", description="column: file, or folder of one DICOM series")
    label: list[str] = Field(
        min_length=1,
        description="column(s) of the truth: one with the class's or grade's label, or one 0/1 "
        "column a class, in the order of the channels",
    )
    group: str | None = Field(
        default=None,
        description="column of the patient; absent: Patient ID of DICOM files, else every line "
        "stands alone",
    )
    study: str | None = None
    licence_column: str | None = None
    part: str | None = Field(default=None, description="column with train, val or test")
    attributes: list[str] = Field(default=[], description="columns to make subgroups of")


class Coco(_Pictures):
    """COCO's JSON: boxes of pictures beside it."""

    kind: Literal["coco"]
    file: str
    folder: str = ""
    group: str | None = Field(default=None, description="key of an image's entry: the patient")


class Npz(_Pictures):
    """MedMNIST's NPZ: train_images, train_labels, val_..., test_...; its split is kept."""

    kind: Literal["npz"]
    file: str


class DicomSeg(_Strict):
    """DICOM SEG objects as masks, in one folder with the series that they refer to."""

    kind: Literal["dicom-seg"]
    folder: str
    segments: list[str] = Field(
        default=[],
        description="segment label or property type code for each channel; empty: the labels of "
        "the bundle",
    )
    licence: str = ""
    licences: list[str] = []


class DicomSr(_Strict):
    """TID 1500 reports as boxes and labels, in one folder with the images they refer to."""

    kind: Literal["dicom-sr"]
    folder: str
    findings: list[str] = Field(
        default=[], description="code value for each channel; empty: the codes of the bundle"
    )
    licence: str = ""
    licences: list[str] = []


class Public(_Strict):
    """Public collections and generated pictures, read by loaders of ``training.public``."""

    kind: Literal["chest-lungs", "chest-boxes", "ct-body", "busi"]
    licences: list[str] = Field(
        default=[], description="prefixes of the licences that may be learnt from; empty: all"
    )
    phantoms: int = Field(default=0, ge=0, description="generated samples; never evaluated on")
    phantom_seed: int = 1


Data = Annotated[Table | Coco | Npz | DicomSeg | DicomSr | Public, Field(discriminator="kind")]
"""Which samples to learn from."""


# --- everything else ---------------------------------------------------------------------------


class Split(_Strict):
    """Who is learnt from, who decides when to stop, who is measured; by group, stratified."""

    test: float = Field(default=0.2, ge=0, lt=1, description="share held out to the end")
    validation: float = Field(
        default=0.15, ge=0, lt=1, description="share that decides; 0: nothing is decided by data"
    )
    folds: int = Field(default=5, ge=2, description="of cross-validation")
    seed: int = 0
    near_duplicates: Literal["refuse", "group", "ignore"] = Field(
        default="group", description="pictures that look the same: what becomes of them"
    )


class Training(_Strict):
    """How to learn."""

    weights: str = Field(
        description="hub (torchvision's own), none (from scratch), or a file below the data folder"
    )
    strategy: Literal["full", "frozen", "gradual"] = Field(
        default="full",
        description="full: all layers; frozen: the head alone (a linear probe); gradual: the head "
        "first, then one stage more, deepest first, every unfreeze_every epochs",
    )
    unfreeze_every: int = Field(default=2, ge=1)
    batch_norm: Literal["adapt", "keep"] = Field(
        default="adapt", description="keep: the encoder's running statistics stay as pretrained"
    )
    epochs: int = Field(ge=1)
    batch: int = Field(default=16, ge=2)
    encoder_rate: float = Field(default=5e-4, gt=0, description="of what was pretrained")
    head_rate: float = Field(default=2e-3, gt=0, description="of what starts at random")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="discriminative rates: each stage further from the head has this times the "
        "rate of the next",
    )
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.2, ge=0, lt=1, description="before a classifier's last layer")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    balance: Literal["none", "sampler", "loss"] = Field(
        default="none", description="against rare classes: drawn more often, or counted more"
    )
    ordinal_loss: Literal["coral", "cumulative"] = Field(
        default="coral", description="grading: CORAL (Cao 2020) or cumulative link likelihood"
    )
    ema: float = Field(default=0.98, ge=0, lt=1, description="decay of the averaged weights")
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    patience: int = Field(
        default=0, ge=0, description="epochs without a better validation before it stops; 0: never"
    )
    seed: int = 0


class Augment(_Strict):
    """How samples are varied."""

    flips: bool = Field(default=False, description="mirror samples: only where no label has a side")
    degrees: float = Field(default=10.0, ge=0, le=180)
    zoom: tuple[float, float] = (0.8, 1.2)
    shift: float = Field(default=0.08, ge=0, lt=1, description="of the size, either way")
    intensity: float = Field(
        default=0.3, ge=0, le=1, description="strength of gamma, contrast, brightness and noise"
    )
    erase: float = Field(default=0.0, ge=0, le=1, description="chance that a patch is blanked")


class Evaluation(_Strict):
    """What is measured, and by which rule a threshold is chosen (on validation data only)."""

    threshold: str = Field(
        default="youden",
        pattern=r"^(youden|accuracy|f1|fixed|sensitivity:0?\.\d+|specificity:0?\.\d+)$",
        description="fixed leaves the labels' own; sensitivity:0.95 the highest that reaches it",
    )
    calibrate: bool = Field(default=True, description="temperature scaling on validation data")
    bootstrap: int = Field(default=2000, ge=100)
    input_check: bool = Field(default=True, description="learn which inputs to refuse")
    accepted: float = Field(
        default=0.99, gt=0.5, lt=1, description="share of validation data that the check must pass"
    )


class Bundle(_Strict):
    """The manifest, less what is measured at export."""

    name: str
    version: str
    title: str
    manufacturer: str
    description: str
    intended_use: str
    task: Task
    batch: int = Field(default=8, ge=1, le=512)
    hardware: Literal["any", "gpu"] = "any"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    pool: Literal["mean", "max"] = "mean"
    precision: Literal["float16", "float32"] = "float16"
    architecture: Architecture
    select: SeriesSelection
    input: InputContract
    preprocessing: Preprocessing
    labels: list[Label] = []
    findings: list[FindingLabel] = []
    grading: Grading | None = None

    def manifest(self) -> dict[str, Any]:
        """As the manifest's own keys."""
        return self.model_dump(mode="json")


class Card(_Strict):
    """What the model card says that no program can measure."""

    data: str = Field(min_length=20, description="which, of whom, under which licences")
    limits: str = Field(min_length=20, description="where it must not be trusted")


class Recipe(_Strict):
    """The whole file."""

    data: Data
    split: Split = Split()
    training: Training
    augment: Augment = Augment()
    evaluation: Evaluation = Evaluation()
    bundle: Bundle
    card: Card | None = Field(default=None, description="needed by export alone")

    @model_validator(mode="after")
    def _sides_stay(self) -> Self:
        """A mirrored chest has its heart on the wrong side, and its right lung is a left one."""
        if self.augment.flips:
            sided = [label.label for label in self.bundle.labels if label.laterality]
            sided += [
                found.label
                for found in self.bundle.findings
                if {"left", "right"} & set(found.label.lower().split())
            ]
            if sided:
                raise ValueError(f"augment.flips: {sided[0]!r} has a side, mirrored it is another")
        return self

    @model_validator(mode="after")
    def _decided_by_someone(self) -> Self:
        if self.split.validation == 0 and self.training.patience:
            raise ValueError("training.patience: who stops early needs split.validation")
        return self


def read(path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        RecipeError: it is no TOML; a key is missing, unknown or wrong.
    """
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path.name}: no TOML: {error}") from error
    except ValidationError as error:
        said = [_said(item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise RecipeError(f"{path.name}: " + "; ".join(said)) from error


def _said(where: tuple[int | str, ...], kind: str, message: str) -> str:
    """One finding of pydantic in our words, with the key that a misspelt one resembles."""
    key = ".".join(str(part) for part in where if part not in _kinds()) or "recipe"
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    near = difflib.get_close_matches(str(where[-1]), _keys(where[:-1]), n=1)
    return f"{key}: no such key" + (f", did you mean {near[0]!r}?" if near else "")


def _kinds() -> set[str]:
    """Pydantic puts the kind of data between a key and its parent."""
    union = get_args(get_args(Data)[0])
    return {kind for member in union for kind in get_args(member.model_fields["kind"].annotation)}


def _keys(where: tuple[int | str, ...]) -> list[str]:
    """The keys that a section knows."""
    model: Any = Recipe
    for part in where:
        if isinstance(part, int):
            continue
        if model is Recipe and part == "data":
            model = None
        elif model is None:
            union = get_args(get_args(Data)[0])
            model = next(m for m in union if part in get_args(m.model_fields["kind"].annotation))
        else:
            model = _section(model.model_fields[part].annotation)
    return list(model.model_fields) if model else []


def _section(annotation: Any) -> Any:
    """The model in ``Model``, ``list[Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in get_args(annotation) if (found := _section(a))), None)
