"""The pretrained part: every backbone computes what torchvision's does, by torchvision's names."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional
from torchvision.models import get_model

from inference.errors import BundleError
from inference.networks import TESTED
from inference.pyramid import Pyramid, Whole, encoder


@cache
def original(backbone):
    torch.manual_seed(1)
    plain = backbone in ("googlenet", "inception_v3", "vgg16")  # seconds of drawing
    return get_model(backbone, weights=None, **({"init_weights": False} if plain else {})).eval()


def assert_same(found, expected):
    """Up to rounding; random weights make very small maps, so that only shares of them tell."""
    torch.testing.assert_close(
        found / expected.std(), expected / expected.std(), atol=1e-3, rtol=1e-3
    )


def deepest(network, x):
    """The map that torchvision's classifier is given, before it is pooled."""
    if not hasattr(network, "avgpool"):
        maps = network.features(x)
        return functional.relu(maps) if hasattr(network.features, "denseblock1") else maps
    seen = []
    handle = network.avgpool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("backbone", TESTED)
def test_every_tested_backbone_computes_what_torchvision_computes(backbone):
    theirs = original(backbone)
    pyramid = Pyramid(backbone, 3, widened=True).eval()
    pyramid.load_state_dict(pyramid.from_torchvision(theirs.state_dict()), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = pyramid(x)
        assert_same(maps[-1], deepest(theirs, x))
    assert [m.shape[1] for m in maps] == pyramid.channels
    assert len(pyramid.stages) == len(maps) >= 4


def test_each_map_of_the_pyramid_is_half_the_one_before():
    maps = Pyramid("mobilenet_v2", 3).eval()(torch.zeros(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]


def test_decoders_do_without_the_convolution_that_widens_for_the_classifier():
    for backbone in ("mobilenet_v2", "efficientnet_b0"):
        assert Pyramid(backbone, 3).channels[-1] == 320
        assert Pyramid(backbone, 3, widened=True).channels[-1] == 1280


def test_dilation_keeps_a_resnets_maps_large():
    dilated = Pyramid("resnet50", 3, dilated=True).eval()
    assert (dilated.stride, Pyramid("resnet50", 3).stride) == (8, 32)
    assert dilated(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
def test_a_grey_picture_in_any_number_of_channels_gives_what_three_gave(channels):
    state = original("mobilenet_v2").state_dict()
    three, other = Pyramid("mobilenet_v2", 3).eval(), Pyramid("mobilenet_v2", channels).eval()
    three.load_state_dict(three.from_torchvision(state))
    other.load_state_dict(other.from_torchvision(state))
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = three(grey.expand(-1, 3, -1, -1))[-1]
        found = other(grey.expand(-1, channels, -1, -1))[-1]
    assert_same(found, expected)


def test_one_channel_is_the_sum_over_rgb_and_three_stay_as_they_are():
    state = original("mobilenet_v2").state_dict()
    first = state["features.0.0.weight"]
    one = Pyramid("mobilenet_v2", 1).from_torchvision(state)["stages.0.0.0.weight"]
    assert torch.equal(one, first.sum(1, keepdim=True))
    three = Pyramid("mobilenet_v2", 3).from_torchvision(state)["stages.0.0.0.weight"]
    assert torch.equal(three, first)


def test_weights_for_as_many_channels_are_taken_as_they_are():
    state = Pyramid("resnet18", 5)
    theirs = {
        name: state.state_dict()[f"{ours}{rest}"]
        for prefix, ours in state.names.items()
        for full in state.state_dict()
        if full.startswith(ours)
        for rest in [full[len(ours) :]]
        for name in [prefix + rest]
    }
    found = Pyramid("resnet18", 5).from_torchvision(theirs)
    assert torch.equal(found["stages.0.0.weight"], theirs["conv1.weight"])


@pytest.mark.parametrize(
    ("backbone", "other", "named"),
    [
        ("resnet18", "mobilenet_v2", r"resnet18: conv1\.weight is missing"),
        ("resnet18", "resnet50", r"layer1\.0\.conv1\.weight is \(64, 64, 1, 1\), not"),
        ("squeezenet1_1", "alexnet", r"features\.0\.weight is \(64, 3, 11, 11\), not"),
        ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", r"conv1|stage2"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_what_does_not_fit(backbone, other, named):
    with pytest.raises(BundleError, match=named) as refused:
        encoder(backbone, 3).from_torchvision(original(other).state_dict())
    assert "more" in str(refused.value)


def test_a_file_of_features_alone_is_enough():
    state = {k: v for k, v in original("vgg16").state_dict().items() if k.startswith("features.")}
    assert len(state) == 26
    assert len(Pyramid("vgg16", 3).from_torchvision(state)) == 26


def test_auxiliary_heads_are_left_out():
    state = original("googlenet").state_dict()
    assert any(name.startswith("aux1.") for name in state)
    pyramid = Pyramid("googlenet", 3)
    pyramid.load_state_dict(pyramid.from_torchvision(state), strict=True)


def test_the_hubs_old_names_of_densenet_are_understood():
    state = original("densenet121").state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    pyramid = Pyramid("densenet121", 3)
    found = pyramid.from_torchvision(old)
    assert all(torch.equal(found[k], v) for k, v in pyramid.from_torchvision(state).items())


def test_files_without_batch_counters_are_taken():
    state = original("resnet18").state_dict()
    older = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    pyramid = Pyramid("resnet18", 3)
    pyramid.load_state_dict(pyramid.from_torchvision(older), strict=True)


@pytest.mark.parametrize("backbone", ["shufflenet_v2_x0_5", "swin_t"])
def test_what_cannot_be_cut_serves_as_one_whole_without_its_last_layer(backbone):
    theirs = original(backbone)
    whole = encoder(backbone, 3).eval()
    assert isinstance(whole, Whole)
    whole.load_state_dict(whole.from_torchvision(theirs.state_dict()), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (features,) = whole(x)
        last = [m for m in theirs.modules() if isinstance(m, torch.nn.Linear)][-1]
        assert_same(last(features[:, :, 0, 0]), theirs(x))
    assert features.shape == (2, whole.channels[-1], 1, 1)
    assert len(whole.stages) == 1


@pytest.mark.parametrize("name", ["no_such_net", "fcn_resnet50", "raft_small"])
def test_what_is_no_classification_network_of_torchvision_is_refused(name):
    with pytest.raises(BundleError, match=name):
        encoder(name, 3)
