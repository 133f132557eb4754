"""Makes small ImageStacks, for tests of what consumes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.types import FrameRef, ImageStack

CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def radiograph(pixels: NDArray[Any], **changes: Any) -> ImageStack:
    """One frontal CR image, rows to L and columns to F, without spacing."""
    stack = ImageStack(
        pixels=np.asarray(pixels)[None],
        unit="1",
        modality="CR",
        frames=(FrameRef("1.2.3", CR_STORAGE),),
        patient_orientation=("L", "F"),
    )
    return replace(stack, **changes)


def ct(pixels: NDArray[Any], z: list[float] | None = None, **changes: Any) -> ImageStack:
    """Axial slices of 1 x 1 mm, 1 mm apart or at the given heights."""
    heights = np.arange(len(pixels), dtype=float) if z is None else np.array(z)
    stack = ImageStack(
        pixels=np.asarray(pixels),
        unit="[hnsf'U]",
        modality="CT",
        frames=tuple(FrameRef(f"1.2.{i}", CT_STORAGE) for i in range(len(pixels))),
        positions=np.stack([np.zeros_like(heights), np.zeros_like(heights), heights], 1),
        orientation=np.array([1.0, 0, 0, 0, 1, 0]),
        spacing=(1.0, 1.0),
        spacing_source="Pixel Spacing",
        frame_of_reference_uid="1.2.9",
    )
    return replace(stack, **changes)
