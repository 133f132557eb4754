"""Owns the public collections, and the pictures that we generate, as samples. Knows no network.

DICOM is read with the code that reads for the service. The layout of the folders is that of the
data's own README.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from inference.errors import ReadingError
from inference.phantoms import (
    CHEST_ORIENTATION,
    CT_FIELD_MM,
    Region,
    chest_radiograph,
    ct_volume,
)
from inference.reading import read_files
from inference.types import FrameRef, ImageStack
from training.errors import DataError, RecipeError
from training.readers.common import (
    FORMATS,
    SOP_CLASSES,
    Problems,
    by_licence,
    channels,
    decade,
    one_hot,
)
from training.recipe import Bundle, Public
from training.samples import Part, Sample, Samples, TrueBox, Truth

UNFOUND = "images that are missing or damaged (fetch the collection again)"


def read(data: Public, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """The collection of that kind.

    Raises:
        DataError: the folder does not hold it.
        RecipeError: it knows no truth for the recipe's task.
    """
    loader, tasks = LOADERS[data.kind]
    if bundle.task not in tasks:
        raise RecipeError(f"data.kind: {data.kind} is for {' or '.join(tasks)}, not {bundle.task}")
    return loader(data, bundle, root, problems)


def _listing(file: Path, root: Path) -> Any:
    """A collection's labels.json."""
    where = file.relative_to(root)
    try:
        return json.loads(file.read_text())
    except OSError as error:
        raise DataError(
            f"{where} is not there: name the folder of the public data, or fetch the collection"
        ) from error
    except ValueError as error:
        raise DataError(f"{where} is no JSON: fetch the collection again") from error


def _grey(path: Path) -> NDArray[np.float32]:
    """A picture, ``(rows, columns)`` in 0..1."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
    except (OSError, SyntaxError) as error:
        raise ReadingError(f"a picture cannot be decoded: {type(error).__name__}") from None


def _there(path: Path, name: str, problems: Problems) -> bool:
    """Whether a picture's header can be read; a problem if not."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except OSError:
        problems.add(UNFOUND, name)
        return False


def _projection(picture: NDArray[np.float32], name: str, modality: str = "CR") -> ImageStack:
    return ImageStack(
        pixels=picture[None],
        unit="1",
        modality=modality,
        frames=(FrameRef(name, SOP_CLASSES[modality]),),
        patient_orientation=CHEST_ORIENTATION if modality == "CR" else None,
        spacing_source="none: a published JPEG",
    )


# --- chest radiographs -------------------------------------------------------------------------

RADIOGRAPHS = "radiographs under other licences"
SIDES = {"Right Lung": 0, "Left Lung": 1}
BOXES_OF = "GB-boxes"
"""The annotators who boxed all images; others outlined some of them anew."""


def chest_lungs(data: Public, _: Bundle, root: Path, problems: Problems) -> Samples:
    """Right and left lung outlined: licensed images to learn from, all others to test on."""

    def truth(entry: Mapping[str, Any], folder: Path) -> Truth | None:
        if "mask_lung_v7" not in entry:
            return None
        path = folder / entry["mask_lung_v7"]
        return Truth(masks=lambda: right_and_left(_grey(path) > HALF, entry["boxes"])[:, None])

    return _chests(data, root, problems, truth, lambda masks: Truth(masks=lambda: masks[:, None]))


def chest_boxes(data: Public, _: Bundle, root: Path, problems: Problems) -> Samples:
    """Right (0) and left (1) lung boxed, on all frontal images: the collection holds no others."""

    def truth(entry: Mapping[str, Any], _: Path) -> Truth | None:
        boxes = []
        for box in entry["boxes"]:
            if box["label"] in SIDES and box["source"] == BOXES_OF:
                x, y, width, height = box["bbox"]
                boxes.append(TrueBox(SIDES[box["label"]], x, y, x + width, y + height))
        return Truth(boxes=tuple(boxes))

    return _chests(data, root, problems, truth, lambda masks: Truth(boxes=boxes_around(masks)))


HALF = 0.5


def _chests(
    data: Public,
    root: Path,
    problems: Problems,
    truth: Callable[[Mapping[str, Any], Path], Truth | None],
    of_phantom: Callable[[NDArray[np.bool_]], Truth],
) -> Samples:
    folder = root / "images" / "cxr"
    images = _listing(folder / "labels.json", root)["images"]
    groups = linked_groups(images)
    found = []
    for entry in images:
        path = folder / "images" / f"{entry['id']}.jpg"
        known = truth(entry, folder)
        if known is None or not _there(path, entry["id"], problems):
            continue
        found.append(_chest(entry, path, groups[entry["id"]], known))
    parted = by_licence(found, data.licences, RADIOGRAPHS)
    drawn = [
        chest_phantom(data.phantom_seed * 100_000 + i, of_phantom) for i in range(data.phantoms)
    ]
    return Samples([*parted.learn, *drawn], parted.test)


def _chest(entry: Mapping[str, Any], path: Path, group: str, truth: Truth) -> Sample:
    name = entry["id"]
    told = {
        "sex": entry["sex"],
        "age": decade(int(entry["age"])) if entry["age"].isdigit() else "",
        "view": entry["view"].strip("?"),
        "finding": entry["finding"].replace("todo", ""),
    }
    return Sample(
        name=name,
        group=group,
        read=lambda: _projection(_grey(path), name),
        truth=truth,
        licence=entry["licence"],
        attributes={key: value for key, value in told.items() if value},
    )


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


def right_and_left(lungs: NDArray[np.bool_], boxes: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """One mask of both lungs parted into ``(2, rows, columns)``: right, left.

    Each connected part goes to the box (``x, y, width, height``) that holds more of it.
    """
    parts, count = ndimage.label(lungs)
    inside = np.zeros((2, *lungs.shape), bool)
    for box in boxes:
        side = SIDES.get(box["label"])
        if side is not None:
            x, y, width, height = (round(v) for v in box["bbox"])
            inside[side, max(y, 0) : y + height, max(x, 0) : x + width] = True
    held = [ndimage.sum_labels(held, parts, range(1, count + 1)) for held in inside]
    side_of = np.concatenate([[-1], np.argmax(held, axis=0)])[parts]
    return np.stack([side_of == 0, side_of == 1])


def boxes_around(masks: NDArray[np.bool_]) -> tuple[TrueBox, ...]:
    """The bounding box of each mask ``(kinds, rows, columns)`` that is not empty."""
    boxes = []
    for kind, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            boxes.append(TrueBox(kind, float(left), float(top), float(right), float(bottom)))
    return tuple(boxes)


def chest_phantom(seed: int, truth: Callable[[NDArray[np.bool_]], Truth]) -> Sample:
    """A generated radiograph; ``truth`` makes it of the masks of its right and left lung."""
    rng = np.random.default_rng(seed)
    picture, masks = chest_radiograph(
        seed,
        (320, int(rng.integers(280, 360))),
        lung_scale=(rng.uniform(0.75, 1.05), rng.uniform(0.75, 1.05)),
        noise=rng.uniform(0.005, 0.03),
    )
    name = f"phantom-{seed}"
    both = np.stack([masks["right_lung"], masks["left_lung"]])
    return Sample(
        name=name,
        group=name,
        read=lambda: _projection(picture, name),
        truth=truth(both),
        licence="generated",
        generated=True,
    )


# --- breast ultrasound -------------------------------------------------------------------------

BUSI_LICENCE = "CC BY 4.0"


def busi(data: Public, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Breast ultrasound by category (normal, benign, malignant), or graded in that order.

    A recipe that names fewer categories leaves out the images of the others; one that has a
    single channel learns it against all others. Groups are the collection's clusters of
    near-duplicates, for it names no patients. Images whose near-duplicate carries another
    label are left out: nobody knows which of the two is right.
    """
    folder = root / "images" / "busi256"
    if bundle.grading:
        known = {grade.label.casefold(): i for i, grade in enumerate(bundle.grading.grades)}
    else:
        known = channels(bundle)
    found = []
    for entry in _listing(folder / "labels.json", root):
        name, label = entry["path"], entry["label"]
        alone = bundle.architecture.classes == 1 and not bundle.grading
        if entry["label_conflict"] or (label not in known and not alone):
            continue
        if not _there(folder / name, name, problems):
            continue
        if bundle.grading:
            truth = Truth(grade=known[label])
        else:
            truth = Truth(classes=one_hot(known.get(label, -1), bundle))
        found.append(_ultrasound(folder / name, name, entry["cluster"], truth))
    return by_licence(found, data.licences)


def _ultrasound(path: Path, name: str, cluster: str, truth: Truth) -> Sample:
    return Sample(
        name=name,
        group=cluster,
        read=lambda: _projection(_grey(path), name, "US"),
        truth=truth,
        licence=BUSI_LICENCE,
    )


# --- computed tomography -----------------------------------------------------------------------

HEAD = ("dicom", "dcm_qa_ct", "In")
HELD_OUT_HEAD = slice(5, 11)  # through the sinuses, where air and thin bone are hardest
LIVER = ("dicom", "dcmqi", "data", "segmentations", "ct-3slice")
HEAD_SHOWN = 3  # times an epoch, against hundreds of generated slices
REGIONS: tuple[Region, ...] = ("head", "chest", "abdomen")
PHANTOM_SLICES, PHANTOM_SIZE, TEST_PHANTOMS, DECIDING_PHANTOMS = 10, 320, 9, 9


def ct_body(data: Public, _: Bundle, root: Path, __: Problems) -> Samples:
    """Body, air in it, bone: generated volumes, and a head CT labelled by rules.

    One patient cannot be parted, so the parts are fixed: that head is learnt from, and generated
    volumes of another seed decide when to stop. Tested on generated volumes of a third seed, on
    slices of that head that were not learnt from (the same patient: a weak test), and on a liver
    CT of another patient, labelled by the same rules.
    """
    try:
        head = read_files(sorted(p for p in root.joinpath(*HEAD).rglob("*") if p.suffix == ".dcm"))
        liver = read_files(sorted(root.joinpath(*LIVER).glob("*.dcm")))
    except ReadingError as error:
        raise DataError(
            f"the head and liver CT of the public data are not there or damaged: {error}"
        ) from error
    held = np.zeros(len(head.frames), bool)
    held[HELD_OUT_HEAD] = True
    shown = _by_rules("head", _frames(head, ~held))
    seed = data.phantom_seed
    learn = [replace(shown, name=f"head-{i + 1}", part="train") for i in range(HEAD_SHOWN)]
    test = {
        "generated volumes of other seeds": _ct_phantoms(seed + 1, TEST_PHANTOMS),
        "slices of the head CT that were not learnt from": [
            _by_rules("head, held out", _frames(head, held))
        ],
        "liver CT of another patient": [_by_rules("liver", liver)],
    }
    learn += _ct_phantoms(seed, data.phantoms, "train")
    learn += _ct_phantoms(seed + 2, DECIDING_PHANTOMS, "val") if data.phantoms else []
    return Samples(learn, test)


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
    return Sample(
        name=name,
        group=name,
        read=lambda: stack,
        truth=Truth(masks=lambda: rule_masks(stack.pixels)),
        licence="BSD",
    )


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


def _ct_phantoms(seed: int, count: int, part: Part | None = None) -> list[Sample]:
    """Volumes of each region in turn, in varied sizes of air and noise."""
    return [_ct_phantom(seed * 100_000 + i, REGIONS[i % len(REGIONS)], part) for i in range(count)]


def _ct_phantom(number: int, region: Region, part: Part | None) -> Sample:
    rng = np.random.default_rng(number)
    volume, masks = ct_volume(
        number,
        PHANTOM_SLICES,
        PHANTOM_SIZE,
        region,
        air_scale=rng.uniform(0.5, 1.1),
        noise=rng.uniform(5, 40),
    )
    name = f"phantom-{region}-{number}"
    truth = np.stack([masks["body"], masks["air"], masks["bone"]])
    return Sample(
        name=name,
        group=name,
        read=lambda: phantom_stack(volume, region, name),
        truth=Truth(masks=lambda: truth),
        licence="generated",
        part=part,
        generated=True,
    )


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
        frames=tuple(FrameRef(f"{name}-{i}", SOP_CLASSES["CT"]) for i in range(slices)),
        positions=positions,
        orientation=np.array([1.0, 0, 0, 0, 1, 0]),
        spacing=(spacing, spacing),
        spacing_source="generated",
    )


Loader = Callable[[Public, Bundle, Path, Problems], Samples]
LOADERS: dict[str, tuple[Loader, tuple[str, ...]]] = {
    "chest-lungs": (chest_lungs, ("segmentation",)),
    "chest-boxes": (chest_boxes, ("detection",)),
    "ct-body": (ct_body, ("segmentation",)),
    "busi": (busi, ("classification", "grading")),
}
"""Each collection with the tasks that it has truth for."""
