"""Owns whether one run is better than another on the same samples, and the table of many.

Both are drawn on the same groups at once, so that what is hard for both does not blur the
difference. Refuses to compare what was measured on different samples, or to call a difference
whose interval holds 0 one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.bootstrap import Figure, drawn, point
from training.errors import DataError, RunError, listed
from training.metrics import Scheme, scheme_of, statistics
from training.outcomes import Outcome, read
from training.page import figure

DRAWS, SEED = 2000, 0


@dataclass(frozen=True)
class Difference:
    """The headline of two runs on one set.

    Attributes:
        set: title.
        samples: that both were measured on.
        figure: its name.
        a: of the first run.
        b: of the second.
        difference: ``b - a`` with its paired interval.
    """

    set: str
    samples: int
    figure: str
    a: float | None
    b: float | None
    difference: Figure

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.difference.interval:
            return self.difference.why
        low, high = self.difference.interval
        if low <= 0 <= high:
            return "no difference shown"
        return "b is better" if low > 0 else "a is better"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "set": self.set,
            "samples": self.samples,
            "figure": self.figure,
            "of_a": None if self.a is None else round(self.a, 6),
            "of_b": None if self.b is None else round(self.b, 6),
            "b_minus_a": self.difference.document(),
            "verdict": self.verdict,
        }


def compare(runs: Sequence[Path], draws: int = DRAWS) -> dict[str, Any]:
    """Each run's headlines, and how far each lies from the first run's on the same samples.

    Args:
        runs: folders of evaluated runs of the same task.
        draws: of the bootstrap.

    Returns:
        As JSON takes it: ``runs`` (run, set, samples, figure and what it is) and ``differences``
        (a, b, and ``Difference.document``).

    Raises:
        RunError, DataError: see ``differences``.
    """
    first = runs[0]
    return {
        "runs": [row for run in runs for row in overview(run)],
        "differences": [
            {"a": first.name, "b": run.name, **one.document()}
            for run in runs[1:]
            for one in differences(first, run, draws)
        ],
    }


def differences(run_a: Path, run_b: Path, draws: int = DRAWS) -> list[Difference]:
    """Every set that both runs were measured on.

    Args:
        run_a: folder of an evaluated run.
        run_b: of another one of the same task.
        draws: of the bootstrap.

    Raises:
        RunError: a folder was not evaluated, or the two are of different tasks or labels.
        DataError: they share no set, or a set's samples or truths differ.
    """
    (of, a), (other, b) = _read(run_a), _read(run_b)
    if of != other:
        raise RunError(
            f"{run_a.name} is {of.task} of {', '.join(of.names)}, {run_b.name} is {other.task} of "
            f"{', '.join(other.names)}: compare runs of the same labels"
        )
    shared = [title for title in a if title in b]
    if not shared:
        raise DataError(
            f"no set was measured by both: {run_a.name} has {listed(list(a))}, {run_b.name} has "
            f"{listed(list(b))}"
        )
    return [paired(title, a[title], b[title], of, draws) for title in shared]


def paired(
    title: str, a: Sequence[Outcome], b: Sequence[Outcome], of: Scheme, draws: int = DRAWS
) -> Difference:
    """The headline's difference on one set.

    Raises:
        DataError: samples, their groups or their truths differ.
    """
    first, second = sorted(a, key=lambda one: one.name), sorted(b, key=lambda one: one.name)
    names = [{one.name for one in side} for side in (first, second)]
    alone = sorted(names[0] ^ names[1])
    if alone:
        raise DataError(f"{title}: measured by one run only: {listed(alone)}")
    differs = [
        x.name
        for x, y in zip(first, second, strict=True)
        if dict(x.truth) != dict(y.truth) or x.group != y.group
    ]
    if differs:
        raise DataError(f"{title}: another truth or group in each run: {listed(differs)}")
    one, two = (statistics(side, of)[0][of.headline] for side in (first, second))
    values = point(one, len(first)), point(two, len(first))
    groups = [outcome.group for outcome in first]
    if values[0] is None or values[1] is None:
        difference = Figure(None, None, one.why or two.why or "the figure cannot be told")
    elif len(set(groups)) < 2 or one.draw is None or two.draw is None:
        difference = Figure(values[1] - values[0], None, "one group")
    else:
        apart = drawn(groups, draws, SEED, two.draw) - drawn(groups, draws, SEED, one.draw)
        low, high = np.nanpercentile(apart, [2.5, 97.5])
        difference = Figure(values[1] - values[0], (float(low), float(high)))
    return Difference(title, len(first), of.headline, *values, difference)


def _read(run: Path) -> tuple[Scheme, dict[str, list[Outcome]]]:
    """A run's scheme, and its measured outcomes by set."""
    document = _document(run)
    held: dict[str, list[Outcome]] = {}
    for one in read(run / "predictions.csv"):
        if one.set in document["sets"]:
            held.setdefault(one.set, []).append(one)
    return scheme_of(document), held


def _document(run: Path) -> dict[str, Any]:
    path = run / "evaluation.json"
    if not path.is_file() or not (run / "predictions.csv").is_file():
        raise RunError(f"{run.name} was not evaluated; run evaluate first")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def overview(run: Path) -> list[dict[str, Any]]:
    """A run's headline on each of its sets, with its interval.

    Raises:
        RunError: it was not evaluated.
    """
    document = _document(run)
    headline = document["headline"]
    return [
        {
            "run": run.name,
            "set": title,
            "samples": told["samples"],
            "figure": headline,
            **told["figures"].get(headline, {"absent": "nothing in this set"}),
        }
        for title, told in document["sets"].items()
    ]


# --- for a terminal ----------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """What ``compare`` found, lined up."""
    rows = [["run", "set", "samples", "figure", "value (95%)"]]
    for one in found["runs"]:
        rows.append([one["run"], one["set"], str(one["samples"]), one["figure"], figure(one)])
    apart = [["a", "b", "set", "figure", "b - a (95%)", ""]]
    for one in found["differences"]:
        told = _signed(one["b_minus_a"])
        apart.append([one["a"], one["b"], one["set"], one["figure"], told, one["verdict"]])
    return "\n\n".join(_lined(part) for part in (rows, apart) if len(part) > 1)


def _signed(told: dict[str, Any]) -> str:
    if "value" not in told:
        return "not told"
    if "interval_95" not in told:
        return f"{told['value']:+.3f}"
    low, high = told["interval_95"]
    return f"{told['value']:+.3f} ({low:+.3f} to {high:+.3f})"


def _lined(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
