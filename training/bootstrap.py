"""Owns how sure a figure is: its 95% interval, by drawing whole groups again and again.

Percentiles of a bootstrap over groups (Efron 1979): a patient is drawn with all samples. A drawn
set is a weight for each sample, and thousands of them are worked out at once. Refuses to know what
a figure means. What cannot be told is absent with its reason, never a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from training.outcomes import Floats

AT_ONCE = 4_000_000  # weights held in memory
SURE = 0.9  # share of drawn sets that must have the figure for it to have an interval


@dataclass(frozen=True)
class Figure:
    """A figure, or why there is none.

    Attributes:
        value: None where it cannot be told.
        interval: 95%; None where it cannot be told.
        why: there is no value, or no interval.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    why: str = ""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        if self.value is None:
            return {"absent": self.why}
        told: dict[str, Any] = {"value": round(self.value, 6)}
        if self.interval:
            told["interval_95"] = [round(edge, 6) for edge in self.interval]
        elif self.why:
            told["no_interval"] = self.why
        return told


@dataclass(frozen=True)
class Statistic:
    """A figure that can be worked out on drawn sets.

    Attributes:
        draw: weights ``(drawn sets, samples)`` to figures ``(drawn sets,)``, NaN where a set lacks
            what the figure needs; None where no interval makes sense.
        value: on the set itself; None: that of equal weights.
        why: it cannot be told.
    """

    draw: Callable[[Floats], Floats] | None
    value: float | None = None
    why: str = ""


def drawn(groups: Sequence[str], draws: int, seed: int, draw: Callable[[Floats], Floats]) -> Floats:
    """``(draws,)``: a statistic on sets whose groups are drawn with replacement.

    The same groups, number and seed always give the same sets, which is what pairs them.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, AT_ONCE // len(index))
    found = []
    for first in range(0, draws, step):
        often = rng.multinomial(count, np.full(count, 1 / count), size=min(step, draws - first))
        found.append(draw(often[:, index].astype(float)))
    return np.concatenate(found)


def point(statistic: Statistic, samples: int) -> float | None:
    """The figure of the set itself, None where it cannot be told."""
    if statistic.why:
        return None
    value = statistic.value
    if value is None and statistic.draw is not None:
        value = float(statistic.draw(np.ones((1, samples)))[0])
    return value if value is not None and np.isfinite(value) else None


def estimate(statistic: Statistic, groups: Sequence[str], draws: int, seed: int) -> Figure:
    """The figure with its interval."""
    if statistic.why:
        return Figure(None, None, statistic.why)
    value = point(statistic, len(groups))
    if value is None:
        return Figure(None, None, "nothing in this set that it could be told of")
    if statistic.draw is None:
        return Figure(value)
    if len(set(groups)) < 2:
        return Figure(value, None, "one group")
    found = drawn(groups, draws, seed, statistic.draw)
    known = found[np.isfinite(found)]
    if len(known) < SURE * len(found):
        return Figure(value, None, "too few groups")
    low, high = np.percentile(known, [2.5, 97.5])
    return Figure(value, (float(low), float(high)))


def ratio(above: ArrayLike, below: ArrayLike) -> Callable[[Floats], Floats]:
    """Sum of one by the sum of the other; both ``(samples,)``."""
    over, under = np.asarray(above, float), np.asarray(below, float)

    def draw(w: Floats) -> Floats:
        return divided(w @ over, w @ under)

    return draw


def divided(above: Floats, below: Floats) -> Floats:
    """The quotient, NaN where nothing is divided by."""
    nothing = np.full(np.broadcast(above, below).shape, np.nan)
    return np.asarray(np.divide(above, below, out=nothing, where=below > 0))


def mean_of(draws: Sequence[Callable[[Floats], Floats]]) -> Callable[[Floats], Floats]:
    """The mean of several statistics of one set."""
    return lambda w: np.mean([draw(w) for draw in draws], axis=0)
