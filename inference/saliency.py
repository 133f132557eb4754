"""Owns where a classification network looked: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

Refuses to know what the classes mean or how a map is drawn. A map says how much each place spoke
for one class; it is no outline of anything, and a network that looks at the wrong thing shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from inference.preprocessing import Geometry

PROBE = 224
"""Rows and columns of the input that finds the last convolution where none is given."""

_KEEPS_PLACE = (
    _NormBase,
    nn.GroupNorm,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
)
"""What may follow a convolution and still belong to it."""


def grad_cam(network: nn.Module, layer: nn.Module, x: Tensor, target: int) -> Tensor:
    """How much each place of an input spoke for one class.

    The maps of ``layer``, each weighted with the mean gradient of the class's logit with respect
    to it, summed, what speaks against the class cut off (equations 1 and 2 of the paper), and
    enlarged. Works within ``torch.inference_mode`` and with weights that want no gradients. The
    network is left as it was, also when something raises: no hook, no gradient, no changed mode.

    Args:
        network: gives logits ``(n, classes)``, or ``(n, classes, ...)`` that are then summed.
        layer: one of its modules, such as `last_convolution` finds; gives ``(n, c, r, c)``.
        x: ``(n, channels, rows, columns)``, on the network's device.
        target: index of the class.

    Returns:
        ``(n, rows, columns)`` float32 on the device, the highest place of each map 1; all 0 where
        nothing spoke for the class.

    Raises:
        ValueError: ``layer`` did not take part, or gives no maps of that shape.
        IndexError: there is no such class.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError("the layer gives no maps (n, channels, rows, columns)")
        seen[:] = [output.detach().clone().requires_grad_()]
        # A copy goes on, since the next layer may write into what it gets (inplace ReLU).
        return seen[0].clone()

    with torch.inference_mode(False), torch.enable_grad(), _resting(network):
        handle = layer.register_forward_hook(keep)
        try:
            logits = network(x.detach().clone())
        finally:
            handle.remove()
        if not seen:
            raise ValueError("the layer takes no part in the network's answer")
        maps = seen[0]
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), maps)
    with torch.no_grad():
        weights = gradient.float().mean((2, 3), keepdim=True)
        heat = functional.relu((weights * maps.float()).sum(1, keepdim=True))
        heat = functional.interpolate(heat, size=x.shape[-2:], mode="bilinear", align_corners=False)
        highest = heat.amax((2, 3), keepdim=True)
        return torch.where(highest > 0, heat / highest, 0.0)[:, 0]


def last_convolution(network: nn.Module, x: Tensor | None = None) -> nn.Module:
    """The module that gives the network's last maps: its last convolution, with what belongs to it.

    Found by watching one input go through, not by names: the last convolution that gives maps of
    more than one pixel, then what ends after it and keeps their size and place: its
    normalisation and activation, and the blocks around it (GoogLeNet's branches joined, ResNet's
    sum, DenseNet's whole stack), but none that ends with pooling.

    Args:
        network: convolutional; left as it was.
        x: an input that it takes; zeros of `PROBE` x `PROBE` when None.

    Raises:
        ValueError: no convolution gave such maps.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if x is None and convolutions:
        first = convolutions[0]
        x = torch.zeros(
            1, first.in_channels, PROBE, PROBE, device=first.weight.device, dtype=first.weight.dtype
        )
    ended: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        ended.append((module, tuple(output.shape) if isinstance(output, Tensor) else ()))

    handles: list[RemovableHandle] = []
    with torch.no_grad(), _resting(network):
        try:
            handles += [
                m.register_forward_hook(note) for m in network.modules() if m is not network
            ]
            if x is not None:
                network(x)
        finally:
            for handle in handles:
                handle.remove()
    places = [
        index
        for index, (module, shape) in enumerate(ended)
        if isinstance(module, nn.Conv2d) and len(shape) == 4 and shape[2] * shape[3] > 1
    ]
    if not places:
        raise ValueError("the network has no convolution that gives maps")
    found, shape = ended[places[-1]]
    follows = True  # nothing has come between it and the next module
    for module, after in ended[places[-1] + 1 :]:
        joins = found in set(module.modules()) or (follows and isinstance(module, _KEEPS_PLACE))
        follows = joins and after[2:] == shape[2:]
        if follows:
            found = module
    return found


def on_source(maps: Tensor, where: Geometry) -> NDArray[np.float32]:
    """Maps on the network's grid, brought back to the frames that they were made of.

    What lies on padding is cut off and nothing is scaled again: a map that is highest there has
    no place in the image that is 1.

    Args:
        maps: ``(n, *where.size)`` in 0..1.
        where: the way back, as `inference.preprocessing.prepare` gave it.

    Returns:
        ``(n, *where.shape)`` in 0..1, as `inference.types.Finding.saliency` wants it.
    """
    back = where.back(maps[:, None].float()).clamp(0, 1)
    return np.ascontiguousarray(back[:, 0].cpu().numpy())


@contextmanager
def _resting(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, every module then in its own again: nothing is drawn or
    averaged on the way."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
