"""Owns the way from samples to the tensors that are learnt from; refuses to know how.

The service's own preprocessing up to the normalisation, which follows the augmentation. What does
not fit into memory lies in a mapped file of the run folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from inference.errors import InferenceError
from inference.preprocessing import Geometry, geometry, scaled
from training.errors import DataError, listed
from training.names import channels, grades
from training.recipe import Bundle
from training.samples import Sample

LIMIT = 4 << 30
"""Bytes of tensors that are kept in memory; more lie in a mapped file."""

Told = Callable[[int, int], None]
"""Hears how many samples of how many are ready."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Prepared:
    """All frames of some samples on the network's grid, with their truth.

    Exactly the truth of the task is set. Frames of a volume carry what is true of the volume.

    Attributes:
        images: ``(N, C, rows, columns)`` float32 in 0..1, before the normalisation.
        sample: ``(N,)`` int64, which of ``names`` a frame belongs to.
        names: of the samples.
        digest: SHA-256 over names, groups, truths and the checksum of each sample's pixels.
        classes: ``(N, classes)`` float32, 0 or 1.
        grade: ``(N,)`` int64, from 0.
        masks: ``(N, classes, rows, columns)`` uint8, 0 or 1.
        boxes: for each frame ``{"boxes": (k, 4) float32 left, top, right, bottom on the network's
            grid, "labels": (k,) int64 channel from 0}``.
    """

    images: Tensor
    sample: Tensor
    names: tuple[str, ...]
    digest: str
    classes: Tensor | None = None
    grade: Tensor | None = None
    masks: Tensor | None = None
    boxes: list[dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def truth(self, frame: int) -> Any:
        """What is true of one frame: its classes, grade, masks or boxes."""
        for told in (self.classes, self.grade, self.masks, self.boxes):
            if told is not None:
                return told[frame]
        return None


def prepare(
    samples: Sequence[Sample],
    bundle: Bundle,
    folder: Path | None = None,
    name: str = "prepared",
    limit: int = LIMIT,
    threads: int = 0,
    told: Told = lambda *_: None,
) -> Prepared:
    """Read samples and bring them onto the network's grid.

    Args:
        samples: in the order that their frames shall have.
        bundle: the recipe's; tells task, channels and preprocessing.
        folder: where tensors over ``limit`` go; without one they stay in memory.
        name: of the mapped files.
        limit: bytes that are kept in memory.
        threads: that read; 0 takes one a core, at most eight.
        told: hears of each sample.

    Raises:
        DataError: samples cannot be read, or their truth is not what the task asks for; all of
            them are named.
    """
    images, masks = _Growing(folder, f"{name}-images", limit), _Growing(folder, f"{name}-masks", 0)
    masks.limit = limit // 4  # a mask has a byte where an image has four
    digest = hashlib.sha256()
    faults: list[str] = []
    of, classes, grades, boxes = [], [], [], []
    with workers(threads) as pool:
        made = ahead(pool, lambda sample: _one(sample, bundle), samples)
        for i, (sample, one) in enumerate(zip(samples, made, strict=True)):
            told(i + 1, len(samples))
            if isinstance(one, str):
                faults.append(f"{sample.name} ({one})")
            if faults or isinstance(one, str):
                continue
            frames = len(one.images)
            of.append(torch.full((frames,), i))
            images.add(one.images)
            if one.masks is not None:
                masks.add(one.masks)
            classes += [sample.truth.classes] * frames
            grades += [sample.truth.grade] * frames
            boxes += one.boxes
            digest.update(_line(sample, one))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(samples)} samples cannot be learnt from: {listed(faults)}; "
            "repair them or take them out of the data"
        )
    if not samples:
        raise DataError("there are no samples; look at the recipe's data and split")
    task = bundle.task
    return Prepared(
        images.whole(),
        torch.cat(of),
        tuple(sample.name for sample in samples),
        digest.hexdigest(),
        classes=torch.tensor(classes) if task == "classification" else None,
        grade=torch.tensor(grades) if task == "grading" else None,
        masks=masks.whole() if task == "segmentation" else None,
        boxes=boxes if task == "detection" else None,
    )


def subset(prepared: Prepared, chosen: Sequence[int]) -> Prepared:
    """The frames of the chosen samples, by their place in ``names``, in that order."""
    frames = torch.cat([torch.nonzero(prepared.sample == i).flatten() for i in chosen])
    renumbered = {old: new for new, old in enumerate(chosen)}
    digest = hashlib.sha256(f"{prepared.digest} {list(chosen)}".encode()).hexdigest()

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[frames]

    return Prepared(
        prepared.images[frames],
        torch.tensor([renumbered[int(i)] for i in prepared.sample[frames]]),
        tuple(prepared.names[i] for i in chosen),
        digest,
        of(prepared.classes),
        of(prepared.grade),
        of(prepared.masks),
        None if prepared.boxes is None else [prepared.boxes[int(i)] for i in frames],
    )


def labels(bundle: Bundle) -> tuple[str, ...]:
    """What samples are told apart by: grades from the lowest, or channels."""
    return grades(bundle) or channels(bundle)


def counts(prepared: Prepared, bundle: Bundle) -> list[int]:
    """In how many frames each of ``labels`` is there."""
    called = labels(bundle)
    if prepared.classes is not None:
        return [int(n) for n in prepared.classes.sum(0)]
    if prepared.grade is not None:
        return torch.bincount(prepared.grade, minlength=len(called)).tolist()
    if prepared.masks is not None:
        return [sum(bool(m[i].any()) for m in prepared.masks) for i in range(len(called))]
    found = [set(frame["labels"].tolist()) for frame in prepared.boxes or []]
    return [sum(i in kinds for kinds in found) for i in range(len(called))]


def check_classes(prepared: Prepared, bundle: Bundle) -> None:
    """Refuse to learn what is never shown.

    Raises:
        DataError: a class, grade or kind has no training sample.
    """
    shown = zip(labels(bundle), counts(prepared, bundle), strict=True)
    empty = [name for name, count in shown if not count]
    if empty:
        raise DataError(
            f"no training sample shows {listed(empty)}; add such samples, change the split, or "
            "take the label out of the recipe"
        )


def workers(count: int = 0) -> ThreadPoolExecutor:
    """Threads that each keep to one core, so that torch's own do not multiply with them."""
    count = count or min(8, os.cpu_count() or 1)
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def ahead(
    pool: Executor, work: Callable[[Given], Made], items: Iterable[Given], depth: int = 16
) -> Iterator[Made]:
    """Results in order, with at most ``depth`` begun or waiting, so that memory stays bounded."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class _One:
    images: Tensor
    masks: Tensor | None
    boxes: list[dict[str, Tensor]]


def _one(sample: Sample, bundle: Bundle) -> _One | str:
    """A sample on the network's grid, or why it cannot be."""
    try:
        fault = _fault(sample, bundle)
        if fault:
            return fault
        stack = sample.read()
        spec = bundle.preprocessing
        where = geometry(stack, spec)
        images = where.forward(scaled(stack, spec))
        if not bool(torch.isfinite(images).all()):
            return "pixels that are no numbers"
        masks = None
        if bundle.task == "segmentation" and sample.truth.masks:
            true = sample.truth.masks()
            shape = (bundle.architecture.classes, *stack.shape)
            if true.shape != shape:
                return f"masks of {true.shape}, not {shape}"
            soft = where.forward(
                torch.from_numpy(np.ascontiguousarray(true)).transpose(0, 1).float()
            )
            masks = (soft >= 0.5).to(torch.uint8)
        return _One(images, masks, _boxes(sample, where, len(images)))
    except (InferenceError, OSError, ValueError) as error:
        return str(error) or type(error).__name__


def _fault(sample: Sample, bundle: Bundle) -> str:
    """What is wrong with a truth that needs no pixels to be seen, or ""."""
    truth, channels = sample.truth, bundle.architecture.classes
    if bundle.task == "classification":
        if truth.classes is None or len(truth.classes) != channels:
            return f"truth {truth.classes} for {channels} classes"
        if bundle.activation == "softmax" and sum(truth.classes) != 1:
            return f"truth {truth.classes} where classes exclude each other"
    if bundle.task == "grading" and (truth.grade is None or not 0 <= truth.grade <= channels):
        return f"grade {truth.grade} of 0..{channels}"
    if bundle.task == "segmentation" and truth.masks is None:
        return "no masks"
    if bundle.task == "detection":
        if truth.boxes is None:
            return "boxes were not told; nothing there is an empty list"
        for box in truth.boxes:
            if not 0 <= box.kind < channels:
                return f"a box of kind {box.kind}, there are {channels}"
            if not (box.left < box.right and box.top < box.bottom):
                return "a box without an inside"
    return ""


def _boxes(sample: Sample, where: Geometry, frames: int) -> list[dict[str, Tensor]]:
    """Each frame's boxes on the network's grid."""
    found = []
    for frame in range(frames):
        mine = [box for box in sample.truth.boxes or () if box.frame == frame]
        edges = np.array([[b.left, b.top, b.right, b.bottom] for b in mine]).reshape(-1, 4)
        placed = where.boxes_forward(edges) if mine else edges
        found.append(
            {
                "boxes": torch.tensor(np.asarray(placed), dtype=torch.float32),
                "labels": torch.tensor([box.kind for box in mine], dtype=torch.int64),
            }
        )
    return found


def _line(sample: Sample, one: _One) -> bytes:
    """What a sample adds to the digest."""
    truth = sample.truth
    boxes = [(b.kind, b.frame, b.left, b.top, b.right, b.bottom) for b in truth.boxes or ()]
    masks = 0 if one.masks is None else _crc(one.masks)
    pixels = _crc(one.images)
    told = [sample.name, sample.group, truth.classes, truth.grade, boxes, masks, pixels]
    return json.dumps(told).encode() + b"\n"


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().data)


class _Growing:
    """Tensors laid end to end: in memory up to a limit, then in a file."""

    def __init__(self, folder: Path | None, name: str, limit: int) -> None:
        self.path = None if folder is None else folder / f"{name}.raw"
        self.limit = limit
        self.kept: list[Tensor] = []
        self.held = self.count = 0
        self.file: Any = None

    def add(self, tensor: Tensor) -> None:
        """``(n, ...)``, of the same shape after n as all others."""
        tensor = tensor.contiguous()
        self.shape, self.dtype = tensor.shape[1:], tensor.dtype
        self.count += len(tensor)
        self.held += tensor.numel() * tensor.element_size()
        self.kept.append(tensor)
        if self.path and self.held > self.limit:
            self.file = self.file or self.path.open("wb")
            for one in self.kept:
                self.file.write(one.numpy())
            self.kept = []

    def whole(self) -> Tensor:
        """All of them, ``(N, ...)``."""
        if self.file is None:
            return torch.cat(self.kept)
        self.file.close()
        assert self.path is not None  # noqa: S101  # a file was opened at it
        shape = (self.count, *self.shape)
        size = int(np.prod(shape))
        flat = torch.from_file(str(self.path), shared=True, size=size, dtype=self.dtype)
        self.path.unlink()  # the mapping keeps it; a kill leaves nothing behind
        return flat.view(shape)
