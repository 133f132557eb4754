"""Owns what makes masks of a pyramid: a U-Net decoder, DeepLabV3's head. Knows no backbone."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from inference.pyramid import Pyramid


class UNet(nn.Module):
    """A decoder over a pyramid (Ronneberger et al. 2015): each step climbs to the next finer map.

    The last step climbs from the finest map to the input, by 2 with most backbones, by 4 with
    AlexNet and ConvNeXt.
    """

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


class DeepLabV3(nn.Module):
    """torchvision's DeepLabV3 head (Chen et al. 2017) over the deepest map of a pyramid.

    A ResNet of bottlenecks is dilated to stride 8, as torchvision does it, with rates 12, 24, 36.
    Every other backbone keeps its stride, most of them 32, and rates shrink with it, so that they
    reach as far across the picture; outlines are then coarse, and a U-Net is the better choice.

    In training mode a batch needs two pictures: the head normalises over one pooled pixel of each.
    """

    def __init__(self, encoder: Pyramid, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        rates = [max(1, 8 * rate // encoder.stride) for rate in (12, 24, 36)]
        self.head = DeepLabHead(encoder.channels[-1], classes, rates)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, rows, columns)`` to logits ``(n, classes, rows, columns)``."""
        logits = self.head(self.encoder(x)[-1])
        return functional.interpolate(
            logits, size=x.shape[-2:], mode="bilinear", align_corners=False
        )


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
