"""The networks: any backbone becomes a pyramid, and pretrained weights find their place in it."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from inference.errors import BundleError
from inference.manifest import Architecture
from inference.networks import TESTED, Pyramid, build, fused


@pytest.mark.parametrize("backbone", TESTED)
def test_every_tested_backbone_gives_logits_of_the_inputs_size(backbone):
    network = build(Architecture(name="unet", backbone=backbone, classes=3)).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 3, 64, 96)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_the_pyramid_computes_what_torchvision_computes(backbone):
    torch.manual_seed(1)
    original = get_model(backbone, weights=None).eval()
    pyramid = Pyramid(backbone, 3).eval()
    pyramid.load_state_dict(pyramid.from_torchvision(original.state_dict()), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if backbone == "resnet18":
            expected = original.layer4(
                original.layer3(
                    original.layer2(
                        original.layer1(
                            original.maxpool(original.relu(original.bn1(original.conv1(x))))
                        )
                    )
                )
            )
        else:
            expected = original.features[:-1](x)
        torch.testing.assert_close(pyramid(x)[-1], expected)


def test_each_map_of_the_pyramid_is_half_the_one_before():
    maps = Pyramid("mobilenet_v2", 3).eval()(torch.zeros(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]


def test_one_channel_gives_what_three_equal_channels_gave():
    torch.manual_seed(2)
    original = get_model("mobilenet_v2", weights=None).state_dict()
    three, one = Pyramid("mobilenet_v2", 3).eval(), Pyramid("mobilenet_v2", 1).eval()
    three.load_state_dict(three.from_torchvision(original))
    one.load_state_dict(one.from_torchvision(original))
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(one(grey)[-1], three(grey.expand(-1, 3, -1, -1))[-1])


@pytest.mark.parametrize("name", ["no_such_net", "vit_b_16"])
def test_a_backbone_that_is_none_or_no_pyramid_is_refused(name):
    with pytest.raises(BundleError, match=name):
        build(Architecture(name="unet", backbone=name, classes=1))


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_folding_the_normalisation_changes_nothing_but_rounding(backbone):
    torch.manual_seed(3)
    network = build(Architecture(name="unet", backbone=backbone, classes=2))
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            network(x)  # so that the running statistics are not the identity
        expected = network.eval()(x)
        before = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
        found = fused(network)(x)
    after = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert after < before
