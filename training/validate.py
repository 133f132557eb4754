"""Owns what an epoch is judged by: a loss and one headline. Refuses to know what follows from it.

Frame by frame and on the network's grid, since it only compares epochs; what is told of a model is
measured by ``training.evaluate``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from inference.manifest import Preprocessing
from inference.preprocessing import normalise
from training.losses import Objective
from training.prepare import Prepared
from training.recipe import Bundle

HEADLINES = {
    "classification": "auc",
    "grading": "kappa",
    "segmentation": "dice",
    "detection": "map",
}
"""By task: mean area under the ROC curves; quadratic weighted kappa; mean Dice over all frames
together; mean average precision, COCO's mean over overlaps of 0.5 to 0.95: at a half
alone few validation samples soon say 1, while boxes still get better."""


@dataclass(frozen=True)
class Verdict:
    """How good an epoch's weights are on validation samples.

    Attributes:
        loss: mean over the frames; NaN in detection.
        headline: of the task; NaN where validation data cannot tell it.
    """

    loss: float
    headline: float

    @property
    def score(self) -> float:
        """Higher is better: the loss's negative, in detection the headline."""
        return self.headline if math.isnan(self.loss) else -self.loss


def as_input(images: Tensor, spec: Preprocessing, device: torch.device | str) -> Tensor:
    """``(n, C, rows, columns)`` in 0..1 as the network takes it, on the device."""
    return normalise(images.to(device, non_blocking=True), spec)


def as_truth(truths: Sequence[Any], device: torch.device | str) -> Any:
    """The truths of a batch's frames, on the device."""
    if isinstance(truths[0], dict):
        return [{name: t.to(device) for name, t in truth.items()} for truth in truths]
    stacked = torch.stack(list(truths)).to(device, non_blocking=True)
    return stacked.float() if stacked.dtype == torch.uint8 else stacked


@torch.no_grad()
def validate(
    network: nn.Module,
    val: Prepared,
    objective: Objective,
    bundle: Bundle,
    device: torch.device | str,
    batch: int,
) -> Verdict:
    """Look at all frames; the network is left in evaluation mode."""
    network.eval()
    total = 0.0
    outputs: list[Any] = []
    overlap = torch.zeros(2, bundle.architecture.classes)
    for first in range(0, len(val), batch):
        frames = range(first, min(first + batch, len(val)))
        x = as_input(val.images[first : first + batch], bundle.preprocessing, device)
        truth = as_truth([val.truth(i) for i in frames], device)
        found = network(x.contiguous(memory_format=torch.channels_last))
        if bundle.task == "detection":
            outputs += [{name: t.cpu() for name, t in one.items()} for one in found]
            continue
        found = found.float()
        total += float(objective(found, truth)) * len(frames)
        if bundle.task == "segmentation":
            mask = _mask(found, bundle.activation)
            overlap += torch.stack(
                [2 * (mask * truth).sum((0, 2, 3)), (mask + truth).sum((0, 2, 3))]
            ).cpu()
        else:
            outputs.append(found.cpu())
    if bundle.task == "detection":
        return Verdict(float("nan"), average_precision(outputs, val.boxes or []))
    loss = total / len(val)
    if bundle.task == "segmentation":
        return Verdict(loss, float(((overlap[0] + 1e-6) / (overlap[1] + 1e-6)).mean()))
    logits = torch.cat(outputs).numpy()
    if val.grade is not None:
        return Verdict(loss, kappa(logits, val.grade.numpy()))
    assert val.classes is not None  # noqa: S101  # the one task that is left
    return Verdict(loss, auc(logits, val.classes.numpy(), bundle.activation))


def auc(logits: NDArray[Any], truth: NDArray[Any], activation: str) -> float:
    """Mean area under the ROC curve of the classes ``(n, classes)`` that are there and absent."""
    if activation == "softmax":
        logits = torch.from_numpy(logits).log_softmax(1).numpy()
    known = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    if not known or not np.isfinite(logits).all():
        return float("nan")
    return float(np.mean([roc_auc_score(truth[:, i], logits[:, i]) for i in known]))


def kappa(logits: NDArray[Any], grade: NDArray[Any]) -> float:
    """Quadratic weighted kappa of the grades that are reached with a chance of a half."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one grade alone: sklearn warns, and gives NaN
        return float(cohen_kappa_score(grade, (logits >= 0).sum(1), weights="quadratic"))


def average_precision(found: list[dict[str, Tensor]], true: list[dict[str, Tensor]]) -> float:
    """Mean over the kinds and over overlaps of 0.5 to 0.95 (COCO's)."""
    measure = MeanAveragePrecision()
    measure.update(found, true)
    return max(0.0, float(measure.compute()["map"]))  # -1 where no frame has a box


def _mask(logits: Tensor, activation: str) -> Tensor:
    if activation == "sigmoid":
        return (logits >= 0).float()
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).float()
