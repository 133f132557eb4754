"""Owns where samples come from: public images on disk and generated ones. Knows no network.

A sample is one picture or volume as the service would read it, an ``ImageStack``, with its true
masks on the same grid. DICOM is read with the code that reads for the service.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from inference.manifest import Preprocessing
from inference.phantoms import (
    CHEST_ORIENTATION,
    CT_FIELD_MM,
    Region,
    chest_radiograph,
    ct_volume,
)
from inference.preprocessing import geometry, scaled
from inference.reading import read_files
from inference.types import FrameRef, ImageStack
from training.recipe import Data

CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class Sample:
    """One picture or volume with its truth.

    Attributes:
        name: tells it from all others of its data set.
        group: samples of one group (a patient, and whoever shares a picture with them) are
            never parted by a split.
        stack: what a model is shown.
        masks: ``(classes, frames, rows, columns)`` bool, in the order of the recipe's channels.
        licence: under which it may be used.
        generated: drawn by us; learnt from, never evaluated on as if it were a patient.
    """

    name: str
    group: str
    stack: ImageStack
    masks: NDArray[np.bool_]
    licence: str
    generated: bool = False


@dataclass(frozen=True)
class Samples:
    """What a recipe learns from, and what it never sees until it is exported, by title."""

    learn: list[Sample]
    test: dict[str, list[Sample]]


def load(data: Data, root: Path) -> Samples:
    """The samples of a recipe.

    Args:
        data: the recipe's.
        root: folder of the public data, laid out as its README says.

    Raises:
        FileNotFoundError: the folder does not hold them.
    """
    return LOADERS[data.kind](data, root)


def tensors(samples: Sequence[Sample], spec: Preprocessing) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, *size)`` in 0..1 and truth ``(n, classes, *size)``, n all frames; float32.

    The service's own preprocessing up to the normalisation, which follows the augmentation.
    """
    images, truths = [], []
    for sample in samples:
        where = geometry(sample.stack, spec)
        images.append(where.forward(scaled(sample.stack, spec)))
        truths.append(where.forward(torch.from_numpy(sample.masks).transpose(0, 1).float()))
    return torch.cat(images), torch.cat(truths)


# --- chest radiographs -------------------------------------------------------------------------


def chest_lungs(data: Data, root: Path) -> Samples:
    """Right and left lung: licensed images to learn from, all others to test on.

    Test images share no group with those that are learnt from.
    """
    folder = root / "images" / "cxr"
    images = json.loads((folder / "labels.json").read_text())["images"]
    groups = linked_groups(images)
    learn: list[Sample] = []
    test: list[Sample] = []
    for entry in images:
        if "mask_lung_v7" not in entry:
            continue
        allowed = _allowed(entry["licence"], data.licences)
        sample = _chest_sample(folder, entry, groups[entry["id"]])
        (learn if allowed else test).append(sample)
    seen = {sample.group for sample in learn}
    drawn = [_chest_phantom(data.phantom_seed * 100_000 + i) for i in range(data.phantoms)]
    unseen = [sample for sample in test if sample.group not in seen]
    return Samples(learn + drawn, {"radiographs under other licences": unseen})


def linked_groups(images: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Image id to its group: images of one patient, and near-duplicates, belong together."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            key = parent[key]
        return key

    listed = list(images)
    for entry in listed:
        for other in (f"patient {entry['patient']}", entry.get("dup_of")):
            if other:
                parent[find(entry["id"])] = find(other)
    return {entry["id"]: find(entry["id"]) for entry in listed}


def _allowed(licence: str, prefixes: Sequence[str]) -> bool:
    return any(licence == prefix or licence.startswith(prefix + " ") for prefix in prefixes)


def _chest_sample(folder: Path, entry: dict[str, Any], group: str) -> Sample:
    with Image.open(folder / "images" / f"{entry['id']}.jpg") as image:
        grey = np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
    with Image.open(folder / entry["mask_lung_v7"]) as image:
        mask = np.asarray(image.convert("L")) > 127
    masks = right_and_left(mask, entry["boxes"])[:, None]
    return Sample(entry["id"], group, _radiograph(grey, entry["id"]), masks, entry["licence"])


def right_and_left(lungs: NDArray[np.bool_], boxes: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """One mask of both lungs parted into ``(2, rows, columns)``: right, left.

    Each connected part goes to the box (``x, y, width, height``) that holds more of it.
    """
    parts, count = ndimage.label(lungs)
    inside = np.zeros((2, *lungs.shape), bool)
    for box in boxes:
        side = {"Right Lung": 0, "Left Lung": 1}.get(box["label"])
        if side is not None:
            x, y, width, height = (round(v) for v in box["bbox"])
            inside[side, max(y, 0) : y + height, max(x, 0) : x + width] = True
    held = [ndimage.sum_labels(held, parts, range(1, count + 1)) for held in inside]
    side_of = np.concatenate([[-1], np.argmax(held, axis=0)])[parts]
    return np.stack([side_of == 0, side_of == 1])


def _chest_phantom(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    picture, masks = chest_radiograph(
        seed,
        (320, int(rng.integers(280, 360))),
        lung_scale=(rng.uniform(0.75, 1.05), rng.uniform(0.75, 1.05)),
        noise=rng.uniform(0.005, 0.03),
    )
    name = f"phantom-{seed}"
    truth = np.stack([masks["right_lung"], masks["left_lung"]])[:, None]
    return Sample(name, name, _radiograph(picture, name), truth, "generated", generated=True)


def _radiograph(picture: NDArray[np.float32], name: str) -> ImageStack:
    return ImageStack(
        pixels=picture[None],
        unit="1",
        modality="CR",
        frames=(FrameRef(name, CR_STORAGE),),
        patient_orientation=CHEST_ORIENTATION,
        spacing_source="none: a published JPEG",
    )


# --- computed tomography -----------------------------------------------------------------------

HEAD = ("dicom", "dcm_qa_ct", "In")
HELD_OUT_HEAD = slice(5, 11)  # through the sinuses, where air and thin bone are hardest
LIVER = ("dicom", "dcmqi", "data", "segmentations", "ct-3slice")
HEAD_SHOWN = 3  # times an epoch, against hundreds of generated slices
REGIONS: tuple[Region, ...] = ("head", "chest", "abdomen")
PHANTOM_SLICES, PHANTOM_SIZE, TEST_PHANTOMS = 10, 320, 9


def ct_body(data: Data, root: Path) -> Samples:
    """Body, air in it, bone: generated volumes, and a head CT labelled by rules.

    Tested on generated volumes of other seeds, on slices of that head that were not learnt from
    (the same patient: a weak test), and on a liver CT of another patient, labelled by the same
    rules.
    """
    head = read_files(sorted(p for p in root.joinpath(*HEAD).rglob("*") if p.suffix == ".dcm"))
    held = np.zeros(len(head.frames), bool)
    held[HELD_OUT_HEAD] = True
    shown = _by_rules("head", _frames(head, ~held))
    learn = [shown] * HEAD_SHOWN
    test = {
        "generated volumes of other seeds": _ct_phantoms(data.phantom_seed + 1, TEST_PHANTOMS),
        "slices of the head CT that were not learnt from": [
            _by_rules("head, held out", _frames(head, held))
        ],
        "liver CT of another patient": [
            _by_rules("liver", read_files(sorted(root.joinpath(*LIVER).glob("*.dcm"))))
        ],
    }
    return Samples(learn + _ct_phantoms(data.phantom_seed, data.phantoms), test)


def rule_masks(hu: NDArray[Any]) -> NDArray[np.bool_]:
    """Body, air, bone of a volume by thresholds, ``(3, frames, rows, columns)``.

    Body: the largest part over -300 HU once thin links to table and holder are cut, its inlets
    bridged and its holes filled slice by slice. Air: under -400 HU inside it. Bone: over 250 HU
    inside it, in pieces of more than 20 pixels.
    """
    body = np.zeros(hu.shape, bool)
    for frame, image in zip(body, hu, strict=True):
        dense = ndimage.binary_opening(image > -300, iterations=4)
        parts, count = ndimage.label(dense)
        if not count:
            continue
        largest = parts == 1 + np.argmax(ndimage.sum_labels(dense, parts, range(1, count + 1)))
        grown = np.pad(largest, 8)
        grown = ndimage.binary_erosion(ndimage.binary_dilation(grown, iterations=5), iterations=5)
        frame[:] = ndimage.binary_fill_holes(grown[8:-8, 8:-8])
    air = body & (hu < -400)
    bone = body & (hu > 250)
    for frame in bone:
        parts, count = ndimage.label(frame, np.ones((3, 3)))
        sizes = ndimage.sum_labels(frame, parts, range(count + 1))
        frame[:] = (sizes > 20)[parts]
    return np.stack([body, air, bone])


def _by_rules(name: str, stack: ImageStack) -> Sample:
    return Sample(name, name, stack, rule_masks(stack.pixels), "BSD")


def _frames(stack: ImageStack, chosen: NDArray[np.bool_]) -> ImageStack:
    """The chosen frames of a stack of slices."""
    assert stack.positions is not None  # noqa: S101  # a CT series that was read has them
    return replace(
        stack,
        pixels=stack.pixels[chosen],
        frames=tuple(f for f, keep in zip(stack.frames, chosen, strict=True) if keep),
        positions=stack.positions[chosen],
        valid=None if stack.valid is None else stack.valid[chosen],
    )


def _ct_phantoms(seed: int, count: int) -> list[Sample]:
    """Volumes of each region in turn, in varied sizes of air and noise."""
    drawn = []
    for i in range(count):
        number = seed * 100_000 + i
        rng = np.random.default_rng(number)
        region = REGIONS[i % len(REGIONS)]
        volume, masks = ct_volume(
            number,
            PHANTOM_SLICES,
            PHANTOM_SIZE,
            region,
            air_scale=rng.uniform(0.5, 1.1),
            noise=rng.uniform(5, 40),
        )
        name = f"phantom-{region}-{number}"
        drawn.append(
            Sample(
                name,
                name,
                phantom_stack(volume, region, name),
                np.stack([masks["body"], masks["air"], masks["bone"]]),
                "generated",
                generated=True,
            )
        )
    return drawn


def phantom_stack(volume: NDArray[np.int16], region: Region, name: str) -> ImageStack:
    """A generated volume as an axial series with slices 5 mm apart."""
    slices, rows, _ = volume.shape
    spacing = CT_FIELD_MM[region] / rows
    positions = np.zeros((slices, 3))
    positions[:, 2] = 5.0 * np.arange(slices)
    return ImageStack(
        pixels=volume,
        unit="[hnsf'U]",
        modality="CT",
        frames=tuple(FrameRef(f"{name}-{i}", CT_STORAGE) for i in range(slices)),
        positions=positions,
        orientation=np.array([1.0, 0, 0, 0, 1, 0]),
        spacing=(spacing, spacing),
        spacing_source="generated",
    )


LOADERS: dict[str, Callable[[Data, Path], Samples]] = {
    "chest-lungs": chest_lungs,
    "ct-body": ct_body,
}
