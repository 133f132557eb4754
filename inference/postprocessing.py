"""Owns what becomes of a network's probabilities: cleaned, on the input's grid, measured.

Refuses to know which network gave them. Components and holes are found on the network's own
grid, where they are cheap; what survives is brought back to the input's grid as probability and
cut there, so that outlines follow the finer grid. Volumes are connected across their slices,
frames of a projection each stand alone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from inference.manifest import Label, Manifest
from inference.measure import longest_diameter, measure
from inference.preprocessing import Geometry
from inference.types import ImageStack, Segment

FRAMES_AT_ONCE = 16


def segments(
    probability: NDArray[np.float32],
    stack: ImageStack,
    where: Geometry,
    manifest: Manifest,
    *,
    device: torch.device | str = "cpu",
    keep_probability: bool = False,
) -> tuple[Segment, ...]:
    """One segment per label of the manifest.

    Args:
        probability: ``(frames, classes, rows, columns)`` on the network's grid; is altered.
        stack: what was looked at.
        where: the way back to its grid.
        manifest: labels, activation.
        device: where enlarging happens.
        keep_probability: give each segment its probability, four bytes a voxel.

    Returns:
        Masks on the stack's grid, measured; an empty mask where the model found nothing.
    """
    whole = stack.positions is not None
    for label in manifest.labels:
        _clean(probability[:, label.channel], label, whole)
    masks = np.zeros((len(manifest.labels), *stack.shape), bool)
    raised = np.zeros(masks.shape, np.float32) if keep_probability else None
    channels = [label.channel for label in manifest.labels]
    limits = torch.tensor([label.threshold for label in manifest.labels], device=device)
    for start in range(0, len(probability), FRAMES_AT_ONCE):
        chosen = slice(start, start + FRAMES_AT_ONCE)
        fine = where.back(torch.from_numpy(probability[chosen][:, channels]).to(device))
        masks[:, chosen] = (fine >= limits[:, None, None]).transpose(0, 1).cpu().numpy()
        if raised is not None:
            raised[:, chosen] = fine.transpose(0, 1).cpu().numpy()
    if stack.valid is not None:
        masks &= stack.valid
    return tuple(
        Segment(
            label=label.label,
            category=label.category.code(),
            type=label.type.code(),
            laterality=label.laterality.code() if label.laterality else None,
            colour=label.colour,
            mask=masks[i],
            measurements=measure(masks[i], stack)
            + (longest_diameter(masks[i], stack) if label.longest_diameter else ()),
            probability=None if raised is None else raised[i],
        )
        for i, label in enumerate(manifest.labels)
    )


def _clean(probability: NDArray[np.float32], label: Label, whole: bool) -> None:
    """Set to 0 what the label drops, and to 1 the holes that it fills; ``(frames, r, c)``."""
    before = probability >= label.threshold
    mask = before
    if label.keep_components:
        mask = largest_components(mask, label.keep_components, whole)
    if label.fill_holes:
        mask = np.stack([ndimage.binary_fill_holes(frame) for frame in mask])
    if label.min_fraction:
        axes = (0, 1, 2) if whole else (1, 2)
        mask = mask & (mask.mean(axes, keepdims=True) >= label.min_fraction)
    probability[before & ~mask] = 0
    probability[mask & ~before] = 1


def largest_components(
    mask: NDArray[np.bool_], count: int, whole: bool = False
) -> NDArray[np.bool_]:
    """The ``count`` largest face-connected components of a mask.

    Args:
        mask: ``(frames, rows, columns)``.
        count: how many stay.
        whole: connected across frames (a volume) or in each frame alone.
    """
    if not whole:
        return np.stack([_largest(frame, count) for frame in mask])
    return _largest(mask, count)


def _largest(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    parts, found = ndimage.label(mask)
    if found <= count:
        return mask
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    keep = np.zeros(found + 1, bool)
    keep[np.argsort(-sizes, kind="stable")[:count]] = True
    return np.asarray(keep[parts])
