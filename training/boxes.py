"""Owns which boxes lie on which objects: pycocotools' matching, kept for thresholds and draws.

Refuses to know which threshold is right (``training.calibration``) or what is told of it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bootstrap import divided
from training.outcomes import Floats, Outcome


class Matches:
    """Boxes held against objects by pycocotools.

    Args:
        outcomes: of a detection; a frame of a sample is one of COCO's images.
        kinds: how many kinds of object there are.
    """

    def __init__(self, outcomes: Sequence[Outcome], kinds: int) -> None:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        self.samples, self.kinds = len(outcomes), kinds
        frames: dict[tuple[int, int], int] = {}
        true, found = [], []
        for i, outcome in enumerate(outcomes):
            for box in outcome.truth["boxes"]:
                true.append(_coco(frames.setdefault((i, box[1]), len(frames)), box))
            counted = outcome.verdict["boxes"]
            for box, counts in zip(outcome.output["boxes"], counted, strict=True):
                image = frames.setdefault((i, box[1]), len(frames))
                found.append({**_coco(image, box), "score": box[6], "counts": bool(counts)})
        self.sample_of = np.array([sample for sample, _ in frames], int)
        for entries in (true, found):
            for number, entry in enumerate(entries):
                entry["id"] = number + 1  # 0 would read as "no match"
        images = [{"id": image} for image in range(len(frames))]
        categories = [{"id": kind} for kind in range(kinds)]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            held, said = COCO(), COCO()
            held.dataset = {"images": images, "categories": categories, "annotations": true}
            said.dataset = {"images": images, "categories": categories, "annotations": found}
            held.createIndex()
            said.createIndex()
            self.coco = COCOeval(held, said, "bbox")
            self.coco.params.areaRng, self.coco.params.areaRngLbl = [[0, 1e10]], ["all"]
            self.coco.params.maxDets = [100]
            self.coco.evaluate()
            if frames:
                self.coco.accumulate()
        self._counted = {entry["id"]: entry["counts"] for entry in found}

    def average_precision(self, at_50: bool, kind: int | None = None) -> float | None:
        """COCO's, of one kind or the mean of all that are there; None where there is no object."""
        if not len(self.sample_of):
            return None
        precision = self.coco.eval["precision"][:, :, :, 0, 0]
        precision = precision[:1] if at_50 else precision
        precision = precision if kind is None else precision[:, :, [kind]]
        known = precision[precision > -1]
        return float(known.mean()) if known.size else None

    @cached_property
    def boxes(self) -> list[Boxes]:
        """By kind."""
        return [self._of_kind(kind) for kind in range(self.kinds)]

    def _of_kind(self, kind: int) -> Boxes:
        count = len(self.sample_of)
        entries = [
            (image, entry)
            for image, entry in enumerate(self.coco.evalImgs[kind * count : (kind + 1) * count])
            if entry is not None
        ]
        objects = np.zeros(self.samples)
        for image, entry in entries:
            objects[self.sample_of[image]] += len(entry["gtIds"])
        thresholds = len(self.coco.params.iouThrs)
        rows = [
            (self.sample_of[image], score, number, entry["dtMatches"][:, j])
            for image, entry in entries
            for j, (score, number) in enumerate(zip(entry["dtScores"], entry["dtIds"], strict=True))
        ]
        rows.sort(key=lambda row: -row[1])
        matches = [row[3] for row in rows]
        first = np.array([match[0] for match in matches], int)
        return Boxes(
            objects=objects,
            sample=np.array([row[0] for row in rows], int),
            score=np.array([row[1] for row in rows], float),
            counts=np.array([self._counted[row[2]] for row in rows], bool),
            matched=np.array(matches, float).reshape(-1, thresholds).T > 0,
            iou=np.array(
                [self._overlap(row[2], true) for row, true in zip(rows, first, strict=True)], float
            ),
        )

    def _overlap(self, found: int, true: int) -> float:
        from pycocotools import mask

        if not true:
            return 0.0
        said, there = self.coco.cocoDt.anns[found]["bbox"], self.coco.cocoGt.anns[true]["bbox"]
        return float(mask.iou([said], [there], [0])[0, 0])


@dataclass(frozen=True)
class Boxes:
    """All boxes of one kind, best score first.

    Attributes:
        objects: ``(samples,)`` how many there truly are.
        sample: ``(boxes,)`` which one each lies in.
        score: ``(boxes,)``.
        counts: ``(boxes,)`` it reaches the threshold.
        matched: ``(COCO's ten IoU thresholds, boxes)``.
        iou: ``(boxes,)`` with the object that it matched at 0.5, else 0.
    """

    objects: Floats
    sample: NDArray[np.int64]
    score: Floats
    counts: NDArray[np.bool_]
    matched: NDArray[np.bool_]
    iou: Floats

    def of_samples(self, values: NDArray[Any]) -> Floats:
        """Values of boxes summed by sample, those below the threshold left out."""
        kept = np.asarray(values, float) * self.counts
        return np.bincount(self.sample, kept, minlength=len(self.objects)).astype(float)

    def precision(self, at_50: bool) -> Callable[[Floats], Floats]:
        """COCO's average precision on drawn sets: interpolated at 101 recalls."""
        asked = np.linspace(0, 1, 101)

        def draw(w: Floats) -> Floats:
            weight, total = w[:, self.sample], w @ self.objects
            found = []
            for matched in self.matched[: 1 if at_50 else None]:
                tp = np.cumsum(weight * matched, 1)
                precision = np.nan_to_num(divided(tp, np.cumsum(weight, 1)))
                best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                padded = np.pad(best, ((0, 0), (0, 1)))
                recall = divided(tp, total[:, None])
                at = [np.searchsorted(row, asked - 1e-12) for row in recall]
                found.append(np.take_along_axis(padded, np.array(at), 1).mean(1))
            return np.where(total > 0, np.mean(found, axis=0), np.nan)

        return draw


def _coco(image: int, box: Sequence[float]) -> dict[str, Any]:
    kind, _, left, top, right, bottom = box[:6]
    width, height = max(0.0, right - left), max(0.0, bottom - top)
    return {
        "image_id": image,
        "category_id": int(kind),
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
    }
