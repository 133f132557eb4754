"""The engine: right answers, shared batches, warm weights; errors stay with their cause."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from inference.bundle import open_bundle, read_file, write_bundle
from inference.engine import Engine, Warm, choose_device
from inference.errors import BundleError, OutOfMemory
from inference.networks import build
from inference.preprocessing import prepare
from tests.bundles import make_tiny_bundle
from tests.stacks import ct, radiograph


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def ct_bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", ct=True)


def pictures(count, shape=(80, 72)):
    rng = np.random.default_rng(0)
    blobs = [np.kron(rng.random((10, 9)), np.ones((8, 8))) for _ in range(count)]
    return [radiograph(np.resize(blob, shape).astype(np.float32)) for blob in blobs]


def altered(bundle, folder, files):
    manifest = bundle.manifest.model_dump(mode="json", exclude={"files"})
    kept = {name: read_file(bundle, name) for name in bundle.manifest.files}
    return write_bundle(folder, manifest, {**kept, **files})


def count_batches(engine, limit=None, full=torch.OutOfMemoryError):
    """The sizes of the batches that the engine runs; over ``limit`` the device is full."""
    sizes = []
    run = engine.answer

    def counted(x):
        sizes.append(len(x))
        if limit is not None and len(x) > limit:
            raise full("out of memory")
        return run(x)

    engine.answer = counted
    return sizes


def test_a_prediction_is_what_the_network_says_of_the_prepared_stack(bundle):
    (stack,) = pictures(1, (64, 64))
    (prediction,) = Engine(bundle).predict([stack], keep_probability=True)
    network = build(bundle.manifest.architecture)
    network.load_state_dict(load(read_file(bundle, "weights.safetensors")))
    x, _ = prepare(stack, bundle.manifest.preprocessing)
    with torch.no_grad():
        expected = network.float().eval()(x).sigmoid()[0].numpy()
    for channel, segment in enumerate(prediction.segments):
        np.testing.assert_allclose(segment.probability[0], expected[channel], atol=1e-5)
        assert np.array_equal(segment.mask, segment.probability >= 0.5)
        assert 0.05 < segment.mask.mean() < 0.95
    assert set(prediction.timings) == {"prepare", "forward", "finish"}


def test_the_same_stack_gives_the_same_bytes_again(bundle):
    stacks = pictures(3)
    first, second = (Engine(bundle).predict(stacks, keep_probability=True) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        for a, b in zip(one.segments, two.segments, strict=True):
            assert a.probability.tobytes() == b.probability.tobytes()


def test_images_of_different_studies_share_batches(bundle):
    engine = Engine(bundle)
    sizes = count_batches(engine)
    stacks = [*pictures(3), *pictures(2, (40, 90))]
    together = engine.predict(stacks)
    assert sizes == [4, 1]
    for stack, prediction in zip(stacks, together, strict=True):
        (alone,) = engine.predict([stack])
        for a, b in zip(alone.segments, prediction.segments, strict=True):
            assert a.mask.shape == stack.shape
            assert (a.mask != b.mask).mean() < 1e-3


def test_a_series_shares_batches_with_the_next_and_keeps_its_own_frames(ct_bundle):
    engine = Engine(ct_bundle)
    sizes = count_batches(engine)
    rng = np.random.default_rng(3)
    volumes = [
        np.kron(rng.uniform(-1000, 1000, (n, 8, 8)), np.ones((1, 8, 8))).astype(np.int16)
        for n in (3, 6)
    ]
    predictions = engine.predict([ct(v) for v in volumes])
    assert sizes == [4, 4, 1]
    assert [p.segments[0].mask.shape[0] for p in predictions] == [3, 6]
    (alone,) = engine.predict([ct(volumes[1][2:])])
    assert (alone.segments[0].mask != predictions[1].segments[0].mask[2:]).mean() < 1e-3


def test_an_unsuitable_stack_is_not_analysed_and_the_others_are(bundle):
    good, other = pictures(2)
    wrong = radiograph(np.zeros((64, 64)), modality="MG")
    first, refused, last = Engine(bundle).predict([good, wrong, other])
    assert "MG" in refused.not_analysed
    assert refused.segments == ()
    assert first.not_analysed is None
    assert len(last.segments) == 2


def test_no_stacks_give_no_predictions(bundle):
    assert Engine(bundle).predict([]) == []


@pytest.mark.parametrize("full", [torch.OutOfMemoryError, MemoryError])
def test_row_19_a_full_device_halves_the_batch_and_the_answer_stays(bundle, full):
    expected = Engine(bundle).predict(pictures(5))
    engine = Engine(bundle)
    sizes = count_batches(engine, limit=2, full=full)
    found = engine.predict(pictures(5))
    assert sizes == [4, 2, 2, 1]
    for a, b in zip(expected, found, strict=True):
        assert (a.segments[0].mask != b.segments[0].mask).mean() < 1e-3


def test_row_19_a_device_that_cannot_hold_half_a_batch_is_out_of_memory(bundle):
    engine = Engine(bundle)
    count_batches(engine, limit=1)
    with pytest.raises(OutOfMemory, match="batch of 2"):
        engine.predict(pictures(5))


def test_another_error_of_the_network_is_not_taken_for_a_full_device(bundle):
    engine = Engine(bundle)

    def broken(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    engine.answer = broken
    with pytest.raises(RuntimeError, match="mat1"):
        engine.predict(pictures(1))


def test_the_golden_example_comes_out_as_it_was_exported(bundle):
    assert Engine(bundle).check_golden() < 1e-5


def test_other_weights_fail_the_golden_example(bundle, tmp_path):
    weights = load(read_file(bundle, "weights.safetensors"))
    weights["head.bias"] = weights["head.bias"] + 0.1
    other = altered(bundle, tmp_path / "other", {"weights.safetensors": save(weights)})
    with pytest.raises(BundleError, match="golden_output"):
        Engine(other).check_golden()


def test_weights_that_are_not_numbers_fail_the_golden_example(bundle, tmp_path):
    weights = load(read_file(bundle, "weights.safetensors"))
    weights["head.bias"] = torch.full_like(weights["head.bias"], float("nan"))
    other = altered(bundle, tmp_path / "other", {"weights.safetensors": save(weights)})
    with pytest.raises(BundleError, match="differs"):
        Engine(other).check_golden()


def test_weights_of_another_network_are_refused(bundle, tmp_path):
    weights = load(read_file(bundle, "weights.safetensors"))
    weights.pop("head.bias")
    other = altered(bundle, tmp_path / "other", {"weights.safetensors": save(weights)})
    with pytest.raises(BundleError, match=r"head\.bias"):
        Engine(other)


def test_half_precision_weights_run_in_full_precision(bundle):
    engine = Engine(bundle)
    assert {p.dtype for p in engine.network.parameters()} == {torch.float32}
    assert engine.bytes > 2 * len(read_file(bundle, "weights.safetensors")) * 0.9


def test_a_second_study_loads_nothing(bundle):
    warm = Warm(1 << 30)
    first = warm.get(bundle)
    assert warm.get(open_bundle(bundle.path)) is first
    assert warm.loads == 1


def test_the_least_recently_used_engine_leaves_when_the_budget_is_full(bundle, tmp_path):
    others = [make_tiny_bundle(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    warm = Warm(int(2.5 * Engine(bundle).bytes))
    warm.get(bundle)
    warm.get(others[0])
    warm.get(bundle)
    warm.get(others[1])
    assert bundle.digest in warm
    assert others[0].digest not in warm
    assert others[1].digest in warm
    assert warm.loads == 3


def test_one_engine_larger_than_the_budget_still_serves(bundle):
    warm = Warm(1)
    warm.get(bundle)
    assert bundle.digest in warm


def test_a_bundle_that_does_not_load_leaves_the_warm_ones(bundle, tmp_path):
    broken = make_tiny_bundle(tmp_path / "broken", seed=5)
    (broken.path / "weights.safetensors").write_bytes(b"")
    warm = Warm(1 << 30)
    warm.get(bundle)
    with pytest.raises(BundleError):
        warm.get(broken)
    assert bundle.digest in warm
    assert warm.loads == 1


def test_a_device_is_named_or_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for wrong in ("gpu", "cuda:x", "cpu:1", "cuda:99"):
        with pytest.raises(ValueError, match=wrong):
            choose_device(wrong)
