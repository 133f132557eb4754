"""Owns the way from an ImageStack to a network's tensor and back to the stack's grid.

Training and service call the same functions, so that a model sees here what it saw there. Knows
nothing of networks, labels or DICOM: only arrays, their grid and a ``Preprocessing``.

Everything runs on the device that is given, frame by frame or in batches, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.manifest import Preprocessing
from inference.types import ImageStack

SAMPLES = 1 << 18  # pixels of a frame that percentiles are taken from; more changes nothing


@dataclass(frozen=True)
class Geometry:
    """How one stack's frames lie in the network's input, and how to come back.

    Attributes:
        shape: rows, columns of the stack.
        transposed: rows and columns were exchanged, first of all.
        flipped: then rows, then columns were turned round.
        content: rows, columns that the frame takes in the network's input after resizing.
        offset: row, column of its first pixel there; what is around it is padding.
        size: rows, columns of the network's input.
    """

    shape: tuple[int, int]
    transposed: bool
    flipped: tuple[bool, bool]
    content: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def forward(self, frames: Tensor, fill: float = 0.0, nearest: bool = False) -> Tensor:
        """``(n, c, rows, columns)`` on the stack's grid to ``(n, c, *size)``."""
        x = frames.transpose(-1, -2) if self.transposed else frames
        x = self._flip(x)
        if x.shape[-2:] != self.content:
            if nearest:
                x = functional.interpolate(x, size=self.content, mode="nearest-exact")
            else:
                x = functional.interpolate(
                    x, size=self.content, mode="bilinear", align_corners=False, antialias=True
                )
        top, left = self.offset
        below = self.size[0] - self.content[0] - top
        right = self.size[1] - self.content[1] - left
        return functional.pad(x, (left, right, top, below), value=fill)

    def back(self, maps: Tensor) -> Tensor:
        """``(n, c, *size)`` to the stack's grid, bilinear, padding removed."""
        top, left = self.offset
        x = maps[..., top : top + self.content[0], left : left + self.content[1]]
        turned = self.shape[::-1] if self.transposed else self.shape
        if x.shape[-2:] != turned:
            x = functional.interpolate(x, size=turned, mode="bilinear", align_corners=False)
        x = self._flip(x)
        return x.transpose(-1, -2) if self.transposed else x

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
        scale = min(spec.size[0] / turned[0], spec.size[1] / turned[1])
        content = (
            max(1, min(spec.size[0], round(turned[0] * scale))),
            max(1, min(spec.size[1], round(turned[1] * scale))),
        )
    offset = ((spec.size[0] - content[0]) // 2, (spec.size[1] - content[1]) // 2)
    return Geometry(
        (rows, columns), transposed, (flipped[0], flipped[1]), content, offset, spec.size
    )


def prepare(
    stack: ImageStack,
    spec: Preprocessing,
    frames: slice | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Geometry]:
    """Frames of a stack as a network's input.

    Args:
        stack: single-channel pixels in the unit that ``spec.window`` is written in.
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
    """``(n, 1, rows, columns)`` float32 on the stack's grid, windowed to 0..1.

    Pixels that are not valid become 0, as padding does.
    """
    chosen = frames if frames is not None else slice(None)
    pixels = np.ascontiguousarray(stack.pixels[chosen])
    valid = None if stack.valid is None else stack.valid[chosen]
    if pixels.dtype in (np.uint16, np.uint32, np.int64, np.float64):
        pixels = pixels.astype(np.float32)  # torch has few operations on unsigned integers
    if spec.window is not None:
        low, high = (np.full(len(pixels), bound, np.float32) for bound in spec.window)
    else:
        assert spec.percentiles is not None  # noqa: S101  # the manifest holds exactly one of them
        low, high = _percentiles(pixels, valid, spec.percentiles)
    x = _to(pixels, device).to(torch.float32)
    start = _to(low, device)[:, None, None]
    width = _to(np.maximum(high - low, 1e-6).astype(np.float32), device)[:, None, None]
    x = ((x - start) / width).clamp_(0, 1)
    if valid is not None:
        x = x * _to(np.ascontiguousarray(valid), device)
    return x[:, None]


def normalise(x: Tensor, spec: Preprocessing) -> Tensor:
    """``(n, 1, r, c)`` in 0..1 to ``(n, channels, r, c)`` with the training data's mean removed."""
    mean = torch.tensor(spec.mean, device=x.device)[:, None, None]
    std = torch.tensor(spec.std, device=x.device)[:, None, None]
    return (x - mean) / std


def _percentiles(
    pixels: NDArray[np.generic], valid: NDArray[np.bool_] | None, bounds: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Low and high value of each frame, from a regular sample of its valid pixels."""
    found = np.zeros((len(pixels), 2), np.float32)
    for i, frame in enumerate(pixels):
        values = frame.reshape(-1) if valid is None else frame[valid[i]]
        if values.size:
            step = max(1, values.size // SAMPLES)
            found[i] = np.percentile(values[::step].astype(np.float32), bounds)
    return found[:, 0], found[:, 1]


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
