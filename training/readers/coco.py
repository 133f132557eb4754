"""Owns COCO's JSON of boxes. Refuses polygons and run lengths: detection learns from boxes.

Boxes are ``[x, y, width, height]`` in pixels, x and y of the upper left corner. An image without
annotations is one on which there is nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.errors import ReadingError
from training.errors import DataError, RecipeError
from training.readers.common import (
    Problems,
    Unusable,
    attributes,
    by_licence,
    channels,
    labels,
    opened,
    patient,
    study,
)
from training.recipe import Bundle, Coco
from training.samples import Sample, Samples, TrueBox, Truth


def read(data: Coco, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Boxes on the pictures that the file names; categories are matched to findings by name.

    Raises:
        DataError: the file is missing, or no COCO.
        RecipeError: the task is not detection.
    """
    if bundle.task != "detection":
        raise RecipeError(
            f"data.kind: coco gives boxes to learn detection from, not {bundle.task}; its polygons "
            "and masks are not read"
        )
    file = root / data.file
    try:
        told = json.loads(file.read_text())
        boxes = _boxes(told, bundle, problems)
        licences = {item["id"]: str(item["name"]) for item in told.get("licenses") or []}
        found = [
            sample
            for entry in told["images"]
            if (sample := _sample(entry, boxes, licences, file, data, root, problems)) is not None
        ]
    except OSError as error:
        raise DataError(f"data.file: {data.file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{data.file} is no COCO: {type(error).__name__} {error}; it needs images, annotations "
            "and categories"
        ) from error
    return by_licence(found, data.licences)


def _boxes(told: dict[str, Any], bundle: Bundle, problems: Problems) -> dict[Any, list[TrueBox]]:
    """Boxes by image id."""
    known = channels(bundle)
    names = {item["id"]: str(item["name"]) for item in told["categories"]}
    boxes: dict[Any, list[TrueBox]] = {entry["id"]: [] for entry in told["images"]}
    for item in told["annotations"]:
        about = f"annotation {item['id']}"
        name = names.get(item["category_id"], f"category {item['category_id']}")
        x, y, width, height = item.get("bbox") or (0, 0, 0, 0)
        if item["image_id"] not in boxes:
            problems.add("boxes on images that the file does not list (leave them out)", about)
        elif name.casefold() not in known:
            what = f"labels that the recipe does not know (it knows {labels(bundle)}; correct "
            problems.add(what + "them or name them there)", f"{about} ({name})")
        elif width <= 0 or height <= 0:
            problems.add("annotations without a box (detection reads boxes, not masks)", about)
        elif item.get("iscrowd"):
            problems.add("boxes of a crowd (draw one box an object, or leave them out)", about)
        else:
            box = TrueBox(known[name.casefold()], x, y, x + width, y + height)
            boxes[item["image_id"]].append(box)
    return boxes


def _sample(
    entry: dict[str, Any],
    boxes: dict[Any, list[TrueBox]],
    licences: dict[Any, str],
    file: Path,
    data: Coco,
    root: Path,
    problems: Problems,
) -> Sample | None:
    name = str(entry["file_name"])
    folder = root / data.folder if data.folder else file.parent
    if data.group and not str(entry.get(data.group) or ""):
        problems.add(f"images without a {data.group} (fill it in: who is unknown leaks)", name)
        return None
    try:
        source = opened(folder / name, name, data)
        size = source.size or (int(entry["height"]), int(entry["width"]))
        if size != (entry.get("height", size[0]), entry.get("width", size[1])):
            raise Unusable("pictures of another size than the file says (their boxes are off)")
        header = source.header
        return Sample(
            name=name,
            group=str(entry[data.group])
            if data.group
            else (patient(header, name) if header else name),
            read=source.read,
            truth=Truth(boxes=tuple(boxes[entry["id"]])),
            licence=licences.get(entry.get("license"), data.licence),
            study=study(header) if header else "",
            attributes=attributes(header) if header else {},
        )
    except (Unusable, ReadingError) as error:
        problems.add(str(error), name)
        return None
