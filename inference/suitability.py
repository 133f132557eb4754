"""Owns whether a model may look at an input at all, and how a radiologist is told that it may not.

Refuses to know how to mend an input: what breaks the contract is not analysed.
"""

from __future__ import annotations

from inference.errors import UnsuitableInput
from inference.manifest import Manifest
from inference.types import ImageStack

UNITS = {
    "[hnsf'U]": "Hounsfield units",
    "1": "brightness as presented",
    "raw": "raw values, not meant for presentation",
}


def check(stack: ImageStack, manifest: Manifest) -> None:
    """Pass, or say in one sentence why this input is not analysed.

    Raises:
        UnsuitableInput: the first clause of ``manifest.input`` that does not hold.
    """
    contract = manifest.input
    frames, rows, columns = stack.shape

    def refuse(why: str) -> UnsuitableInput:
        return _refused(manifest, why)

    if stack.modality not in manifest.select.modality:
        wanted = " or ".join(manifest.select.modality)
        raise refuse(f"the modality is {stack.modality or 'not given'}, the model reads {wanted}.")
    colour = stack.pixels.ndim == 4
    if colour and contract.colour == "grey":
        raise refuse("the image is in colour, the model reads grey images.")
    if not colour and contract.colour == "rgb":
        raise refuse("the image is grey, the model reads colour images.")
    if stack.unit != contract.unit:
        raise refuse(f"its values are {UNITS[stack.unit]}, the model reads {UNITS[contract.unit]}.")
    if rows < contract.min_rows or columns < contract.min_columns:
        raise refuse(
            f"the image has {rows} x {columns} pixels (rows x columns), "
            f"the model needs {contract.min_rows} x {contract.min_columns} at least."
        )
    if frames > contract.max_frames:
        raise refuse(f"it has {frames} frames, the model takes {contract.max_frames} at most.")
    if frames < 1:
        raise refuse("it has no frames.")
    if stack.valid is not None and not stack.valid.any():
        raise refuse("every pixel is padding or lies behind a shutter.")
    if contract.spacing_mm is not None and stack.spacing is not None:
        low, high = contract.spacing_mm
        if not all(low <= spacing <= high for spacing in stack.spacing):
            raise refuse(
                f"its pixels are {stack.spacing[0]:g} x {stack.spacing[1]:g} mm, "
                f"the model reads {low:g} to {high:g} mm."
            )


def check_score(score: float | None, manifest: Manifest) -> None:
    """Pass what is like the training data, or what nobody compared with them.

    Args:
        score: of ``inference.familiarity``; None where there is none.
        manifest: its input check holds the limit.

    Raises:
        UnsuitableInput: the score is over the limit, or no number.
    """
    limit = manifest.input_check
    if score is not None and limit is not None and not score <= limit.threshold:
        raise _refused(
            manifest,
            "the image is unlike those the model learnt from "
            f"(score {score:.3g}, limit {limit.threshold:.3g}).",
        )


def _refused(manifest: Manifest, why: str) -> UnsuitableInput:
    return UnsuitableInput(f"Not analysed by {manifest.title} {manifest.version}: {why}")
