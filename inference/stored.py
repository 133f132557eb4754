"""Owns the bytes of a prediction: what a model said, kept so that it can be told again.

Refuses to know where they are kept and what DICOM makes of them. Masks are kept as bits,
probabilities and saliency as bytes: whoever writes those down does it by `to_byte`, so that a
result built of what comes back equals one built of the original to the bit.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.numpy import load, save

from inference.types import Box, Code, Finding, FrameRef, Measurement, Prediction, Segment

FULL = 255
"""What stands for 1 in a byte."""

_LEVEL = 1  # masks are runs of equal bytes: more effort buys nothing

_codes = TypeAdapter(Code | None)
_measurements = TypeAdapter(tuple[Measurement, ...])
_boxes = TypeAdapter(tuple[Box, ...])
_frames = TypeAdapter(tuple[FrameRef, ...])


def to_byte(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """0..1 as 0..255, to the nearest."""
    return np.asarray(np.rint(values * FULL), np.uint8)


def from_byte(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0..255 as 0..1."""
    return values.astype(np.float32) / np.float32(FULL)


def dumps(
    prediction: Prediction, frames: tuple[FrameRef, ...], context: Mapping[str, Any]
) -> bytes:
    """A prediction with the frames that its masks lie on.

    Args:
        prediction: ``timings`` are left out, they tell nothing of the patient.
        frames: ``ImageStack.frames`` of the input; empty where it could not be read.
        context: what else a later reader must know, as JSON can write it.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    told = {
        "context": dict(context),
        "frames": [asdict(frame) for frame in frames],
        "segments": [
            _segment(s, f"segment {i}", arrays) for i, s in enumerate(prediction.segments)
        ],
        "findings": [
            _finding(f, f"finding {i}", arrays) for i, f in enumerate(prediction.findings)
        ],
        "not_analysed": prediction.not_analysed,
        "notes": prediction.notes,
    }
    return zlib.compress(save(arrays, {"prediction": json.dumps(told)}), _LEVEL)


def loads(data: bytes) -> tuple[Prediction, tuple[FrameRef, ...], dict[str, Any]]:
    """The prediction, its frames and the context that `dumps` was given.

    Raises:
        ValueError: these are no bytes of `dumps`.
    """
    try:
        raw = zlib.decompress(data)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        told, arrays = json.loads(header["__metadata__"]["prediction"]), load(raw)
        prediction = Prediction(
            segments=tuple(
                _segment_of(row, f"segment {i}", arrays) for i, row in enumerate(told["segments"])
            ),
            findings=tuple(
                _finding_of(row, f"finding {i}", arrays) for i, row in enumerate(told["findings"])
            ),
            not_analysed=told["not_analysed"],
            notes=tuple(told["notes"]),
        )
        return prediction, _frames.validate_python(told["frames"]), told["context"]
    except Exception as error:  # zlib, JSON and safetensors each raise their own
        raise ValueError(f"not a stored prediction: {type(error).__name__}") from error


def _segment(segment: Segment, name: str, arrays: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    arrays[name] = np.packbits(segment.mask)
    if segment.probability is not None:
        arrays[f"{name} probability"] = to_byte(segment.probability)
    return {
        **asdict(replace(segment, mask=np.zeros(0, bool), probability=None)),
        "mask": segment.mask.shape,
        "probability": None,
    }


def _segment_of(row: dict[str, Any], name: str, arrays: Mapping[str, NDArray[Any]]) -> Segment:
    shape = tuple(row["mask"])
    bits = np.unpackbits(arrays[name], count=int(np.prod(shape)))
    probability = arrays.get(f"{name} probability")
    return Segment(
        label=row["label"],
        category=_code(row["category"]),
        type=_code(row["type"]),
        colour=tuple(row["colour"]),
        mask=bits.astype(bool).reshape(shape),
        laterality=_codes.validate_python(row["laterality"]),
        measurements=_measurements.validate_python(row["measurements"]),
        probability=None if probability is None else from_byte(probability),
    )


def _finding(finding: Finding, name: str, arrays: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    if finding.saliency is not None:
        arrays[name] = to_byte(finding.saliency)
    return asdict(replace(finding, saliency=None))


def _finding_of(row: dict[str, Any], name: str, arrays: Mapping[str, NDArray[Any]]) -> Finding:
    saliency = arrays.get(name)
    return Finding(
        label=row["label"],
        code=_code(row["code"]),
        present=row["present"],
        probability=row["probability"],
        threshold=row["threshold"],
        severity=_codes.validate_python(row["severity"]),
        score=row["score"],
        boxes=_boxes.validate_python(row["boxes"]),
        site=_codes.validate_python(row["site"]),
        saliency=None if saliency is None else from_byte(saliency),
    )


def _code(row: Any) -> Code:
    code = _codes.validate_python(row)
    if code is None:
        raise ValueError("a code is missing")
    return code
