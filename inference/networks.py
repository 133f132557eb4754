"""Owns the networks that a manifest may name; refuses to know where their weights come from.

Each has ``.encoder``, the pretrained part (``inference.pyramid``); everything else starts at
random. The backbones that are tested are in ``TESTED``; any other torchvision network that can be
cut into a pyramid serves as well, and those that cannot serve classification and grading.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.googlenet import BasicConv2d
from torchvision.models.resnet import BasicBlock, Bottleneck

from inference.classifiers import Classifier, Ordinal
from inference.decoders import DeepLabV3, UNet
from inference.detectors import Detector
from inference.errors import BundleError
from inference.manifest import Architecture
from inference.pyramid import Encoder, Pyramid, Whole, encoder

__all__ = ["TESTED", "Encoder", "Pyramid", "UNet", "Whole", "build", "fused"]

TESTED = (
    "alexnet",
    "vgg16",
    "googlenet",
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "squeezenet1_1",
    "efficientnet_b0",
    "convnext_tiny",
)
DECODER = (128, 64, 48, 32, 16)
IN_ORDER = (nn.Sequential, BasicBlock, Bottleneck, BasicConv2d)
"""Modules whose normalisations follow the convolution that is named before them."""
BOTTLENECKS = ("resnet50", "resnet101", "resnet152", "resnext", "wide_resnet")


def build(architecture: Architecture, dropout: float = 0.0) -> nn.Module:
    """The network, with random weights, in training mode.

    Takes ``(n, in_channels, rows, columns)`` float, rows and columns multiples of 32, and gives
    logits: ``(n, classes, rows, columns)`` of a segmentation, ``(n, classes)`` of a classification,
    ``(n, grades - 1)`` of a grading; a detector's answer is described where it is made.

    Args:
        architecture: the manifest's.
        dropout: before a classifier's last layer.

    Raises:
        BundleError: the backbone is none of torchvision's, or does not suit the network.
    """
    name, backbone = architecture.name, architecture.backbone
    channels, classes = architecture.in_channels, architecture.classes
    if name == "classifier":
        return Classifier(encoder(backbone, channels), classes, dropout)
    if name == "ordinal":
        return Ordinal(encoder(backbone, channels), classes, dropout)
    dilated = name == "deeplabv3" and backbone.startswith(BOTTLENECKS)
    try:
        pyramid = Pyramid(backbone, channels, dilated=dilated)
    except BundleError as error:
        raise BundleError(f"{name}: {error}") from error
    if name == "unet":
        return UNet(pyramid, classes, DECODER)
    if name == "deeplabv3":
        return DeepLabV3(pyramid, classes)
    return Detector(name, pyramid, classes)


def fused(network: nn.Module) -> nn.Module:
    """The network, for evaluation only, with batch normalisation folded into convolutions.

    The same function up to rounding, a quarter faster on a CPU. Alters the network that is given;
    only neighbours whose order is known are folded (`IN_ORDER`).
    """
    network.eval()
    for module in list(network.modules()):
        if isinstance(module, IN_ORDER):
            for (first, before), (second, after) in pairwise(list(module.named_children())):
                if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                    setattr(module, first, fuse_conv_bn_eval(before, after))
                    setattr(module, second, nn.Identity())
    return network
