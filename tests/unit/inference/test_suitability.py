"""What must not be analysed is not, and the reason reads as a sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inference.errors import UnsuitableInput
from inference.manifest import InputCheck, Manifest
from inference.suitability import check, check_score
from tests.bundles import tiny_manifest
from tests.stacks import ct, radiograph


def manifest(ct=False, **contract):
    keys = tiny_manifest(ct=ct)
    keys["input"] = {**keys["input"], **contract}
    names = ["weights.safetensors", "card.md", "evaluation.json", *keys["golden"].values()]
    return Manifest.model_validate({**keys, "files": dict.fromkeys(names, "0" * 64)})


GOOD = np.zeros((64, 64), np.float32)


def test_what_the_model_wants_passes():
    check(radiograph(GOOD), manifest())
    check(ct(GOOD[None]), manifest(ct=True, spacing_mm=(0.5, 1.5)))


@pytest.mark.parametrize(
    ("stack", "contract", "words"),
    [
        (radiograph(GOOD, modality="MG"), {}, "modality is MG.*reads DX or CR"),
        (radiograph(GOOD, modality=""), {}, "modality is not given"),
        (radiograph(GOOD, unit="raw"), {}, "raw values"),
        (radiograph(np.zeros((64, 64, 3), np.uint8)), {}, "colour"),
        (radiograph(GOOD), {"colour": "rgb"}, "grey"),
        (radiograph(GOOD[:20]), {}, "20 x 64 pixels .*32 x 32"),
        (replace(radiograph(GOOD), pixels=np.zeros((3, 64, 64))), {"max_frames": 2}, "3 frames.*2"),
        (replace(radiograph(GOOD), pixels=np.zeros((0, 64, 64))), {}, "no frames"),
        (radiograph(GOOD, valid=np.zeros((1, 64, 64), bool)), {}, "padding"),
        (radiograph(GOOD, spacing=(0.1, 3.0)), {"spacing_mm": (0.1, 1)}, "0.1 x 3 mm"),
    ],
)
def test_each_broken_clause_is_told_in_a_sentence(stack, contract, words):
    with pytest.raises(UnsuitableInput, match=words) as caught:
        check(stack, manifest(**contract))
    assert caught.value.reason.startswith("Not analysed by Tiny test model 0.0.1: ")
    assert caught.value.reason.endswith(".")


def test_an_image_without_spacing_is_not_refused_for_its_spacing():
    check(radiograph(GOOD), manifest(spacing_mm=(0.1, 1)))


def test_an_image_unlike_the_training_data_is_refused_with_score_and_limit():
    limited = manifest().model_copy(
        update={"input_check": InputCheck(file="check.safetensors", threshold=1.5)}
    )
    with pytest.raises(UnsuitableInput) as refused:
        check_score(2.25, limited)
    assert refused.value.reason == (
        f"Not analysed by {limited.title} {limited.version}: the image is unlike those the model "
        "learnt from (score 2.25, limit 1.5)."
    )
    with pytest.raises(UnsuitableInput):
        check_score(float("nan"), limited)
    check_score(1.5, limited)
    check_score(None, limited)
    check_score(9.0, manifest())
