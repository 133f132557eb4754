"""Pretrained weights: from a file, the hub's cache or nowhere, and never of another network."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from inference.manifest import Architecture
from inference.networks import build
from tests.unit.training.learning import recipe
from training.errors import RecipeError, WeightsError
from training.weights import check, into, load, normalisation

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return get_model(NAME, weights=None).state_dict()


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache, and a proxy at which nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the first opener, and with it the proxies of its day, for the whole process.
    monkeypatch.setattr("urllib.request._opener", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def network(backbone=NAME, channels=3):
    return build(
        Architecture(name="classifier", backbone=backbone, in_channels=channels, classes=2)
    )


def test_none_is_from_scratch(tmp_path):
    assert load("none", NAME, tmp_path) is None
    fresh = network()
    before = [p.clone() for p in fresh.parameters()]
    into(fresh, None, NAME)
    assert all(torch.equal(p, q) for p, q in zip(before, fresh.parameters(), strict=True))


@pytest.mark.parametrize("form", ["plain", "wrapped", "several", "safetensors"])
def test_a_file_is_read_in_each_of_its_forms(state, form, tmp_path):
    if form == "safetensors":
        save_file(state, tmp_path / "w.safetensors")
    else:
        wrap = {
            "plain": state,
            "wrapped": {"state_dict": state, "epoch": 3},
            "several": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        }
        torch.save(wrap[form], tmp_path / "w.pth")
    name = "w.safetensors" if form == "safetensors" else "w.pth"
    below, absolute = load(name, NAME, tmp_path), load(str(tmp_path / name), NAME, tmp_path / "no")
    for found in (below, absolute):
        assert found is not None
        assert set(found) == set(state)
        assert all(torch.equal(found[k], state[k]) for k in state)


def test_half_precision_comes_up_as_floats(tmp_path):
    torch.save({"w": torch.ones(2).half(), "n": torch.tensor(3)}, tmp_path / "w.pth")
    found = load("w.pth", NAME, tmp_path)
    assert found["w"].dtype == torch.float32
    assert found["n"].dtype == torch.int64


def test_a_file_with_code_in_it_is_refused(tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth is no file of tensors"):
        load("bad.pth", NAME, tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_what_holds_no_tensors_is_refused(name, tmp_path):
    (tmp_path / name).write_text("no weights at all")
    with pytest.raises(WeightsError, match="no file of tensors"):
        load(name, NAME, tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"epoch": 3, "list": [torch.ones(1)]}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load("w.pth", NAME, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no file 'w\.pth'"):
        load("w.pth", NAME, tmp_path)


def test_the_encoder_starts_from_what_was_pretrained(state):
    fresh = network()
    into(fresh, state, NAME)
    own = list(fresh.encoder.state_dict().values())
    assert any(torch.equal(own[0], tensor) for tensor in state.values())
    assert len(own) == len([name for name in state if name.startswith("features")])


def test_one_grey_channel_gives_what_three_equal_ones_gave(state):
    grey, colour = network(channels=1).eval(), network().eval()
    for one in (grey, colour):
        into(one, state, NAME)
    x = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(
        grey.encoder(x)[-1], colour.encoder(x.repeat(1, 3, 1, 1))[-1], atol=1e-4, rtol=1e-4
    )


def test_weights_of_another_architecture_are_named(state):
    with pytest.raises(WeightsError, match=r"not those of a mobilenet_v2.*features"):
        into(network("mobilenet_v2"), state, "mobilenet_v2")


def test_a_hub_out_of_reach_says_what_to_do(no_hub, tmp_path):
    with pytest.raises(WeightsError, match=r"fetch https://.*squeezenet.*training\.weights"):
        load("hub", NAME, tmp_path)


def test_the_hubs_cache_serves_without_a_network(no_hub, state, tmp_path):
    best = get_model_weights(NAME).DEFAULT
    torch.save(state, no_hub / best.url.rsplit("/", 1)[1])
    found = load("hub", NAME, tmp_path)
    assert all(torch.equal(found[k], state[k]) for k in state)


def test_a_backbone_that_torchvision_does_not_know_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no network 'resnet19'"):
        load("hub", "resnet19", tmp_path)


def test_the_normalisation_is_the_weights_own():
    assert normalisation("resnet50", "hub")[0] == pytest.approx([0.485, 0.456, 0.406])
    assert normalisation("googlenet", "hub") == ([0.5] * 3, [0.5] * 3)
    assert normalisation("inception_v3", "hub") == ([0.5] * 3, [0.5] * 3)
    assert normalisation("resnet50", "none") is None
    assert normalisation("resnet50", "file.pth") is None


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_a_recipe_that_normalises_otherwise_than_its_hub_weights_is_refused():
    check(recipe(weights="hub", preprocessing=IMAGENET))
    check(recipe(weights="hub", backbone="googlenet", preprocessing=HALF))
    check(recipe(weights="none", preprocessing=HALF))
    for backbone, spec in (("resnet18", HALF), ("googlenet", IMAGENET)):
        with pytest.raises(RecipeError, match=rf"{backbone}'s hub weights expect mean \["):
            check(recipe(weights="hub", backbone=backbone, preprocessing=spec))


def test_one_channel_is_held_against_the_mean_of_the_three():
    check(recipe(weights="hub", channels=1))
    with pytest.raises(RecipeError, match=r"0\.449"):
        check(recipe(weights="hub", channels=1, preprocessing={"mean": [0.0], "std": [1.0]}))
