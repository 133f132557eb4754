"""Owns the networks that a manifest may name; refuses to know where their weights come from.

One shape for every backbone: the torchvision classification network of that name is cut where
its feature maps halve, which gives a pyramid, and a U-Net decoder (Ronneberger et al. 2015)
climbs back up that pyramid to the size of the input. Which torchvision networks can be cut is a
matter of their layout, not of a list of names; the ones we test are in ``TESTED``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model

from inference.errors import BundleError
from inference.manifest import Architecture

TESTED = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "squeezenet1_1")
DECODER = (128, 64, 48, 32, 16)
PROBE = 128  # rows and columns of the tensor that finds where a backbone halves


def build(architecture: Architecture) -> nn.Module:
    """The network, with random weights, in training mode.

    Takes ``(n, in_channels, rows, columns)`` float, rows and columns multiples of 32, and gives
    logits ``(n, classes, rows, columns)``.

    Raises:
        BundleError: the backbone is none of torchvision's, or cannot be cut into a pyramid.
    """
    return UNet(
        Pyramid(architecture.backbone, architecture.in_channels), architecture.classes, DECODER
    )


def fused(network: nn.Module) -> nn.Module:
    """The network, for evaluation only, with batch normalisation folded into convolutions.

    The same function up to rounding, a quarter faster on a CPU. Alters the network that is given;
    only neighbours in a Sequential are folded, since only their order is known.
    """
    network.eval()
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            for (first, before), (second, after) in pairwise(list(module.named_children())):
                if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                    setattr(module, first, fuse_conv_bn_eval(before, after))
                    setattr(module, second, nn.Identity())
    return network


class Pyramid(nn.Module):
    """A torchvision network without its classifier, cut where its feature maps halve.

    Gives a list of maps, finest first; ``channels`` tells the channels of each. ``stages`` keeps
    torchvision's own modules, so that weights under torchvision's names can be mapped onto it
    with ``names``.
    """

    def __init__(self, backbone: str, in_channels: int) -> None:
        super().__init__()
        modules = _layers(backbone)
        if in_channels != 3:
            modules = _with_input(modules, in_channels)
        stages, self.channels = _cut(modules, in_channels, backbone)
        self.stages = nn.ModuleList(nn.Sequential(*(m for _, m in stage)) for stage in stages)
        self.names = {
            name: f"stages.{i}.{j}"
            for i, stage in enumerate(stages)
            for j, (name, _) in enumerate(stage)
        }

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(n, c, rows, columns)`` to the maps of each stage, finest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A torchvision state dict in this pyramid's names; the classifier is left out.

        A first convolution for three channels serves one channel as the sum over its inputs,
        which is what it computes on a grey picture.
        """
        found = {}
        for name, tensor in state.items():
            for prefix in sorted(self.names, key=len, reverse=True):
                if name.startswith(prefix + "."):
                    found[self.names[prefix] + name[len(prefix) :]] = tensor
                    break
        for name, own in self.state_dict().items():
            if name in found and own.ndim == 4 and own.shape[1] == 1 and found[name].shape[1] == 3:
                found[name] = found[name].sum(1, keepdim=True)
        return found


class UNet(nn.Module):
    """A decoder over a pyramid: each step doubles to the size of the next finer map."""

    def __init__(self, encoder: Pyramid, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        skips = [*reversed(encoder.channels[:-1]), 0]  # the last step has no finer map
        widths = (*widths, *(widths[-1:] * len(skips)))[: len(skips)]
        inputs = pairwise((encoder.channels[-1], *widths))
        self.steps = nn.ModuleList(
            Up(below, skip, out) for (below, out), skip in zip(inputs, skips, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, rows, columns)`` to logits ``(n, classes, rows, columns)``."""
        size = x.shape[-2:]
        *finer, x = self.encoder(x)
        for step, skip in zip(self.steps, [*reversed(finer), None], strict=True):
            x = step(x, skip, size if skip is None else skip.shape[-2:])
        return self.head(x)  # type: ignore[no-any-return]  # torch types modules' results as Any


class Up(nn.Module):
    """Enlarge, join the finer map, convolve twice."""

    def __init__(self, below: int, skip: int, out: int) -> None:
        super().__init__()
        self.first = _convolution(below + skip, out)
        self.second = _convolution(out, out)

    def forward(self, x: Tensor, skip: Tensor | None, size: torch.Size) -> Tensor:
        """``x`` at ``size``, joined with ``skip`` where there is one."""
        x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if skip is not None:
            x = torch.cat([x, skip], 1)
        return self.second(self.first(x))  # type: ignore[no-any-return]  # as above


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _layers(backbone: str) -> list[tuple[str, nn.Module]]:
    """The named modules of a torchvision network up to its pooling and classifier, in order."""
    try:
        network = get_model(backbone, weights=None)
    except ValueError as error:
        raise BundleError(f"torchvision has no network {backbone!r}") from error
    if isinstance(getattr(network, "features", None), nn.Sequential):
        layers = [(f"features.{name}", m) for name, m in network.features.named_children()]
        # MobileNet's last 1x1 convolution only widens to 1280 for the classifier.
        return layers[:-1] if backbone.startswith("mobilenet") else layers
    if hasattr(network, "layer4"):
        layers = list(network.named_children())
        return layers[: [name for name, _ in layers].index("avgpool")]
    raise BundleError(f"no way to cut {backbone!r} into a pyramid")


def _with_input(modules: list[tuple[str, nn.Module]], channels: int) -> list[tuple[str, nn.Module]]:
    """The same modules with a first convolution that takes ``channels``."""
    for _, module in modules:
        for parent in module.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d):
                    setattr(parent, name, _like(child, channels))
                    return modules
        if isinstance(module, nn.Conv2d):
            index = [m for _, m in modules].index(module)
            modules[index] = (modules[index][0], _like(module, channels))
            return modules
    raise BundleError("the backbone has no convolution")


def _like(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # torch widens its own tuple to int
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        bias=convolution.bias is not None,
    )


@torch.no_grad()
def _cut(
    modules: list[tuple[str, nn.Module]], in_channels: int, backbone: str
) -> tuple[list[list[tuple[str, nn.Module]]], list[int]]:
    """Stages, each ending with the last map of one size, and the channels of those maps."""
    x = torch.zeros(1, in_channels, PROBE, PROBE)
    stages: list[list[tuple[str, nn.Module]]] = []
    channels: list[int] = []
    stage: list[tuple[str, nn.Module]] = []
    for name, module in modules:
        was_training = module.training
        y = module.eval()(x)
        module.train(was_training)
        if stage and y.shape[-1] < x.shape[-1]:
            stages.append(stage)
            channels.append(x.shape[1])
            stage = []
        stage.append((name, module))
        x = y
    stages.append(stage)
    channels.append(x.shape[1])
    if len(stages) < 2:
        raise BundleError(f"{backbone!r} never halves its feature maps")
    return stages, channels
