"""Owns learning what training data look like to an encoder, for ``inference.familiarity``.

Refuses to know where the limit lies: a threshold is chosen on validation data, by whoever has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from inference.familiarity import distances, spread_out
from training.errors import DataError

MOST_COMPONENTS = 64
SAMPLES_A_COMPONENT = 8
"""A direction in which so few vary is not one that the next sample varies in, too."""
PARTS = 5
MOST_SAMPLES = 2000  # of an even choice; more change nothing but the seconds it takes
LEAST_SAMPLES = 4
SMALLEST = 1e-6


def fit(
    features: Tensor, wrong: Sequence[Tensor] = (), held: Tensor | None = None
) -> dict[str, Tensor]:
    """What features of training data are like; the same features give the same.

    Principal components, as many as the samples bear; the variance of each raised by the mean of
    those that were left out, which keeps it from vanishing where samples are fewer than features;
    for each kind of wrong picture the direction that tells it best from right ones; and each part's
    usual size over samples that were not learnt from.

    Args:
        features: ``(n, F)`` of single frames, neighbours of one volume side by side.
        wrong: for each kind ``(m, F)`` of frames that should not come; their order tells nothing.
        held: ``(h, F)`` of samples that neither the network nor this has learnt from; without them
            a fifth of ``features`` at a time is left out of the fit.

    Returns:
        The tensors that ``inference.familiarity`` reads, float32.

    Raises:
        DataError: too few samples, or features that are no numbers.
    """
    if len(features) < LEAST_SAMPLES:
        raise DataError(
            f"an input check needs {LEAST_SAMPLES} samples to learn from, not {len(features)}; "
            "set evaluation.input_check = false"
        )
    if not all(bool(torch.isfinite(some).all()) for some in (features, *wrong)):
        raise DataError("features are not finite: the network is broken, train it again")
    chosen = np.linspace(0, len(features) - 1, min(len(features), MOST_SAMPLES)).round()
    x = features[torch.from_numpy(chosen.astype(np.int64))].cpu()
    learnt = _components(x, wrong)
    if held is not None:
        parts = distances(held, learnt)
    else:
        left_out = []
        for part in torch.tensor_split(torch.arange(len(x)), min(PARTS, len(x) // 2)):
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[part] = False
            left_out.append(distances(x[part], _components(x[kept], wrong)))
        parts = torch.cat(left_out, 1)
    usual = parts.mean(1)
    spread = parts.std(1).clamp_min(SMALLEST) + 0.01 * usual.abs()
    return {**learnt, "levels": torch.stack([usual, spread], 1).float()}


def _components(features: Tensor, wrong: Sequence[Tensor]) -> dict[str, Tensor]:
    x = spread_out(features)
    mean = x.mean(0)
    centred = (x - mean).numpy()
    samples, size = centred.shape
    count = max(1, min(MOST_COMPONENTS, samples // SAMPLES_A_COMPONENT, size // 4))
    # Of the two products the smaller one; both have the same eigenvalues but for zeros.
    few = samples < size
    product = centred @ centred.T if few else centred.T @ centred
    values, vectors = eigh(product, subset_by_index=[len(product) - count, len(product) - 1])
    if few:
        vectors = centred.T @ vectors / np.sqrt(np.maximum(values, SMALLEST))
    variance = np.maximum(values, 0) / (samples - 1)
    total = np.square(centred).sum() / (samples - 1)
    left = max(total - variance.sum(), 0) / max(1, min(samples - 1, size) - count)
    away = [spread_out(kind).numpy().mean(0) - mean.numpy() for kind in wrong]
    # The inverse of what components, variance and what is left say of the covariance.
    inside = [vectors.T @ one for one in away]
    directions = [
        vectors @ (part / (variance + left + SMALLEST)) + (one - vectors @ part) / (left + SMALLEST)
        for one, part in zip(away, inside, strict=True)
    ]
    found = {
        "mean": mean.numpy(),
        "components": vectors.T,
        "variance": variance + left + SMALLEST,
        "directions": np.array(directions).reshape(len(away), size),
    }
    return {
        name: torch.from_numpy(np.array(value, np.float32, order="C"))
        for name, value in found.items()
    }
