"""The networks that a manifest may name: every backbone learns, and folding changes nothing."""

from __future__ import annotations

import pytest
import torch

from inference.errors import BundleError
from inference.manifest import Architecture
from inference.networks import TESTED, build, fused

SHAPES = {"classifier": (2, 3), "unet": (2, 3, 64, 64)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backbone", TESTED)
def test_every_tested_backbone_gives_an_answer_and_learns(backbone, name):
    network = build(Architecture(name=name, backbone=backbone, in_channels=1, classes=3))
    answer = network(torch.randn(2, 1, 64, 64))
    assert answer.shape == SHAPES[name]
    answer.square().mean().backward()
    grown = [n for n, p in network.named_parameters() if p.grad is None]
    assert grown == []
    assert any(bool(p.grad.any()) for p in network.encoder.stages[0].parameters())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("deeplabv3", (2, 4, 64, 64)), ("ordinal", (2, 4)), ("unet", (2, 4, 64, 64))],
)
@pytest.mark.parametrize("channels", [1, 3, 9])
def test_any_number_of_channels_goes_in(name, shape, channels):
    network = build(
        Architecture(name=name, backbone="mobilenet_v2", in_channels=channels, classes=4)
    )
    assert network(torch.randn(2, channels, 64, 64)).shape == shape


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("unet", "no_such_net"),
        ("unet", "shufflenet_v2_x0_5"),
        ("deeplabv3", "swin_t"),
        ("retinanet", "regnet_y_400mf"),
        ("fasterrcnn", "densenet121"),
        ("classifier", "no_such_net"),
    ],
)
def test_a_pair_that_does_not_go_together_is_refused_by_name(name, backbone):
    with pytest.raises(BundleError, match=backbone):
        build(Architecture(name=name, backbone=backbone, classes=1))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("unet", "mobilenet_v2"),
        ("unet", "resnet18"),
        ("deeplabv3", "resnet18"),
        ("classifier", "googlenet"),
        ("classifier", "densenet121"),
        ("classifier", "efficientnet_b0"),
        ("classifier", "shufflenet_v2_x0_5"),
        ("ordinal", "mobilenet_v2"),
        ("retinanet", "mobilenet_v2"),
        ("fasterrcnn", "resnet18"),
    ],
)
def test_folding_the_normalisation_changes_nothing_but_rounding(name, backbone):
    torch.manual_seed(3)
    network = build(Architecture(name=name, backbone=backbone, classes=2))
    x = torch.randn(4, 3, 64, 64)

    def answer():
        if name in ("retinanet", "fasterrcnn"):  # the maps that boxes are made of, all of them
            return torch.cat([m.flatten() for m in network.model.backbone(x).values()])
        return network(x).sigmoid()

    with torch.no_grad():
        network.train()
        for _ in range(3):
            answer()  # so that the running statistics are not the identity
        network.eval()
        expected = answer()
        before = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
        fused(network)
        found = answer()
    after = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert after < before
