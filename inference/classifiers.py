"""Owns what makes a verdict of an encoder's deepest map: classes, or grades in their order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.pyramid import Encoder

FIRST_GAP = 1.0  # between neighbouring thresholds before anything is learnt


class Classifier(nn.Module):
    """Encoder, mean over the map, dropout, one linear layer.

    VGG and AlexNet give up their own fully connected layers, which hold 124 of VGG-16's 138 million
    parameters, want one size of input and are learnt for ImageNet's classes; the mean over the map
    serves every size and every backbone alike.
    """

    def __init__(self, encoder: Encoder, classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, rows, columns)`` to logits ``(n, classes)``."""
        return self.head(self.dropout(pooled(self.encoder(x))))  # type: ignore[no-any-return]  # torch types modules' results as Any


class Ordinal(nn.Module):
    """One score for the whole scale and one threshold for each grade above the lowest.

    The cumulative link model (McCullagh 1980) with the shared weights of CORAL (Cao et al. 2020):
    ``logit P(grade >= k) = score - threshold[k - 1]``. Thresholds are a first one and positive
    steps, so that a higher grade can never be more probable than a lower one.
    """

    def __init__(self, encoder: Encoder, steps: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.channels[-1], 1, bias=False)
        self.first = nn.Parameter(torch.tensor([-FIRST_GAP * (steps - 1) / 2]))
        raw = torch.tensor(FIRST_GAP).expm1().log()  # softplus gives the gap back
        self.gaps = nn.Parameter(raw.repeat(steps - 1))

    @property
    def thresholds(self) -> Tensor:
        """``(grades - 1,)``, ascending."""
        return torch.cat([self.first, self.first + functional.softplus(self.gaps).cumsum(0)])

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, rows, columns)`` to logits ``(n, grades - 1)``, falling along each row."""
        score = self.head(self.dropout(pooled(self.encoder(x))))
        return score - self.thresholds  # type: ignore[no-any-return]  # as above


def pooled(maps: list[Tensor]) -> Tensor:
    """``(n, channels)``: the mean over the deepest map."""
    return maps[-1].mean((2, 3))
