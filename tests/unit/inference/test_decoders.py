"""Masks: logits of the input's size from any pyramid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference.decoders import DeepLabV3, UNet
from inference.pyramid import Pyramid


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (50, 71)])
def test_logits_have_the_inputs_size_whatever_it_is(shape):
    pyramid = Pyramid("resnet18", 3)
    for network in (UNet(pyramid, 2, (8, 8)), DeepLabV3(pyramid, 2)):
        with torch.no_grad():
            assert network.eval()(torch.zeros(1, 3, *shape)).shape == (1, 2, *shape)


def rates(network):
    return [m.dilation[0] for m in network.head.modules() if isinstance(m, nn.Conv2d)][1:4]


def test_deeplab_reaches_equally_far_across_the_picture_at_every_stride():
    assert rates(DeepLabV3(Pyramid("resnet50", 3, dilated=True), 1)) == [12, 24, 36]
    assert rates(DeepLabV3(Pyramid("resnet18", 3), 1)) == [3, 6, 9]


def test_deeplab_learns_from_two_pictures_and_says_that_one_is_too_few():
    network = DeepLabV3(Pyramid("mobilenet_v2", 1), 2)
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(ValueError, match="more than 1 value"):
        network(torch.randn(1, 1, 64, 64))
