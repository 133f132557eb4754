"""Owns which layers learn when, and how fast; refuses to know what they learn from.

The encoder was pretrained, stage by stage, the input first; all else is the head and starts at
random. Layers that do not learn neither move nor keep new statistics: they run as they will run in
the service, and no gradient is computed for them.
"""

from __future__ import annotations

import math
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.recipe import Training

WARM_UP = 0.1  # share of the steps
FLOOR = 1 / 25  # of the rate, where the warm-up begins

Group = dict[str, Any]
"""One of an optimiser's: ``params``, ``lr``, ``weight_decay`` and our ``name``."""


def thawed(how: Training, count: int, epoch: int) -> int:
    """How many of ``count`` stages, from the deepest, learn in an epoch (from 0).

    Gradual unfreezing (Howard and Ruder 2018): the head alone for ``unfreeze_every`` epochs, then
    one stage more each time.
    """
    if how.strategy == "frozen":
        return 0
    if how.strategy == "gradual":
        return min(count, epoch // how.unfreeze_every)
    return count


def rates(how: Training, count: int) -> list[float]:
    """The highest rate of each stage, input first: discriminative learning rates."""
    return [how.encoder_rate * how.layer_decay ** (count - 1 - i) for i in range(count)]


def factor(step: int, steps: int) -> float:
    """What all rates are multiplied with: a short warm-up, then a cosine to nothing.

    One cycle as in Smith 2018, momentum left alone. ``step`` counts from 0.
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return FLOOR + (1 - FLOOR) * (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - warm) / (steps + 1 - warm)))


def groups(network: nn.Module, how: Training) -> list[Group]:
    """All parameters with their highest rates; biases and normalisations are not decayed."""
    found: list[Group] = []
    taken: set[int] = set()
    levels = stages(network)
    named = [(f"stage {i}", stage) for i, stage in enumerate(levels)]
    named += [("encoder", encoder(network)), ("head", network)]
    highest = [*rates(how, len(levels)), how.encoder_rate, how.head_rate]
    for (name, module), rate in zip(named, highest, strict=True):
        mine = [p for p in module.parameters() if id(p) not in taken]
        taken |= {id(p) for p in mine}
        for flat in (False, True):
            some = [p for p in mine if (p.ndim < 2) == flat]
            decay = 0.0 if flat else how.weight_decay
            if some:
                found.append(
                    {
                        "params": some,
                        "lr": rate,
                        "highest": rate,
                        "weight_decay": decay,
                        "name": name,
                    }
                )
    return found


def enter(network: nn.Module, how: Training, learning: int) -> None:
    """Training mode; all but the ``learning`` deepest stages are held still."""
    network.train()
    pretrained, levels = encoder(network), stages(network)
    pretrained.requires_grad_(learning > 0)
    pretrained.train(learning > 0)
    for stage in levels[: len(levels) - learning]:
        stage.eval().requires_grad_(False)
    if how.batch_norm == "keep":
        for module in pretrained.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def encoder(network: nn.Module) -> nn.Module:
    """What was pretrained."""
    return cast(nn.Module, cast(Any, network).encoder)


def stages(network: nn.Module) -> list[nn.Module]:
    """Of the encoder, input first."""
    return list(cast(Any, network).encoder.stages)
