"""Owns the pictures of a report, as PNG; refuses to work out a figure that ``metrics`` tells.

Matplotlib's objects without pyplot: no window, no global state. Colours are Okabe and Ito's, told
apart by people who are colour-blind, and lines differ in dashes too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.boxes import Matches
from training.gallery import Case
from training.metrics import BINS, Scheme
from training.outcomes import Outcome

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
DASHES = ("-", "--", "-.", ":")
GREY = "#777777"
DPI = 110
ACROSS = 4  # cases of the gallery in one row


def of_set(said: Sequence[Outcome], of: Scheme) -> dict[str, bytes]:
    """All plots of one set's outcomes, by title; those for which the set lacks a class are not."""
    found: dict[str, bytes | None] = {}
    if of.task == "segmentation":
        found["Dice"] = dice(said, of)
    elif of.task == "detection":
        found["Precision and recall"] = box_precision(said, of)
    else:
        found["ROC"] = roc(said, of)
        found["Precision and recall"] = precision_recall(said, of)
        found["Reliability"] = reliability(said, of)
        found["Confusion"] = confusion(said, of)
    return {title: png for title, png in found.items() if png is not None}


# --- axes --------------------------------------------------------------------------------------


def _figure(width: float = 4.4, height: float = 4.0) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Figure, place: Any, x: str, y: str, title: str = "") -> Any:
    axes = figure.add_subplot(*place) if isinstance(place, tuple) else figure.add_subplot(place)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _unit(axes: Any) -> None:
    """A square from 0 to 1."""
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # Without these the same figure would be other bytes tomorrow.
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _lines() -> Any:
    return zip(cycle(COLOURS), cycle(DASHES), strict=False)


def _legend(axes: Any, **where: Any) -> None:
    axes.legend(fontsize=8, frameon=False, **where)


# --- classes and grades ------------------------------------------------------------------------


def columns(
    said: Sequence[Outcome], of: Scheme, what: str = "output"
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Class or grade's step -> what is true and the probability, ``(samples,)`` each."""
    if of.task == "grading":
        grades = np.array([one.truth["grade"] for one in said])
        names = [(f">= {name}", grades >= k + 1) for k, name in enumerate(of.names[1:])]
    else:
        names = [(name, np.array([one.truth[name] > 0 for one in said])) for name in of.names]
    return {name: (y, np.array([getattr(one, what)[name] for one in said])) for name, y in names}


def _both(
    said: Sequence[Outcome], of: Scheme
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Those of which the set holds both answers."""
    return {n: (y, p) for n, (y, p) in columns(said, of).items() if y.any() and not y.all()}


def roc(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """Sensitivity against 1 - specificity; a dot where the thresholds lie."""
    from sklearn import metrics

    known = _both(said, of)
    if not known:
        return None
    figure = _figure()
    axes = _axes(figure, 111, "1 − specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for (name, (y, p)), (colour, dash) in zip(known.items(), _lines(), strict=False):
        fp, tp, _ = metrics.roc_curve(y, p)
        label = f"{name} (AUC {metrics.roc_auc_score(y, p):.3f})"
        axes.plot(fp, tp, dash, color=colour, label=label, linewidth=1.6)
        positive = _called(said, of, name)
        axes.plot(
            (positive & ~y).sum() / (~y).sum(), (positive & y).sum() / y.sum(), "o", color=colour
        )
    _unit(axes)
    _legend(axes, loc="lower right")
    return _png(figure)


def _called(said: Sequence[Outcome], of: Scheme, name: str) -> NDArray[np.bool_]:
    if of.task == "grading":
        step = [f">= {grade}" for grade in of.names].index(name)
        return np.array([one.verdict["grade"] >= step for one in said])
    return np.array([one.verdict[name] > 0 for one in said])


def precision_recall(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """Precision against recall; a thin line at the share of positives, which a guess reaches."""
    from sklearn import metrics

    known = _both(said, of)
    if not known:
        return None
    figure = _figure()
    axes = _axes(figure, 111, "recall (sensitivity)", "precision (PPV)")
    for (name, (y, p)), (colour, dash) in zip(known.items(), _lines(), strict=False):
        precision, recall, _ = metrics.precision_recall_curve(y, p)
        label = f"{name} (AP {metrics.average_precision_score(y, p):.3f})"
        axes.plot(
            recall,
            precision,
            dash,
            color=colour,
            label=label,
            linewidth=1.6,
            drawstyle="steps-post",
        )
        axes.axhline(y.mean(), color=colour, linewidth=0.7, linestyle=":")
    _unit(axes)
    _legend(axes, loc="lower left")
    return _png(figure)


def reliability(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """How often what was said to have a chance came true, before and after the temperature."""
    if not said:
        return None
    figure = _figure(4.2, 4.6)
    grid = figure.add_gridspec(2, 1, height_ratios=[4, 1])
    axes = _axes(figure, grid[0], "", "observed share")
    below = _axes(figure, grid[1], "probability", "answers")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="perfect")
    edges = np.linspace(0, 1, BINS + 1)
    for what, label, colour, mark in (
        ("uncalibrated", "before", ORANGE, "s--"),
        ("output", "after temperature", BLUE, "o-"),
    ):
        hit, sure = _sureness(said, of, what)
        bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        held = count > 0
        axes.plot(
            (np.bincount(bins, sure, BINS) / np.maximum(count, 1))[held],
            (np.bincount(bins, hit, BINS) / np.maximum(count, 1))[held],
            mark,
            color=colour,
            label=label,
            markersize=4,
            linewidth=1.2,
        )
        below.stairs(count, edges, color=colour, linewidth=1.2, linestyle=mark[1:])
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.tick_params(labelbottom=False)
    below.set_xlim(-0.01, 1.01)
    below.set_yscale("symlog")
    _legend(axes, loc="lower right")
    return _png(figure)


def _sureness(
    said: Sequence[Outcome], of: Scheme, what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whether it came true, and the probability; of exclusive classes the most probable one's."""
    each = list(columns(said, of, what).values())
    y, p = np.array([one for one, _ in each]).T, np.array([one for _, one in each]).T
    if of.exclusive:
        return y[np.arange(len(y)), p.argmax(1)].astype(float), p.max(1)
    return y.reshape(-1).astype(float), p.reshape(-1)


def confusion(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """Counts of verdicts by what is true; shaded by the share of each true class."""
    from sklearn import metrics

    if not said:
        return None
    tables: list[tuple[Sequence[str], NDArray[Any]]] = []
    if of.task == "grading" or of.exclusive:
        true, told = _answers(said, of)
        labels = range(len(of.names))
        tables.append((of.names, metrics.confusion_matrix(true, told, labels=labels)))
    else:
        for name, (y, _) in columns(said, of).items():
            table = metrics.confusion_matrix(y, _called(said, of, name), labels=[False, True])
            tables.append(((f"no {name}", name), table))
    figure = _figure(4.4 * min(len(tables), 3), 3.9 * -(-len(tables) // 3))
    for i, (names, table) in enumerate(tables):
        axes = figure.add_subplot(-(-len(tables) // 3), min(len(tables), 3), i + 1)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(table):
            colour = "white" if share[row, column] > 0.55 else "black"
            text = f"{count}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8, rotation=90, va="center")
        axes.set_xlabel("said")
        axes.set_ylabel("true")
    return _png(figure)


def _answers(said: Sequence[Outcome], of: Scheme) -> tuple[list[int], list[int]]:
    if of.task == "grading":
        return [one.truth["grade"] for one in said], [one.verdict["grade"] for one in said]
    true = [int(np.argmax([one.truth[n] for n in of.names])) for one in said]
    return true, [int(np.argmax([one.verdict[n] for n in of.names])) for one in said]


# --- masks and boxes ---------------------------------------------------------------------------


def dice(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """Each sample a dot, a box for the quartiles, label by label."""
    if not said:
        return None
    figure = _figure(1.6 + 1.4 * len(of.names), 4.0)
    axes = _axes(figure, 111, "", "Dice (no unit)")
    values = [[one.output[f"Dice {name}"] for one in said] for name in of.names]
    axes.boxplot(
        values,
        tick_labels=list(of.names),
        showfliers=False,
        widths=0.5,
        medianprops={"color": RED},
    )
    rng = np.random.default_rng(0)  # only to part dots that would hide each other
    for i, column in enumerate(values):
        x = i + 1 + rng.uniform(-0.18, 0.18, len(column))
        axes.plot(x, column, "o", color=BLUE, alpha=0.45, markersize=3.5, markeredgewidth=0)
    axes.set_ylim(top=1.005)
    return _png(figure)


def box_precision(said: Sequence[Outcome], of: Scheme) -> bytes | None:
    """Precision against recall of boxes at IoU 0.5; a dot at the threshold."""
    figure = _figure()
    axes = _axes(figure, 111, "recall of objects", "precision of boxes")
    boxes = Matches(said, len(of.names)).boxes
    for name, part, (colour, dash) in zip(of.names, boxes, _lines(), strict=False):
        if not part.objects.any() or not len(part.score):
            continue
        tp = np.cumsum(part.matched[0])
        recall, precision = tp / part.objects.sum(), tp / np.arange(1, len(tp) + 1)
        axes.plot(recall, precision, dash, color=colour, label=name, linewidth=1.6)
        last = int(part.counts.sum()) - 1
        if last >= 0:
            axes.plot(recall[last], precision[last], "o", color=colour)
    if not axes.lines:
        return None
    _unit(axes)
    _legend(axes, loc="lower left")
    return _png(figure)


# --- of the whole run --------------------------------------------------------------------------


def learning_curve(rows: Sequence[Mapping[str, str]]) -> bytes | None:
    """Losses above, all else that was measured below, by epoch; ``rows`` as in ``metrics.csv``."""
    names = [name for name in (rows[0] if rows else {}) if name != "epoch"]
    series = {name: _numbers([row.get(name, "") for row in rows]) for name in names}
    series = {n: v for n, v in series.items() if np.isfinite(v).any() and not _how(n)}
    losses = [name for name in series if "loss" in name]
    others = [name for name in series if name not in losses]
    if not losses:
        return None
    epochs = _numbers([row.get("epoch", str(i + 1)) for i, row in enumerate(rows)])
    figure = _figure(5.6, 2.6 + 1.6 * bool(others))
    for i, (group, label) in enumerate(((losses, "loss"), (others, "validation"))):
        if not group:
            continue
        x = "epoch" if i or not others else ""
        axes = _axes(figure, (1 + bool(others), 1, i + 1), x, label)
        for name, (colour, dash) in zip(group, _lines(), strict=False):
            mark = "." if len(rows) < 60 else ""
            shown = name.replace("_", " ")
            axes.plot(epochs, series[name], mark + dash, color=colour, label=shown, linewidth=1.4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend(axes)
    return _png(figure)


def _how(name: str) -> bool:
    """Whether it tells of the way rather than of the outcome."""
    return any(word in name for word in ("second", "rate", "stages"))


def _numbers(values: Sequence[str]) -> NDArray[np.float64]:
    def number(value: str) -> float:
        try:
            return float(value)
        except ValueError:
            return float("nan")

    return np.array([number(value) for value in values])


def forest(measured: Mapping[str, Any], figure_name: str) -> bytes | None:
    """A set's figure, and that of each subgroup, with their intervals."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for attribute, values in measured["subgroups"].items():
        for value, told in values.items():
            found = told.get("figures", {}).get(figure_name, {})
            if "value" in found:
                rows.append((f"{attribute}: {value}  (n = {told['samples']})", found))
    whole = measured["figures"].get(figure_name, {})
    if not rows or "value" not in whole:
        return None
    rows.insert(0, (f"all  (n = {measured['samples']})", whole))
    figure = _figure(6.4, 1.0 + 0.32 * len(rows))
    axes = _axes(figure, 111, figure_name, "")
    axes.axvline(whole["value"], color=GREY, linewidth=0.8, linestyle="--")
    for i, (_, found) in enumerate(rows):
        low, high = found.get("interval_95", [found["value"]] * 2)
        axes.plot([low, high], [i, i], color=BLUE, linewidth=1.6)
        axes.plot(found["value"], i, "s" if i == 0 else "o", color=BLUE if i else RED, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return _png(figure)


def unlikeness(said: Sequence[Outcome], limit: float | None) -> bytes | None:
    """How unlike the training data each set's samples are, against the limit."""
    sets: dict[str, list[float]] = {}
    for one in said:
        if one.unlike is not None:
            sets.setdefault(one.set, []).append(one.unlike)
    if not sets:
        return None
    figure = _figure(5.6, 4.2)
    axes = _axes(figure, 111, "score of the input check (no unit)", "share of samples")
    every = np.concatenate([np.asarray(values) for values in sets.values()])
    most = max(float(every.max()), limit or 0.0)
    edges = np.linspace(min(float(every.min()), most * 0.999), most * 1.02, 41)
    for (title, values), (colour, dash) in zip(sets.items(), _lines(), strict=False):
        count, _ = np.histogram(values, edges)
        label = f"{title} (n = {len(values)})"
        axes.stairs(
            count / len(values), edges, color=colour, linestyle=dash, label=label, linewidth=1.4
        )
    if limit is not None:
        axes.axvline(limit, color="black", linewidth=1.0)
        top = axes.get_ylim()[1]
        axes.text(limit, top, "limit ", ha="right", va="top", fontsize=8)
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return _png(figure)


# --- pictures of patients ----------------------------------------------------------------------


def cases(shown: Sequence[Case], names: Sequence[str]) -> bytes | None:
    """The gallery: truth in full lines, what was said in dashed ones, a colour for each label."""
    if not shown:
        return None
    down = -(-len(shown) // ACROSS)
    figure = _figure(3.1 * min(ACROSS, len(shown)), 3.9 * down)
    for i, one in enumerate(shown):
        axes = figure.add_subplot(down, min(ACROSS, len(shown)), i + 1)
        axes.imshow(one.picture, cmap="gray", vmin=0, vmax=1, aspect=one.aspect)
        for masks, dash in ((one.true, "-"), (one.found, "--")):
            for mask, colour in zip(masks, cycle(COLOURS[1:]), strict=False):
                if mask.any() and not mask.all():
                    axes.contour(mask, [0.5], colors=[colour], linestyles=dash, linewidths=1.6)
        for boxes, dash in ((one.true_boxes, "-"), (one.found_boxes, "--")):
            for box in boxes:
                _draw(axes, box, dash)
        axes.set_title(_wrapped(one.caption), fontsize=7.5, loc="left")
        axes.set_axis_off()
    if any(one.true or one.found or one.true_boxes for one in shown):
        _key(figure, names)
    return _png(figure)


def _draw(axes: Any, box: Sequence[float], dash: str) -> None:
    from matplotlib.patches import Rectangle

    kind, left, top, right, bottom = box[:5]
    colour = COLOURS[1:][int(kind) % (len(COLOURS) - 1)]
    corner = (left - 0.5, top - 0.5)  # edges count from the outer one, imshow from centres
    axes.add_patch(
        Rectangle(
            corner, right - left, bottom - top, fill=False, color=colour, linestyle=dash, lw=1.6
        )
    )
    if len(box) > 5:
        axes.text(left, bottom, f"{box[5]:.2f}", color=colour, fontsize=7, va="top")


def _key(figure: Figure, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=colour, label=name)
        for name, colour in zip(names, cycle(COLOURS[1:]), strict=False)
    ]
    lines.append(Line2D([], [], color="black", linestyle="-", label="true"))
    lines.append(Line2D([], [], color="black", linestyle="--", label="said"))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8, frameon=False
    )


def _wrapped(text: str, width: int = 44) -> str:
    import textwrap

    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width))
