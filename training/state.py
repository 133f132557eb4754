"""Owns all that changes while a run learns, and how it is kept and taken up again.

Refuses to know samples, and how a step is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inference.networks import build
from training import strategy
from training import weights as pretrained
from training.augment import seed_of
from training.recipe import Recipe
from training.run import Checkpoint
from training.validate import Verdict

Row = dict[str, Any]
"""A line of ``metrics.csv``."""


def start(recipe: Recipe, weights: dict[str, Tensor] | None) -> nn.Module:
    """The recipe's network: head at random from the recipe's seed, encoder from ``weights``."""
    torch.manual_seed(seed_of(recipe.training.seed))
    network = build(recipe.bundle.architecture, recipe.training.dropout)
    pretrained.into(network, weights, recipe.bundle.architecture.backbone)
    return network


@dataclass
class State:
    """All that changes while a run learns; ``checkpoint`` and ``restore`` are each other's inverse.

    Attributes:
        network: what learns.
        mean: its exponential mean.
        optimiser: over ``strategy.groups``.
        done: epochs that are over.
        best: the best epoch's averaged weights.
        score: of those; higher is better.
        stale: epochs since.
        history: a row an epoch.
    """

    network: nn.Module
    mean: AveragedModel
    optimiser: torch.optim.AdamW
    done: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    score: float = -math.inf
    stale: int = 0
    history: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, weights: dict[str, Tensor] | None, device: torch.device) -> State:
        """Before the first epoch."""
        how = recipe.training
        network = start(recipe, weights)
        network = network.to(device, memory_format=layout(recipe))  # type: ignore[call-overload]  # torch's overloads lack device with memory_format
        mean = AveragedModel(network, multi_avg_fn=averaging(how.ema), use_buffers=True)
        optimiser = torch.optim.AdamW(strategy.groups(network, how), fused=True)
        return cls(network, mean, optimiser)

    def over(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or too many brought nothing."""
        return self.done >= epochs or bool(patience and self.stale >= patience)

    def judged(self, verdict: Verdict | None) -> None:
        """Keep the averaged weights if they are the best so far; without a verdict they are."""
        if verdict is None or verdict.score > self.score or not self.best:
            self.best = _plain(self.mean.module.state_dict())
            self.score = self.score if verdict is None else verdict.score
            self.stale = 0
        else:
            self.stale += 1

    def checkpoint(self) -> Checkpoint:
        """As a run folder keeps it."""
        held = {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "best": self.best,
        }
        tensors = {f"{part}/{k}": v for part, state in held.items() for k, v in state.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": v for k, v in state.items()}
        names = ("done", "score", "stale", "history")
        return Checkpoint(_plain(tensors), {name: getattr(self, name) for name in names})

    def restore(self, kept: Checkpoint) -> None:
        """Go on where a checkpoint was made."""
        parts: dict[str, dict[str, Tensor]] = {
            "network": {},
            "mean": {},
            "best": {},
            "optimiser": {},
        }
        for name, tensor in kept.tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
        self.network.load_state_dict(parts["network"])
        self.mean.load_state_dict(parts["mean"])
        self.best = parts["best"]
        known = self.optimiser.state_dict()
        own = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = _laid_as(own[int(index)], tensor)
        self.optimiser.load_state_dict(known | {"state": moments})
        for name, value in kept.scalars.items():
            setattr(self, name, value)


def _laid_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """The fused step wants a parameter's moments in its own layout; a count of steps has none."""
    if moment.shape != parameter.shape:
        return moment
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)


def averaging(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """An exponential mean that forgets its beginning: over ``n`` steps at most ``(1 + n)/(10 + n)``
    is kept of it. With a plain one a run of few steps would end near its random start.
    """

    def average(means: Any, current: Any, steps: Tensor | int) -> None:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(kept)(means, current, steps)  # type: ignore[no-untyped-call]  # torch's

    return average


def layout(recipe: Recipe) -> torch.memory_format:
    """How images and weights lie in memory."""
    return torch.channels_last if recipe.training.channels_last else torch.contiguous_format


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, rows last, floats as they are."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
