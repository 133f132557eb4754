"""Owns how unlike its training data an input is; refuses to know where the limit lies.

A score of the means over each of the encoder's maps; the deepest alone, once fine-tuned, tells
little but the classes apart. In parts: the Mahalanobis distance within the subspace in which the
training data vary most (Lee et al. 2018, arXiv 1807.03888); what lies outside that subspace (Ndiour
et al. 2020, arXiv 2012.04250; ViM, Wang et al. 2022, arXiv 2203.10807); and how far an input lies
towards each kind of picture that should not come, as a turned one (Fisher's discriminant). A few
dozen samples tell no part's natural size, so all are held against what they were for samples that
had been left out; the one that stands out most is the score.

Its file holds ``mean (F,)``, ``components (q, F)``, ``variance (q,)``, ``directions (k, F)`` and
``levels (2 + k, 2)``: for each part the mean and the standard deviation over samples that were left
out. ``training.check`` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inference.errors import BundleError

DEVIATIONS = 3
"""So many standard deviations over the usual are a score of 2."""

SHAPES = {"mean": 1, "components": 2, "variance": 1, "directions": 2, "levels": 2}


def described(maps: Sequence[Tensor]) -> Tensor:
    """``(n, F)`` float32, what is compared: the means over every map ``(n, channels, r, c)``."""
    return torch.cat([one.float().mean((2, 3)) for one in maps], 1)


def score(features: Tensor, familiar: Mapping[str, Tensor]) -> Tensor:
    """How unlike the training data, ``(n,)`` float32, without unit; about 1 for what is like them.

    Args:
        features: ``(n, F)``, as `described`.
        familiar: what ``training.check.fit`` gave.

    Raises:
        BundleError: it belongs to another network.
    """
    _fits(features, familiar)
    parts = distances(features, familiar)
    usual, spread = familiar["levels"].double().unbind(1)
    z = (parts - usual[:, None]) / spread[:, None]
    return (1 + z.amax(0) / DEVIATIONS).clamp_min(0).float()


def distances(features: Tensor, familiar: Mapping[str, Tensor]) -> Tensor:
    """``(2 + k, n)`` float64: within the subspace, per dimension, what is left outside it, and how
    far towards each kind of wrong picture.
    """
    centred = spread_out(features) - familiar["mean"].double()
    inside = centred @ familiar["components"].double().T
    within = (inside.square() / familiar["variance"].double()).mean(1)
    outside = (centred.square().sum(1) - inside.square().sum(1)).clamp_min(0)
    towards = familiar["directions"].double() @ centred.T
    return torch.cat([torch.stack([within, outside]).sqrt(), towards])


def spread_out(features: Tensor) -> Tensor:
    """Signed square roots, float64: rectified features are mostly small and seldom very large."""
    wide = features.double()
    return wide.sign() * wide.abs().sqrt()


def _fits(features: Tensor, familiar: Mapping[str, Tensor]) -> None:
    for name, axes in SHAPES.items():
        if name not in familiar or familiar[name].ndim != axes:
            raise BundleError(f"the input check needs {name!r} of {axes} axes")
    count = features.shape[1]
    parts = (familiar["components"], familiar["directions"])
    if familiar["mean"].shape != (count,) or any(part.shape[1] != count for part in parts):
        raise BundleError(f"the input check is not of this network: it has {count} features")
