"""Owns what the cells of a grid say together: means, gains, how sure they are, and the picture.

Refuses to know how a cell was learnt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from training.claims import Cell, Grid
from training.plots import COLOURS


@dataclass(frozen=True)
class Line:
    """One row of the summary: pretrained against scratch, over folds and seeds."""

    data: str
    backbone: str
    fraction: float
    cells: int
    learnt_from: float
    pretrained: tuple[float, float, float]
    scratch: tuple[float, float, float]
    gain: tuple[float, float, float]
    wins: float


def corrected_interval(
    values: NDArray[np.float64], learnt_from: float, measured_on: float
) -> tuple[float, float]:
    """95% interval of a mean over repeated folds, which share data (Nadeau and Bengio 2003).

    The variance of the mean is taken as ``(1/J + n_test/n_train)`` times that of the values: the
    plain ``1/J`` would be far too sure.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    spread = float(values.var(ddof=1)) * (1 / len(values) + measured_on / learnt_from)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread**0.5
    return float(values.mean()) - half, float(values.mean()) + half


def summary(cells: Sequence[Cell]) -> list[Line]:
    """Mean AUC with its 95% interval, and the gain, paired by fold and seed.

    Cells whose partner is missing are left out.
    """
    by: dict[tuple[str, str, float], dict[str, dict[tuple[int, int], Cell]]] = {}
    for cell in cells:
        rows = by.setdefault((cell.data, cell.backbone, cell.fraction), {})
        rows.setdefault(cell.init, {})[cell.fold, cell.seed] = cell
    lines = []
    for (data, backbone, fraction), rows in by.items():
        pairs = sorted(rows.get("pretrained", {}).keys() & rows.get("scratch", {}).keys())
        if not pairs:
            continue
        one = np.array([rows["pretrained"][pair].auc for pair in pairs])
        two = np.array([rows["scratch"][pair].auc for pair in pairs])
        sizes = [rows["pretrained"][pair] for pair in pairs]
        learnt = float(np.mean([cell.learnt_from for cell in sizes]))
        held = float(np.mean([cell.measured_on for cell in sizes]))

        def told(
            values: NDArray[np.float64], least: float, n: float = learnt, m: float = held
        ) -> tuple[float, float, float]:
            low, high = corrected_interval(values, n, m)
            return float(values.mean()), max(low, least), min(high, 1.0)

        lines.append(
            Line(
                data, backbone, fraction, len(pairs), learnt,
                told(one, 0), told(two, 0), told(one - two, -1), float((one > two).mean()),
            )
        )  # fmt: skip  # one line of numbers
    return lines


def markdown(lines: Sequence[Line]) -> str:
    """The summary as a table."""

    def cell(value: tuple[float, float, float], sign: str = "") -> str:
        mean, low, high = value
        return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    rows = [
        "| data | backbone | share | images | pretrained: AUC | scratch: AUC | gain | wins |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {line.data} | {line.backbone} | {line.fraction:.0%} | {line.learnt_from:.0f} "
        f"| {cell(line.pretrained)} | {cell(line.scratch)} | {cell(line.gain, '+')} "
        f"| {line.wins:.0%} of {line.cells} |"
        for line in lines
    ]
    return "\n".join(rows) + "\n"


def picture(lines: Sequence[Line], title: str, file: Path) -> None:
    """A panel for each data set: AUC over the share of the data, solid pretrained, dashed scratch.

    Bands are the 95% intervals of the mean.
    """
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(line.data for line in lines))
    backbones = list(dict.fromkeys(line.backbone for line in lines))
    figure = Figure(figsize=(5.2 * len(sets), 4.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for backbone, colour in zip(backbones, COLOURS, strict=False):
            mine = [line for line in lines if (line.data, line.backbone) == (data, backbone)]
            mine.sort(key=lambda line: line.fraction)
            shares = [100 * line.fraction for line in mine]
            for which, dash in (("pretrained", "-"), ("scratch", "--")):
                mean, low, high = np.array([getattr(line, which) for line in mine]).T
                axes.plot(shares, mean, dash, color=colour, marker="o", markersize=3,
                          label=f"{backbone}, {which}")  # fmt: skip
                axes.fill_between(shares, low, high, color=colour, alpha=0.08, linewidth=0)
        axes.set_xscale("log")
        ticks = sorted({100 * line.fraction for line in lines})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("share of the training groups, %")
        axes.set_ylabel("AUC on the fold that was held out")
        axes.set_title(data, fontsize=10, loc="left")
        axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(file, dpi=120)


def write(cells: Sequence[Cell], grid: Grid, out: Path) -> None:
    """``summary.md``, ``summary.json`` and ``summary.png`` beside the cells."""
    lines = summary(cells)
    (out / "summary.md").write_text(f"# {grid.title}\n\n{markdown(lines)}")
    (out / "summary.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    picture(lines, grid.title, out / "summary.png")
