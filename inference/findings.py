"""Owns what becomes of a network's verdicts: findings with words and codes, boxes on the stack.

Refuses to know which network gave them, and how they are written down. The frames of one stack
speak together by ``manifest.pool``; where a network looked is asked of whoever runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inference.manifest import FindingLabel, Grading, Manifest
from inference.preprocessing import Geometry
from inference.types import Box, Finding, ImageStack

Raw = Mapping[str, NDArray[np.generic]]
Look = Callable[[int, int], NDArray[np.float32] | None]
"""Given frame and channel: how much each pixel of that frame spoke for it, ``(rows, columns)`` in
0..1 on the stack's grid; None where the network cannot tell."""

UNCALIBRATED = "The scores of boxes are the network's own: they order boxes and are no chances."
NOT_SHOWN = "Where the network looked cannot be shown: it has no maps of places."


def findings(
    raw: Raw, stack: ImageStack, where: Geometry, manifest: Manifest, look: Look
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """All that the manifest asks for, and what a reader must know of it.

    Args:
        raw: of one stack, on the network's grid: ``probability (frames, classes)``; of a grading
            ``(frames, grades - 1)``, ``P(grade >= k)``; of a detection ``boxes (frames, K, 4)``,
            ``scores`` and ``kinds (frames, K)``.
        stack: what was looked at.
        where: the way back to its grid.
        manifest: labels, thresholds, pool.
        look: asked for findings that are present and want to be shown.
    """
    if manifest.task == "detection":
        found = tuple(_detected(raw, stack, where, label) for label in manifest.findings)
        return found, (UNCALIBRATED,) if any(finding.boxes for finding in found) else ()
    probability = np.asarray(raw["probability"], np.float64)
    pooled = probability.max(0) if manifest.pool == "max" else probability.mean(0)
    notes = [_pooling(manifest, len(probability))] if len(probability) > 1 else []
    if manifest.grading is not None:
        grading = manifest.grading
        finding = _graded(pooled, grading)
        notes.insert(0, _scale(pooled, grading))
        told = [(finding, grading.present_from - 1, grading.saliency)]
    else:
        told = [
            (_classified(pooled, label, manifest), label.channel, label.saliency)
            for label in manifest.findings
        ]
    shown = []
    for finding, channel, wanted in told:
        if wanted and finding.present:
            frame = int(probability[:, channel].argmax())
            heat = look(frame, channel)
            if heat is None:
                notes.append(NOT_SHOWN)
            else:
                maps = np.zeros(stack.shape, np.float32)
                maps[frame] = heat
                finding = replace(finding, saliency=maps)  # noqa: PLW2901  # the same, shown
        shown.append(finding)
    return tuple(shown), tuple(dict.fromkeys(notes))


def _classified(pooled: NDArray[np.float64], label: FindingLabel, manifest: Manifest) -> Finding:
    """Of exclusive classes the most probable is present; it was held against no threshold."""
    probability = float(pooled[label.channel])
    exclusive = manifest.activation == "softmax"
    return Finding(
        label=label.label,
        code=label.code.code(),
        present=bool(pooled.argmax() == label.channel)
        if exclusive
        else probability >= label.threshold,
        probability=probability,
        threshold=None if exclusive else label.threshold,
        site=label.site.code() if label.site else None,
    )


def grade(reached: NDArray[np.float64], threshold: float) -> int:
    """The highest grade whose chance of being reached, ``reached[k - 1]``, is at the threshold."""
    (enough,) = np.nonzero(reached >= threshold)
    return int(enough[-1]) + 1 if enough.size else 0


def _graded(reached: NDArray[np.float64], grading: Grading) -> Finding:
    """The label is the scale's: beside a grade's name the chance would be taken for its own."""
    found = grade(reached, grading.threshold)
    step = grading.grades[found]
    return Finding(
        label=grading.label,
        code=grading.code.code(),
        present=found >= grading.present_from,
        probability=float(reached[grading.present_from - 1]),
        threshold=grading.threshold,
        severity=step.severity.code() if step.severity else None,
        score=float(found),
        site=grading.site.code() if grading.site else None,
    )


def _scale(reached: NDArray[np.float64], grading: Grading) -> str:
    """The whole scale, since the finding tells the chance of one of its steps alone."""
    names = [step.label for step in grading.grades]
    chances = [
        f"{name} or higher {chance:.2f}" for name, chance in zip(names[1:], reached, strict=True)
    ]
    found = grade(reached, grading.threshold)
    return (
        f"{grading.label}: {names[found]}, grade {found} of 0 ({names[0]}) to {len(names) - 1} "
        f"({names[-1]}); probability of {', '.join(chances)}."
    )


def _pooling(manifest: Manifest, frames: int) -> str:
    how = "highest" if manifest.pool == "max" else "mean"
    return f"Probabilities are the {how} of {frames} frames."


def _detected(raw: Raw, stack: ImageStack, where: Geometry, label: FindingLabel) -> Finding:
    """One kind of object, its best boxes first; what clipping leaves nothing of is no box."""
    _, rows, columns = stack.shape
    scores = np.asarray(raw["scores"], np.float64)
    frames, places = np.nonzero(np.equal(raw["kinds"], label.channel) & (scores > 0))
    scores = scores[frames, places]
    edges = where.boxes_back(np.asarray(raw["boxes"], np.float64)[frames, places])
    edges = edges.clip(0, [columns, rows, columns, rows])
    whole = np.all(edges[:, 2:] > edges[:, :2], axis=1)
    best = [i for i in np.argsort(-scores, kind="stable") if whole[i]]
    boxes = tuple(
        Box(int(frames[i]), *map(float, edges[i]))
        for i in best[: label.max_boxes]
        if scores[i] >= label.threshold
    )
    return Finding(
        label=label.label,
        code=label.code.code(),
        present=bool(boxes),
        probability=float(scores[best[0]]) if best else None,
        threshold=label.threshold,
        boxes=boxes,
        site=label.site.code() if label.site else None,
    )
