"""Owns the pretrained part of a network: a torchvision classifier without its classifier.

Refuses to know what is learnt on top of it. A convolutional network of one path is cut where its
feature maps halve (``Pyramid``); any other serves as one whole (``Whole``), for classification and
grading alone. Which of the two is a matter of layout, not of a list of names.
"""

from __future__ import annotations

import re

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from inference.errors import BundleError

PROBE = 128  # rows and columns of the tensor that finds where a backbone halves
SHOWN = 5  # tensors that an error names

_NO_AUXILIARY = ("googlenet", "inception_v3")
_WIDENS = ("mobilenet", "efficientnet")
"""Their last 1x1 convolution only widens for the classifier."""
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""The hub's files still have the names of torchvision's first DenseNet."""


class NoPyramid(BundleError):
    """A network of torchvision's that cannot be cut where its maps halve."""


Named = list[tuple[str, nn.Module]]


class Encoder(nn.Module):
    """The pretrained part: maps in, maps out, and torchvision's names mapped onto ours.

    Attributes:
        backbone: torchvision's name.
        stages: torchvision's own modules, input first, deepest last.
        channels: of the map that each stage gives.
        names: prefix of torchvision's tensors -> prefix of ours.
    """

    backbone: str
    stages: nn.ModuleList
    channels: list[int]
    names: dict[str, str]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(n, c, rows, columns)`` to the map of each stage, finest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A torchvision state dict in this encoder's names; classifiers are left out.

        A first convolution for three channels serves k channels with its sum over RGB divided by
        k, so that a grey picture in all of them gives what it gave in three. For k = 3 it stays as
        it is, whatever the channels mean.

        Raises:
            BundleError: tensors are missing or of another shape; these are other weights.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            ours = _renamed(_OLD_DENSENET.sub(r"\1\2", name), self.names)
            if ours is not None:
                found[ours] = tensor
        own = self.state_dict()
        first = f"{_first_convolution(self)[0]}.weight"
        channels = own[first].shape[1]
        if channels != 3 and first in found and found[first].shape[1:2] == (3,):
            summed = found[first].sum(1, keepdim=True) / channels
            found[first] = summed.expand(-1, channels, -1, -1).contiguous()
        wrong = []
        for name, tensor in own.items():
            theirs = _renamed(name, {ours: theirs for theirs, ours in self.names.items()})
            if name not in found and name.endswith("num_batches_tracked"):
                found[name] = tensor  # counts what nobody asks for; older files lack it
            elif name not in found:
                wrong.append(f"{theirs} is missing")
            elif found[name].shape != tensor.shape:
                wrong.append(f"{theirs} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}")
        if wrong:
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise BundleError(
                f"these are no weights of {self.backbone}: {', '.join(wrong[:SHOWN])}{more}"
            )
        return {name: found[name] for name in own}


class Pyramid(Encoder):
    """A torchvision network without its classifier, cut where its feature maps halve.

    DenseNet's last ReLU, which torchvision applies outside its layers, belongs to it.

    Args:
        backbone: torchvision's name.
        in_channels: of the input; another number than 3 gets a first convolution of its own.
        widened: keep the last 1x1 convolution of MobileNet and EfficientNet, which widens for the
            classifier; decoders do without.
        dilated: a ResNet of bottlenecks keeps the size of its second block to the end (stride 8,
            as torchvision's DeepLabV3).

    Attributes:
        stride: pixels of the input for one of the deepest map.

    Raises:
        BundleError: the backbone is none of torchvision's, or cannot be cut.
    """

    def __init__(
        self, backbone: str, in_channels: int, *, widened: bool = False, dilated: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        modules = _layers(_network(backbone, in_channels, dilated), backbone, widened)
        if modules is None:
            raise NoPyramid(f"no way to cut {backbone!r} into a pyramid")
        stages, self.channels, self.stride = _cut(modules, in_channels, backbone)
        self.stages = nn.ModuleList(nn.Sequential(*(m for _, m in stage)) for stage in stages)
        self.names = {
            f"{name}.": f"stages.{i}.{j}."
            for i, stage in enumerate(stages)
            for j, (name, _) in enumerate(stage)
        }


class Whole(Encoder):
    """A torchvision network that is no pyramid, without its last linear layer: one stage.

    Gives one map of one pixel: what that layer was given. Some take one size of input alone
    (``vit_*`` and ``maxvit_t`` 224 x 224), ``inception_v3`` none under 75 x 75.

    Raises:
        BundleError: the backbone is none of torchvision's, or ends in no linear layer.
    """

    def __init__(self, backbone: str, in_channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        network = _network(backbone, in_channels)
        linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise BundleError(f"{backbone!r} ends in no linear layer")
        name, last = linear[-1]
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
        self.stages = nn.ModuleList([network])
        self.channels = [last.in_features]
        self.names = {"": "stages.0."}

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(n, c, rows, columns)`` to one map ``(n, channels, 1, 1)``."""
        return [self.stages[0](x)[:, :, None, None]]


def encoder(backbone: str, in_channels: int) -> Encoder:
    """What a classifier stands on: a pyramid where there is one, else the whole network.

    Raises:
        BundleError: torchvision has no classification network of that name.
    """
    try:
        return Pyramid(backbone, in_channels, widened=True)
    except NoPyramid:
        return Whole(backbone, in_channels)


def _renamed(name: str, prefixes: dict[str, str]) -> str | None:
    """The name with its longest known prefix replaced."""
    known = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
    return None if known is None else prefixes[known] + name[len(known) :]


def _network(backbone: str, in_channels: int, dilated: bool = False) -> nn.Module:
    """torchvision's network with random weights and a first convolution for ``in_channels``."""
    if backbone not in list_models(torchvision.models):
        raise BundleError(f"torchvision has no classification network {backbone!r}")
    how: dict[str, object] = {}
    if backbone in _NO_AUXILIARY:  # the heads beside the way, and a normalisation that is ours
        how = {"aux_logits": False, "init_weights": False, "transform_input": False}
    if backbone.startswith("vgg"):
        how = {"init_weights": False}  # seconds, for layers that are dropped
    if dilated:
        how["replace_stride_with_dilation"] = [False, True, True]
    network: nn.Module = get_model(backbone, weights=None, **how)
    if in_channels != 3:
        name, first = _first_convolution(network)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _like(first, in_channels))
    return network


def _layers(network: nn.Module, backbone: str, widened: bool) -> Named | None:
    """The named modules up to pooling and classifier, in order; None where order is not known."""
    for attribute in ("features", "layers"):  # MNASNet has the second
        found = getattr(network, attribute, None)
        # Swin has features, too, but gives them channels last and turns them round afterwards.
        if isinstance(found, nn.Sequential) and not hasattr(network, "permute"):
            layers = [(f"{attribute}.{name}", m) for name, m in found.named_children()]
            if backbone.startswith("densenet"):
                layers.append(("relu", nn.ReLU()))
            return layers[:-1] if backbone.startswith(_WIDENS) and not widened else layers
    if hasattr(network, "layer4") or hasattr(network, "inception5b"):
        layers = list(network.named_children())
        return layers[: [name for name, _ in layers].index("avgpool")]
    return None


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise BundleError("the backbone has no convolution")


def _like(convolution: nn.Conv2d, channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # torch widens its own tuple to int
        convolution.stride,  # type: ignore[arg-type]  # as above
        convolution.padding,  # type: ignore[arg-type]  # as above
        bias=convolution.bias is not None,
    )


@torch.no_grad()
def _cut(modules: Named, in_channels: int, backbone: str) -> tuple[list[Named], list[int], int]:
    """Stages, each ending with the last map of one size, the channels of those maps, the stride."""
    x = torch.zeros(1, in_channels, PROBE, PROBE)
    stages: list[Named] = []
    channels: list[int] = []
    stage: Named = []
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
        raise NoPyramid(f"{backbone!r} never halves its feature maps")
    return stages, channels, PROBE // x.shape[-1]
