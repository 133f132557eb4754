from __future__ import annotations

import numpy as np
import pytest

from inference.stored import dumps, from_byte, loads, to_byte
from inference.types import (
    Box,
    Code,
    Finding,
    FrameRef,
    Measurement,
    Prediction,
    Segment,
)

LUNG = Code("39607008", "SCT", "Lung")
FRAMES = tuple(FrameRef(f"1.2.{n}", "1.2.840.10008.5.1.4.1.1.2", n) for n in (1, 2, 3))


def everything() -> Prediction:
    rng = np.random.default_rng(0)
    mask = rng.random((3, 7, 11)) > 0.5
    probability = from_byte(to_byte(rng.random((3, 7, 11)).astype(np.float32)))
    axis = Measurement(
        Code("103339001", "SCT", "Long Axis"), 1 / 3, LUNG, 2, ((0.5, 1.0), (2.0, 3.0))
    )
    return Prediction(
        segments=(
            Segment("右肺", LUNG, LUNG, (1, 2, 3), mask, LUNG, (axis,), probability),
            Segment("none", LUNG, LUNG, (0, 0, 0), np.zeros_like(mask)),
        ),
        findings=(
            Finding(
                "A",
                LUNG,
                True,
                0.1,
                0.2,
                LUNG,
                0.3,
                (Box(0, 1.5, 2.0, 3.0, 4.0),),
                LUNG,
                probability,
            ),
            Finding("B", LUNG, False),
        ),
        notes=("one", "two"),
        timings={"forward": 1.0},
    )


def same(one: Prediction, other: Prediction) -> bool:
    """Dataclasses with arrays do not compare."""
    return repr(one.findings) == repr(other.findings) and all(
        np.array_equal(a.mask, b.mask)
        and a.mask.dtype == b.mask.dtype
        and repr(a.probability) == repr(b.probability)
        and (a.label, a.category, a.type, a.colour, a.laterality, a.measurements)
        == (b.label, b.category, b.type, b.colour, b.laterality, b.measurements)
        for a, b in zip(one.segments, other.segments, strict=True)
    )


def test_all_that_a_model_said_comes_back() -> None:
    told = everything()
    found, frames, context = loads(dumps(told, FRAMES, {"builder": "2", "predecessors": {}}))
    assert same(found, told)
    assert (found.notes, found.not_analysed, found.timings) == (told.notes, None, {})
    assert (frames, context) == (FRAMES, {"builder": "2", "predecessors": {}})


def test_why_nothing_was_analysed_comes_back() -> None:
    found, frames, _ = loads(dumps(Prediction(not_analysed="a lateral view"), (), {}))
    assert (found, frames) == (Prediction(not_analysed="a lateral view"), ())


def test_the_same_prediction_gives_the_same_bytes() -> None:
    assert dumps(everything(), FRAMES, {}) == dumps(everything(), FRAMES, {})


def test_a_probability_in_bytes_stays_that_byte() -> None:
    steps = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_byte(from_byte(steps)), steps)


def test_masks_are_small_on_disk() -> None:
    mask = np.zeros((100, 512, 512), bool)
    mask[:, 100:400, 100:400] = True
    segment = Segment("a", LUNG, LUNG, (1, 2, 3), mask)
    assert len(dumps(Prediction((segment,)), (), {})) < mask.size / 200


@pytest.mark.parametrize("data", [b"", b"nonsense", dumps(Prediction(), (), {})[:-5]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a stored prediction"):
        loads(data)
