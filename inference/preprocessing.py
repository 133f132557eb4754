"""Owns the way from an ImageStack to a network's tensor and back to the stack's grid.

Training and service call the same functions, so that a model sees here what it saw there. Knows
nothing of networks, labels or DICOM: only arrays, their grid and a ``Preprocessing``.

Everything runs on the device that is given, frame by frame or in batches, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.manifest import Preprocessing
from inference.types import ImageStack

SAMPLES = 1 << 18  # pixels of a frame that percentiles are taken from; more changes nothing
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Geometry:
    """How one stack's frames lie in the network's input, and how to come back.

    Attributes:
        shape: rows, columns of the stack.
        transposed: rows and columns were exchanged, first of all.
        flipped: then rows, then columns were turned round.
        content: rows, columns that the frame takes in the network's input after resizing.
        offset: row, column of its first pixel there; what is around it is padding. Negative where
            the frame is cut off.
        size: rows, columns of the network's input.
        via: rows, columns to which it is resized before, or None.
    """

    shape: tuple[int, int]
    transposed: bool
    flipped: tuple[bool, bool]
    content: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    via: tuple[int, int] | None = None

    def forward(self, frames: Tensor, fill: float = 0.0, nearest: bool = False) -> Tensor:
        """``(n, c, rows, columns)`` on the stack's grid to ``(n, c, *size)``."""
        x = frames.transpose(-1, -2) if self.transposed else frames
        x = self._flip(x)
        for wanted in filter(None, (self.via, self.content)):
            if x.shape[-2:] == wanted:
                continue
            if nearest:
                x = functional.interpolate(x, size=wanted, mode="nearest-exact")
            else:
                x = functional.interpolate(
                    x, size=wanted, mode="bilinear", align_corners=False, antialias=True
                )
        return functional.pad(x, self._borders, value=fill)

    def back(self, maps: Tensor) -> Tensor:
        """``(n, c, *size)`` to the stack's grid, bilinear, padding removed; 0 where it was cut."""
        x = functional.pad(maps, [-border for border in self._borders])
        if x.shape[-2:] != self._turned:
            x = functional.interpolate(x, size=self._turned, mode="bilinear", align_corners=False)
        x = self._flip(x)
        return x.transpose(-1, -2) if self.transposed else x

    def boxes_forward(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Boxes ``(k, 4)`` on the stack's grid to the network's.

        Left, top, right, bottom in pixels counted at their outer edges, as `inference.types.Box`.
        """
        found = np.asarray(boxes, np.float64).reshape(-1, 4)
        if self.transposed:
            found = found[:, [1, 0, 3, 2]]
        rows, columns = self._turned
        found = _mirrored(found, self.flipped, (rows, columns))
        scale = self.content[1] / columns, self.content[0] / rows
        return np.asarray(found * np.tile(scale, 2) + np.tile(self.offset[::-1], 2))

    def boxes_back(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Boxes ``(k, 4)`` on the network's grid to the stack's; what was padding lies outside."""
        found = np.asarray(boxes, np.float64).reshape(-1, 4)
        rows, columns = self._turned
        scale = self.content[1] / columns, self.content[0] / rows
        found = (found - np.tile(self.offset[::-1], 2)) / np.tile(scale, 2)
        found = _mirrored(found, self.flipped, (rows, columns))
        return found[:, [1, 0, 3, 2]] if self.transposed else found

    @property
    def _borders(self) -> list[int]:
        """Columns before and behind, rows above and below the content; negative ones are cut."""
        top, left = self.offset
        below = self.size[0] - self.content[0] - top
        return [left, self.size[1] - self.content[1] - left, top, below]

    @property
    def _turned(self) -> tuple[int, int]:
        """Rows and columns after the transposition."""
        rows, columns = self.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def _flip(self, x: Tensor) -> Tensor:
        axes = [axis for axis, flip in zip((-2, -1), self.flipped, strict=True) if flip]
        return x.flip(axes) if axes else x


def geometry(stack: ImageStack, spec: Preprocessing) -> Geometry:
    """Where the frames of this stack go."""
    _, rows, columns = stack.shape
    transposed, flipped = _turn(stack.patient_orientation) if spec.orient else (False, (False,) * 2)
    turned = (columns, rows) if transposed else (rows, columns)
    if spec.fit == "stretch":
        content = spec.size
    else:
        ratios = spec.size[0] / turned[0], spec.size[1] / turned[1]
        scale = min(ratios) if spec.fit == "pad" else max(ratios)
        whole = max(1, round(turned[0] * scale)), max(1, round(turned[1] * scale))
        bounded = min if spec.fit == "pad" else max
        content = bounded(spec.size[0], whole[0]), bounded(spec.size[1], whole[1])
    via = None
    if spec.through is not None:
        share = spec.through[0] / spec.size[0], spec.through[1] / spec.size[1]
        via = max(1, round(content[0] * share[0])), max(1, round(content[1] * share[1]))
    offset = ((spec.size[0] - content[0]) // 2, (spec.size[1] - content[1]) // 2)
    return Geometry(
        (rows, columns), transposed, (flipped[0], flipped[1]), content, offset, spec.size, via
    )


def prepare(
    stack: ImageStack,
    spec: Preprocessing,
    frames: slice | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Geometry]:
    """Frames of a stack as a network's input.

    Args:
        stack: pixels in the unit that ``spec.window`` is written in; of colour ones bytes
            count as 0..1, other types are taken to be 0..1 already.
        spec: the manifest's.
        frames: which of them; all when None.
        device: where the tensor is made.

    Returns:
        ``(n, channels, *spec.size)`` float32, and the way back.
    """
    where = geometry(stack, spec)
    x = where.forward(scaled(stack, spec, frames, device))
    return normalise(x, spec), where


def scaled(
    stack: ImageStack,
    spec: Preprocessing,
    frames: slice | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``(n, c, rows, columns)`` float32 on the stack's grid, windowed to 0..1.

    One channel of a grey picture, three of ``spec.colour == "rgb"``, ``2 * spec.neighbours + 1``
    of slices in reading order, the frame's own in the middle; beyond either end the last slice
    stands for those that are missing. Percentiles are each slice's own, and one pair for all three
    colours. Pixels that are not valid become 0, as padding does.
    """
    frames = frames or slice(None)
    chosen = range(*frames.indices(len(stack.pixels)))
    if spec.neighbours == 0 or not chosen:
        return _scaled(stack, spec, frames, device)
    reach = range(-spec.neighbours, spec.neighbours + 1)
    wanted = np.clip([[i + step for step in reach] for i in chosen], 0, len(stack.pixels) - 1)
    first = int(wanted.min())
    x = _scaled(stack, spec, slice(first, int(wanted.max()) + 1), device)
    return x[torch.from_numpy(wanted - first).to(device), 0]


def _scaled(
    stack: ImageStack, spec: Preprocessing, chosen: slice, device: torch.device | str
) -> Tensor:
    """Each slice by itself: ``(n, 1 or 3, rows, columns)``."""
    pixels = np.ascontiguousarray(stack.pixels[chosen])
    valid = None if stack.valid is None else stack.valid[chosen]
    if pixels.ndim == 4:
        pixels = _colour(pixels, spec.colour)
    elif pixels.dtype in (np.uint16, np.uint32, np.int64, np.float64):
        pixels = pixels.astype(np.float32)  # torch has few operations on unsigned integers
    if spec.window is not None:
        low, high = (np.full(len(pixels), bound, np.float32) for bound in spec.window)
    else:
        assert spec.percentiles is not None  # noqa: S101  # the manifest holds exactly one of them
        low, high = _percentiles(pixels, valid, spec.percentiles)
    x = _to(pixels, device).to(torch.float32)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    start = _to(low, device)[:, None, None, None]
    width = _to(np.maximum(high - low, 1e-6).astype(np.float32), device)[:, None, None, None]
    x = ((x - start) / width).clamp_(0, 1)
    if valid is not None:
        x = x * _to(np.ascontiguousarray(valid), device)[:, None]
    return x.expand(-1, 3, -1, -1).contiguous() if spec.colour == "rgb" else x


def _colour(pixels: NDArray[np.generic], wanted: str) -> NDArray[np.float32]:
    """RGB ``(n, rows, columns, 3)`` as float in 0..1, or its luminance ``(n, rows, columns)``."""
    values = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        values /= 255
    return values if wanted == "rgb" else np.asarray(values @ LUMINANCE, np.float32)


def normalise(x: Tensor, spec: Preprocessing) -> Tensor:
    """``(n, c, rows, columns)`` in 0..1 to the network's input: mean removed, over the deviation.

    One channel is repeated for as many as the network takes.
    """
    mean = torch.tensor(spec.mean, device=x.device)[:, None, None]
    std = torch.tensor(spec.std, device=x.device)[:, None, None]
    return (x - mean) / std


def _percentiles(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_] | None, bounds: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Low and high value of each frame, from a regular sample of its valid pixels."""
    found = np.zeros((len(pixels), 2), np.float32)
    for i, frame in enumerate(pixels):
        values = (frame if valid is None else frame[valid[i]]).reshape(-1)
        if values.size:
            step = max(1, values.size // SAMPLES)
            found[i] = np.percentile(values[::step].astype(np.float32), bounds)
    return found[:, 0], found[:, 1]


def _mirrored(
    boxes: NDArray[np.float64], flipped: tuple[bool, bool], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Boxes in a grid of ``shape`` whose rows, then columns, were turned round."""
    left, top, right, bottom = boxes.T
    if flipped[0]:
        top, bottom = shape[0] - bottom, shape[0] - top
    if flipped[1]:
        left, right = shape[1] - right, shape[1] - left
    return np.stack([left, top, right, bottom], 1)


def _turn(orientation: tuple[str, str] | None) -> tuple[bool, tuple[bool, bool]]:
    """Transpose, then (flip rows, flip columns), so that rows run to L and columns to F.

    An orientation that is oblique in this plane, unknown, or not frontal is left as it is.
    """
    if orientation is None:
        return False, (False, False)
    row, column = (letters[:1] for letters in orientation)
    transposed = row in ("H", "F")
    if transposed:
        row, column = column, row
    if row not in ("L", "R") or column not in ("H", "F"):
        return False, (False, False)
    return transposed, (column == "H", row == "R")


def _to(array: NDArray[np.generic], device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)
