"""Owns the report that a person reads: one HTML file, and the card's table in Markdown.

The page opens without a network and without scripts: plots are in it. It is made of what a run
folder holds and can be made again. Without its gallery it shows no picture and names no sample,
and may stand where data may not. Refuses to work out any figure.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from training.gallery import Case
from training.metrics import Scheme, scheme_of
from training.outcomes import Outcome, read

PLOTS, GALLERY = "plots", "worst cases"
FOLDS, LEAKS = "cross_validation.csv", "leaks.json"


def write(
    document: Mapping[str, Any],
    said: Sequence[Outcome],
    failures: Sequence[Case],
    run: Path,
    target: Path | None = None,
    *,
    gallery: bool = True,
) -> None:
    """The report of an evaluated run; its plots are kept as PNG in its folder.

    Args:
        document: what ``evaluation.json`` holds.
        said: outcomes of its sets, and of the folds where it tells of a cross-validation.
        failures: worst cases with their pictures; of a set without any those of an earlier report.
        run: the run folder; its recipe, environment, ``metrics.csv`` and ``leaks.json`` are shown
            where they are there.
        target: the HTML file; ``report.html`` of the run folder if None.
        gallery: show pictures of patients, and name samples.
    """
    from training import plots

    of = scheme_of(document)
    folder = run / PLOTS
    folder.mkdir(exist_ok=True)
    by_set: dict[str, dict[str, bytes]] = {}
    pictures: dict[str, bytes] = {}
    for title, measured in document["sets"].items():
        drawn = by_set[title] = _drawn([one for one in said if _belongs(one, title)], measured, of)
        for name, png in drawn.items():
            (folder / f"{_plain(title)} {name}.png").write_bytes(png)
        path = folder / f"{_plain(title)} {GALLERY}.png"
        cases = plots.cases([case for case in failures if case.set == title], of.names)
        if cases:
            path.write_bytes(cases)
        if gallery and path.is_file():
            pictures[title] = path.read_bytes()
    run_plots = _of_run(run, document, said)
    for name, png in run_plots.items():
        (folder / f"{name}.png").write_bytes(png)
    html = render(
        document,
        by_set,
        run_plots,
        gallery=pictures,
        recipe=_text(run / "recipe.toml"),
        environment=_json(run / "environment.json") or [],
        leaks=_json(run / LEAKS),
        names=gallery,
    )
    (target or run / "report.html").write_text(html)


def again(run: Path, target: Path, *, gallery: bool = False) -> None:
    """The report once more, of what the run folder holds: for places where no data may stand."""
    document = json.loads((run / "evaluation.json").read_text())
    tables = [path for path in (run / "predictions.csv", run / FOLDS) if path.is_file()]
    said = [one for path in tables for one in read(path)]
    write(document, said, (), run, target, gallery=gallery)


def render(
    document: Mapping[str, Any],
    plots: Mapping[str, Mapping[str, bytes]],
    run_plots: Mapping[str, bytes],
    *,
    gallery: Mapping[str, bytes],
    recipe: str = "",
    environment: Sequence[Mapping[str, Any]] = (),
    leaks: Mapping[str, Any] | None = None,
    names: bool = True,
) -> str:
    """The page.

    Args:
        document: what ``evaluation.json`` holds.
        plots: PNGs by set and title.
        run_plots: PNGs of the whole run by title.
        gallery: PNG of the worst cases by set; empty: the page shows no picture of a patient.
        recipe: the recipe's text.
        environment: what the run ran on, in order.
        leaks: what ``training.leaks.report`` tells of samples that look the same; None: nobody
            looked.
        names: samples may be named.
    """
    import jinja2

    engine = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    engine.filters["figure"] = figure
    engine.filters["data"] = _data
    template = engine.from_string(files("training").joinpath("templates/report.html").read_text())
    return template.render(
        d=document,
        plots=plots,
        run_plots=run_plots,
        gallery=gallery,
        recipe=recipe,
        environment=environment,
        leaks=leaks,
        names=names,
    )


def figure(told: Mapping[str, Any] | None) -> str:
    """A figure with its interval in words: ``0.943 (0.921 to 0.962)``, or why there is none."""
    if told is None:
        return "–"
    if "value" not in told:
        return f"not told: {told['absent']}"
    if "interval_95" in told:
        low, high = told["interval_95"]
        return f"{told['value']:.3f} ({low:.3f} to {high:.3f})"
    why = f" (no interval: {told['no_interval']})" if "no_interval" in told else ""
    return f"{told['value']:.3f}{why}"


def card_table(evaluation: Mapping[str, Any]) -> str:
    """What a model card says of quality, in Markdown.

    Args:
        evaluation: what ``evaluation.json`` holds.
    """
    parts = [f"Weights {evaluation['weights']}. Intervals: {evaluation['interval']}."]
    if not evaluation["sets"]:
        parts.append("Nothing was measured: the recipe holds nobody out and has no further set.")
    for title, told in evaluation["sets"].items():
        drawn = ", drawn by us, no patients" if told["generated"] == told["samples"] else ""
        said = f"{title[:1].upper()}{title[1:]}: {_many(told['samples'], 'sample')} of "
        said += f"{_many(told['groups'], 'group')}{drawn}."
        if told["refused"]:
            said += f" The service would refuse {told['refused']}; figures are of all."
        rows = ["| | value | 95% interval |", "|---|---|---|"]
        rows += [_card_row(name, one) for name, one in told["figures"].items()]
        for label, table in told["classes"].items():
            rows += [
                _card_row(f"{label}: {name}", one)
                for name, one in table.items()
                if name in _CARD_OF_CLASS
            ]
        parts += [said, "\n".join(rows)]
        if "standard_deviation" in told.get("folds", {}):
            folds = told["folds"]
            low, high = folds["range"]
            parts.append(
                f"{folds['figure']} of single folds: {low:.3f} to {high:.3f}, standard deviation "
                f"{folds['standard_deviation']:.3f}."
            )
    if "decisions" in evaluation:  # folds decide each for themselves
        parts.append(_decided(evaluation["decisions"]))
    return "\n\n".join(parts)


_CARD_OF_CLASS = ("AUC", "Sensitivity", "Specificity", "Dice", "HD95 (mm)", "HD95 (px)", "mAP50")


def _card_row(name: str, told: Mapping[str, Any]) -> str:
    if "value" not in told:
        return f"| {name} | – | {told['absent']} |"
    low_high = told.get("interval_95")
    interval = told.get("no_interval", "–")
    if low_high:
        interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}"
    return f"| {name} | {told['value']:.3f} | {interval} |"


def _decided(decisions: Mapping[str, Any]) -> str:
    limits = ", ".join(f"{name} {value:.3g}" for name, value in decisions["thresholds"].items())
    how = decisions["how"]
    said = f"Thresholds ({how.get('thresholds', 'by the recipe')}): {limits}."
    if decisions["temperature"] != 1:
        said += f" Temperature {decisions['temperature']:.3g} ({how.get('temperature', '')})."
    if decisions["input_check"] is not None:
        said += (
            f" Input check: a score over {decisions['input_check']:.4g} is not analysed "
            f"({how.get('input check', '')})."
        )
    return said


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


# --- what the run folder gives -----------------------------------------------------------------


def _drawn(said: Sequence[Outcome], measured: Mapping[str, Any], of: Scheme) -> dict[str, bytes]:
    """A set's plots."""
    from training import plots

    drawn = plots.of_set(said, of) if said else {}
    for name in dict.fromkeys([of.headline, "Sensitivity"]):
        if png := plots.forest(measured, name):
            drawn[f"Subgroups, {name}"] = png
    return drawn


def _belongs(one: Outcome, title: str) -> bool:
    """Whether it was measured in this set; those of folds in their cross-validation."""
    if one.fold is not None:
        return title.startswith("cross-validation") and one.set == "test"
    return one.set == title


def _of_run(run: Path, document: Mapping[str, Any], said: Sequence[Outcome]) -> dict[str, bytes]:
    from training import plots

    found: dict[str, bytes | None] = {}
    curve = run / "metrics.csv"
    if curve.is_file():
        with curve.open(newline="") as file:
            found["Learning curve"] = plots.learning_curve(list(csv.DictReader(file)))
    alone = [one for one in said if one.fold is None]
    limit = document.get("decisions", {}).get("input_check")
    found["Input check"] = plots.unlikeness(alone, limit)
    return {title: png for title, png in found.items() if png is not None}


def _plain(title: str) -> str:
    """A title as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in " -," else "_" for letter in title)[:80]


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
