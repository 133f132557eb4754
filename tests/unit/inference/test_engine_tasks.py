"""The engine at every task: numbers, findings, the input check and the golden example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from inference.bundle import read_file, write_bundle
from inference.engine import Engine, boxes_differ
from inference.errors import BundleError
from inference.manifest import Manifest
from inference.networks import build
from inference.preprocessing import prepare
from inference.runner import Runner
from tests.bundles import tiny_manifest
from tests.stacks import ct, radiograph
from training.check import fit

LESION = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
FINDINGS = [
    {"channel": i, "label": f"Kind {i}", "code": LESION, "saliency": True} for i in range(2)
]
TASKS = {
    "segmentation": {},
    "classification": {"labels": [], "findings": FINDINGS, "activation": "softmax"},
    "grading": {
        "labels": [],
        "grading": {
            "label": "Lesion",
            "code": LESION,
            "grades": [{"label": name} for name in ("None", "Small", "Large")],
            "saliency": True,
        },
    },
    "detection": {"labels": [], "findings": FINDINGS},
}
NETWORKS = {
    "segmentation": "deeplabv3",
    "classification": "classifier",
    "grading": "ordinal",
    "detection": "retinanet",
}
CHECK = {"file": "check.safetensors", "threshold": 1e9}


def manifest(task, **changes):
    network = {"name": NETWORKS[task], "backbone": "mobilenet_v2", "classes": 2}
    keys = {**tiny_manifest(task=task, architecture=network), **TASKS[task], **changes}
    names = ["weights.safetensors", "card.md", "evaluation.json", *keys["golden"].values()]
    names += [keys["input_check"]["file"]] if keys.get("input_check") else []
    return Manifest.model_validate({**keys, "files": dict.fromkeys(names, "0" * 64)})


def weights(spec):
    """Random ones whose answer depends on the input: normalised by pictures, not by nothing."""
    torch.manual_seed(4)
    network = build(spec.architecture)
    for module in network.encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
    with torch.no_grad():
        network.encoder(prepare(clip(8), spec.preprocessing)[0])
        if spec.task == "detection":
            network.model.head.classification_head.cls_logits.bias.fill_(0)
    return network.state_dict()


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    blobs = np.kron(rng.random((count, 10, 8)), np.ones((1, 8, 8))).astype(np.float32)
    return [radiograph(blob) for blob in blobs]


def clip(count):
    frames = np.concatenate([stack.pixels for stack in pictures(count)])
    return replace(ct(frames), modality="DX", unit="1", positions=None, orientation=None)


@pytest.fixture(scope="module", params=TASKS)
def runner(request):
    spec = manifest(request.param)
    return Runner(spec, weights(spec))


def test_raw_numbers_have_the_shape_and_range_that_is_promised(runner):
    first, second = runner.raw([pictures(1)[0], clip(5)])
    classes = {"segmentation": (2, 64, 64), "classification": (2,), "grading": (2,)}
    if runner.manifest.task == "detection":
        assert {k: v.shape for k, v in second.items()} == {
            "boxes": (5, 100, 4),
            "scores": (5, 100),
            "kinds": (5, 100),
        }
        assert second["kinds"].dtype == np.int64
        assert 0.05 < second["scores"].max() <= 1
        assert set(np.unique(second["kinds"])) <= {0, 1}
        assert second["boxes"].min() >= 0 and second["boxes"].max() <= 64
        return
    assert list(second) == ["probability"]
    assert first["probability"].shape == (1, *classes[runner.manifest.task])
    assert second["probability"].shape == (5, *classes[runner.manifest.task])
    assert second["probability"].dtype == np.float32
    if runner.manifest.task == "classification":
        np.testing.assert_allclose(second["probability"].sum(1), 1, atol=1e-6)
    if runner.manifest.task == "grading":
        assert (np.diff(second["probability"], axis=1) <= 0).all()


def test_every_stack_gets_its_own_answer_from_shared_batches(runner):
    stacks = [*pictures(3), clip(3)]
    together = runner.raw(stacks)
    for stack, shared in zip(stacks, together, strict=True):
        (alone,) = runner.raw([stack])
        if runner.manifest.task == "detection":
            np.testing.assert_allclose(alone["scores"], shared["scores"], atol=1e-4)
        else:
            np.testing.assert_allclose(alone["probability"], shared["probability"], atol=1e-4)


def test_raw_looks_also_at_what_is_not_analysed(runner):
    (odd,) = [replace(stack, modality="US") for stack in pictures(1)]
    assert runner.predict([odd])[0].not_analysed
    assert runner.raw([odd])[0]


def test_features_are_the_means_over_every_map(runner):
    stacks = [pictures(1)[0], clip(4)]
    found = runner.features(stacks)
    x, _ = prepare(stacks[1], runner.manifest.preprocessing)
    with torch.no_grad():
        maps = runner.network.encoder(x)
        expected = torch.cat([one.mean((2, 3)) for one in maps], 1).numpy()
    assert len(maps) > 1
    assert found.shape == (5, expected.shape[1])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1:], expected, atol=1e-4)
    assert runner.features([]).shape == (0, expected.shape[1])


def test_a_prediction_says_what_its_task_says(runner):
    task = runner.manifest.task
    for prediction in runner.predict(pictures(4)):
        assert prediction.not_analysed is None
        assert set(prediction.timings) == {"prepare", "forward", "finish"}
        assert len(prediction.segments) == (2 if task == "segmentation" else 0)
        count = {"segmentation": 0, "grading": 1}.get(task, 2)
        assert len(prediction.findings) == count
    if task == "classification":
        assert sum(finding.present for finding in prediction.findings) == 1
    if task == "detection":
        assert any(finding.boxes for finding in prediction.findings)
        assert any("spacing" in note for note in prediction.notes)


def test_what_is_present_shows_where_the_network_looked():
    spec = manifest("classification")
    runner = Runner(spec, weights(spec))
    stack = clip(3)
    (prediction,) = runner.predict([stack])
    (raw,) = runner.raw([stack])
    for channel, finding in enumerate(prediction.findings):
        if not finding.present:
            assert finding.saliency is None
            continue
        assert finding.saliency.shape == stack.shape
        frame = raw["probability"][:, channel].argmax()
        assert finding.saliency[frame].max() > 0
        assert np.delete(finding.saliency, frame, axis=0).max() == 0


def test_a_network_of_one_convolution_shows_nothing():
    network = {"name": "classifier", "backbone": "swin_t", "classes": 2}
    spec = manifest("classification", architecture=network)
    (prediction,) = Runner(spec, build(spec.architecture).state_dict()).predict(pictures(1))
    assert all(finding.saliency is None for finding in prediction.findings)
    assert any("cannot be shown" in note for note in prediction.notes)


def test_temperature_softens_and_changes_no_verdict():
    spec = manifest("classification")
    learnt = weights(spec)
    (plain,) = Runner(spec, learnt).raw([clip(4)])
    soft = Runner(spec.model_copy(update={"temperature": 4.0}), learnt).raw([clip(4)])[0]
    logits = np.log(plain["probability"])
    expected = np.exp(logits / 4) / np.exp(logits / 4).sum(1, keepdims=True)
    np.testing.assert_allclose(soft["probability"], expected, atol=1e-5)


def test_neighbouring_slices_change_what_is_said_of_a_slice():
    network = {"name": "classifier", "backbone": "mobilenet_v2", "classes": 2}
    steps = {**tiny_manifest()["preprocessing"], "neighbours": 1, "orient": False}
    spec = manifest("classification", architecture=network, preprocessing=steps)
    runner = Runner(spec, weights(spec))
    stack = clip(6)
    (whole,) = runner.raw([stack])
    (cut,) = runner.raw([replace(stack, pixels=stack.pixels[:3], frames=stack.frames[:3])])
    np.testing.assert_allclose(whole["probability"][:2], cut["probability"][:2], atol=1e-4)
    assert abs(whole["probability"][2] - cut["probability"][2]).max() > 1e-3


@pytest.fixture(scope="module")
def checked():
    """A manifest, weights and what was learnt from: pictures of blobs; stripes are unlike them."""
    plain = manifest("classification")
    learnt = weights(plain)
    runner = Runner(plain, learnt)
    familiar = fit(torch.from_numpy(runner.features([clip(40)])))
    spec = manifest("classification", input_check={"file": "check.safetensors", "threshold": 1.8})
    return spec, learnt, familiar


STRIPES = (np.indices((80, 64))[1] % 8 < 4).astype(np.float32)


def test_an_input_unlike_the_training_data_is_not_analysed_and_the_others_are(checked):
    runner = Runner(*checked[:2], familiar=checked[2])
    like, unlike, last = runner.predict([pictures(1, 5)[0], radiograph(STRIPES), pictures(1, 6)[0]])
    assert like.not_analysed is None and last.not_analysed is None
    assert unlike.not_analysed.startswith(
        "Not analysed by Tiny test model 0.0.1: the image is unlike those the model learnt from "
        "(score "
    )
    assert unlike.not_analysed.endswith("limit 1.8).")
    assert unlike.findings == () and unlike.notes == ()


def test_one_odd_frame_of_many_refuses_no_clip(checked):
    runner = Runner(*checked[:2], familiar=checked[2])
    stack = clip(5)
    pixels = stack.pixels.copy()
    pixels[2] = STRIPES
    assert runner.predict([replace(stack, pixels=pixels)])[0].not_analysed is None
    pixels[1] = pixels[3] = STRIPES
    assert runner.predict([replace(stack, pixels=pixels)])[0].not_analysed


def test_without_the_manifests_word_nothing_is_checked(checked):
    spec = checked[0].model_copy(update={"input_check": None})
    (prediction,) = Runner(spec, checked[1], familiar=checked[2]).predict([radiograph(STRIPES)])
    assert prediction.not_analysed is None


def test_the_check_looks_at_the_pass_that_answers(checked):
    runner = Runner(*checked[:2], familiar=checked[2])
    passes = []
    runner.network.encoder.register_forward_hook(lambda *_: passes.append(1))
    runner.raw(pictures(3))
    assert len(passes) == 1
    np.testing.assert_allclose(
        runner.answer(runner.prepared(clip(2))[0])["features"],
        runner.features([clip(2)]),
        atol=1e-4,
    )


# --- golden examples ---------------------------------------------------------------------------


def bundle_of(folder, task, pixels=None, **changes):
    spec = manifest(task, input_check=CHECK, **changes)
    learnt = weights(spec)
    familiar = fit(torch.from_numpy(Runner(spec, learnt).features([clip(12)])))
    pixels = clip(2).pixels if pixels is None else pixels
    output = Runner(spec, learnt, familiar=familiar).golden_output(pixels)
    keys = spec.model_dump(mode="json", exclude={"files"})
    files = {
        "weights.safetensors": save({k: v.contiguous() for k, v in learnt.items()}),
        "card.md": b"",
        "evaluation.json": b"{}",
        "check.safetensors": save(familiar),
        "golden_input.safetensors": save({"pixels": torch.from_numpy(pixels)}),
        "golden_output.safetensors": save(output),
    }
    return write_bundle(folder, keys, files), keys, files, output


SHAPES = {
    "segmentation": {"probability": (2, 2, 64, 64)},
    "classification": {"probability": (2, 2)},
    "grading": {"probability": (2, 2)},
    "detection": {"boxes": (2, 100, 4), "scores": (2, 100), "kinds": (2, 100)},
}


@pytest.mark.parametrize("task", TASKS)
def test_the_golden_example_of_every_task_holds_and_any_change_fails_it(task, tmp_path):
    bundle, keys, files, output = bundle_of(tmp_path / "whole", task)
    assert {k: tuple(v.shape) for k, v in output.items()} == {**SHAPES[task], "unfamiliar": (2,)}
    assert Engine(bundle).check_golden() < 1e-5
    if task == "detection":
        assert float(output["boxes"].min()) >= 0 and float(output["boxes"].max()) <= 1
    name = "scores" if task == "detection" else "probability"
    for changed, by in ((name, 0.01), ("unfamiliar", 0.1)):
        other = {k: v.clone() for k, v in output.items()}
        other[changed] += by
        wrong = {**files, "golden_output.safetensors": save(other)}
        with pytest.raises(BundleError, match="differs by"):
            Engine(write_bundle(tmp_path / changed, keys, wrong)).check_golden()
    less = {**files, "golden_output.safetensors": save({"unfamiliar": output["unfamiliar"]})}
    with pytest.raises(BundleError, match=r"needs '(probability|boxes)'"):
        Engine(write_bundle(tmp_path / "less", keys, less)).check_golden()


def test_a_golden_example_in_colour_holds(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    steps = {**tiny_manifest()["preprocessing"], "colour": "rgb"}
    bundle, _, _, output = bundle_of(
        tmp_path / "colour", "classification", colours, preprocessing=steps
    )
    assert Engine(bundle).check_golden() < 1e-5
    grey = Runner(manifest("classification"), load(read_file(bundle, "weights.safetensors")))
    other = grey.golden_output(colours)["probability"]
    assert float((other - output["probability"]).abs().max()) > 1e-3


def test_boxes_are_compared_by_their_place_and_not_by_their_order():
    one = {
        "boxes": torch.tensor([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]]),
        "scores": torch.tensor([[0.9, 0.89, 0.0]]),
        "kinds": torch.tensor([[0, 0, 0]]),
    }
    swapped = {k: v[:, [1, 0, 2]] for k, v in one.items()}
    assert boxes_differ(one, swapped, 0.5) == 0
    moved = {**one, "boxes": one["boxes"] + torch.tensor([0.0, 0.0, 0.02, 0.0])}
    assert boxes_differ(one, moved, 0.5) == pytest.approx(0.02, abs=1e-6)
    other_kind = {**one, "kinds": torch.tensor([[0, 1, 0]])}
    assert boxes_differ(one, other_kind, 0.5) > 0.1
    missing = {**one, "scores": torch.tensor([[0.9, 0.0, 0.0]])}
    assert boxes_differ(one, missing, 0.5) > 0.1
    assert boxes_differ(one, missing, 0.95) < 1e-6
    broken = {**one, "boxes": one["boxes"] * float("nan")}
    assert not boxes_differ(one, broken, 0.5) <= 1
