"""Owns the figures: what is told of outcomes.

Refuses to know thresholds, pictures and files. Figures are those of scikit-learn and pycocotools.
What is worked out on drawn sets, thousands at once, those libraries do not offer: it is written
here with weights, and tests hold both ways together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.manifest import Task
from training.bootstrap import Figure, Statistic, divided, estimate, mean_of, point, ratio
from training.boxes import Boxes, Matches
from training.names import channels, grades
from training.outcomes import UNION, Floats, Outcome
from training.recipe import Bundle
from training.subgroups import classed, natural

BINS = 15  # of a calibration error, equally wide (Guo et al. 2017)
MISSED = "Masks on one side only"
SUBGROUP = 10  # samples that a subgroup needs
HEADLINE: dict[str, str] = {
    "classification": "AUC",
    "grading": "Quadratic weighted kappa",
    "segmentation": "Dice",
    "detection": "mAP50",
}
"""The one figure by which a task is told and compared."""

DEFINITIONS: dict[str, str] = {
    "AUC": "Area under the ROC curve; of several classes the mean of each against the rest",
    "Average precision": "Area under the precision-recall curve, no interpolation",
    "Accuracy": "Share of right verdicts; of grades: exactly right",
    "Balanced accuracy": "Mean of the classes' sensitivities",
    "Sensitivity": "Share of the positive that is called so, at the threshold; of objects: found "
    "at IoU 0.5",
    "Specificity": "Share of the negative that is called so, at the threshold",
    "PPV": "Share of positive calls that are right, at this set's prevalence",
    "NPV": "Share of negative calls that are right, at this set's prevalence",
    "Brier": "Mean squared error of the probabilities; summed over exclusive classes",
    "ECE": "Expected calibration error, 15 bins of equal width, after temperature "
    "scaling; chance alone lifts it where samples are few, and more so on the drawn sets",
    "ECE uncalibrated": "The same before temperature scaling",
    "Quadratic weighted kappa": "Cohen's kappa of grades, disagreement weighted by its square",
    "Mean absolute error": "Grades between verdict and truth",
    "Dice": "Overlap of the cleaned masks on the input's grid; mean of the labels",
    "Dice, all labels as one": "The same of all masks put together",
    "Dice, worst": "The lowest of any sample",
    "HD95 (mm)": "95th percentile Hausdorff distance between surfaces, the larger direction",
    "HD95 (px)": "The same of samples without a spacing that can be trusted, in pixels",
    MISSED: "Of masks that are true or said, the share that is not both; these have no HD95",
    "mAP": "COCO's average precision, mean of IoU 0.50 to 0.95 and of kinds",
    "mAP50": "COCO's average precision at IoU 0.50, mean of kinds",
    "False positives per sample": "Boxes at the threshold that lie on nothing",
    "Mean IoU of matches": "Of boxes at the threshold with the object that they found",
}


@dataclass(frozen=True)
class Scheme:
    """What outcomes of one model are about.

    Attributes:
        task: of the model.
        names: classes, grades from the lowest, or kinds of object, by channel; labels.
        exclusive: classes exclude each other.
        present_from: grading: the finding is present from this grade.
    """

    task: Task
    names: tuple[str, ...]
    exclusive: bool = False
    present_from: int = 1

    @property
    def headline(self) -> str:
        """The figure that the task is told by."""
        return HEADLINE[self.task]


def scheme_of(document: Mapping[str, Any]) -> Scheme:
    """Of ``evaluation.json``."""
    return Scheme(**{**document["scheme"], "names": tuple(document["scheme"]["names"])})


def scheme(bundle: Bundle) -> Scheme:
    """Of a recipe's bundle."""
    if bundle.grading:
        return Scheme("grading", grades(bundle), False, bundle.grading.present_from)
    exclusive = bundle.task == "classification" and bundle.activation == "softmax"
    # Of a segmentation what is labelled is measured; its background has no label.
    labelled = tuple(label.label for label in bundle.labels)
    return Scheme(bundle.task, labelled or channels(bundle), exclusive)


# --- classes -----------------------------------------------------------------------------------


def _steps(y: NDArray[np.bool_], score: Floats, w: Floats) -> tuple[Floats, Floats]:
    """True and false positives ``(sets, distinct scores)``, from the highest score down."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    ranked = w[:, order]
    return (
        np.cumsum(ranked * y[order], 1)[:, ends],
        np.cumsum(ranked * ~y[order], 1)[:, ends],
    )


def _auc_of(y: NDArray[np.bool_], score: Floats) -> Callable[[Floats], Floats]:
    def draw(w: Floats) -> Floats:
        tp, fp = _steps(y, score, w)
        before = np.pad(tp, ((0, 0), (1, 0)))[:, :-1]
        area = (np.diff(fp, prepend=0) * (tp + before) / 2).sum(1)
        return divided(area, tp[:, -1] * fp[:, -1])

    return draw


def _precision_of(y: NDArray[np.bool_], score: Floats) -> Callable[[Floats], Floats]:
    def draw(w: Floats) -> Floats:
        tp, fp = _steps(y, score, w)
        precision = np.nan_to_num(divided(tp, tp + fp))
        return divided((np.diff(tp, prepend=0) * precision).sum(1), tp[:, -1])

    return draw


def _ece_of(hit: NDArray[Any], sure: Floats) -> Callable[[Floats], Floats]:
    """Expected calibration error of probabilities ``sure`` that ``hit`` comes true."""
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = (np.asarray(hit, float) - sure)[:, None] * np.eye(BINS)[bins]
    return lambda w: np.asarray(divided(np.abs(w @ gaps).sum(1), w.sum(1)))


def _one_class(y: NDArray[np.bool_], name: str) -> str:
    if not len(y):
        return "no sample"
    if y.all():
        return f"all samples of this set are {name!r}"
    return "" if y.any() else f"no sample of this set is {name!r}"


def _binary(y: NDArray[np.bool_], p: Floats, said: NDArray[np.bool_], name: str) -> dict[str, Any]:
    """One class against the rest."""
    from sklearn import metrics

    why = _one_class(y, name)
    sensitivity, specificity = ratio(y & said, y), ratio(~y & ~said, ~y)
    return {
        "AUC": Statistic(_auc_of(y, p), None if why else float(metrics.roc_auc_score(y, p)), why),
        "Average precision": Statistic(
            _precision_of(y, p), None if why else float(metrics.average_precision_score(y, p)), why
        ),
        "Accuracy": Statistic(ratio(y == said, np.ones(len(y)))),
        "Balanced accuracy": Statistic(
            mean_of([sensitivity, specificity]),
            None if why else float(metrics.balanced_accuracy_score(y, said)),
            why,
        ),
        "Sensitivity": Statistic(sensitivity, None, "" if y.any() else why),
        "Specificity": Statistic(specificity, None, "" if (~y).any() else why),
        "PPV": Statistic(ratio(y & said, said), None, "" if said.any() else "no positive call"),
        "NPV": Statistic(
            ratio(~y & ~said, ~said), None, "" if not said.all() else "no negative call"
        ),
    }


def _classification(outcomes: Sequence[Outcome], of: Scheme) -> _Table:
    from sklearn import metrics

    y = _column(outcomes, "truth", of.names) > 0
    p = _column(outcomes, "output", of.names)
    before = _column(outcomes, "uncalibrated", of.names)
    said = _column(outcomes, "verdict", of.names) > 0
    single = [_binary(y[:, i], p[:, i], said[:, i], n) for i, n in enumerate(of.names)]
    brier = ((p - y) ** 2).sum(1) / (1 if of.exclusive else len(of.names))
    calibration = {
        "Brier": Statistic(ratio(brier, np.ones(len(y)))),
        "ECE": _calibration_error(y, p, of.exclusive),
        "ECE uncalibrated": _calibration_error(y, before, of.exclusive),
    }
    if len(of.names) == 1:
        return {**single[0], **calibration}, {}
    overall = {
        name: _averaged([one[name] for one in single], of.names)
        for name in ("AUC", "Average precision")
    }
    if of.exclusive:
        right = (y & said).any(1)
        overall["Accuracy"] = Statistic(
            ratio(right, np.ones(len(y))),
            float(metrics.accuracy_score(y.argmax(1), said.argmax(1))) if len(y) else None,
        )
        overall["Balanced accuracy"] = _averaged([one["Sensitivity"] for one in single], of.names)
    else:
        for name in ("Accuracy", "Balanced accuracy"):
            overall[name] = _averaged([one[name] for one in single], of.names)
    return overall | calibration, dict(zip(of.names, single, strict=True))


def _averaged(parts: Sequence[Statistic], names: Sequence[str]) -> Statistic:
    """The mean of classes, where each has it."""
    missing = [f"{n}: {part.why}" for n, part in zip(names, parts, strict=True) if part.why]
    if missing:
        return Statistic(None, None, missing[0])
    values = [part.value for part in parts]
    known = [value for value in values if value is not None]
    value = float(np.mean(known)) if len(known) == len(values) else None
    return Statistic(mean_of([part.draw for part in parts if part.draw]), value)


def _calibration_error(y: NDArray[np.bool_], p: Floats, exclusive: bool) -> Statistic:
    """Of the most probable class where classes exclude each other, else the mean of classes."""
    if exclusive:
        return Statistic(_ece_of(y[np.arange(len(y)), p.argmax(1)], p.max(1)))
    return Statistic(mean_of([_ece_of(y[:, i], p[:, i]) for i in range(y.shape[1])]))


def _column(outcomes: Sequence[Outcome], what: str, names: Sequence[str]) -> Floats:
    """``(samples, names)``."""
    rows = [[getattr(outcome, what)[name] for name in names] for outcome in outcomes]
    return np.array(rows, float).reshape(len(outcomes), len(names))


# --- grades ------------------------------------------------------------------------------------


def reached(of: Scheme) -> tuple[str, ...]:
    """The names of a grading's outputs."""
    return tuple(f">= {name}" for name in of.names[1:])


def _grading(outcomes: Sequence[Outcome], of: Scheme) -> _Table:
    from sklearn import metrics

    grade = _column(outcomes, "truth", ["grade"])[:, 0].astype(int)
    said = _column(outcomes, "verdict", ["grade"])[:, 0].astype(int)
    p = _column(outcomes, "output", reached(of))
    before = _column(outcomes, "uncalibrated", reached(of))
    above = grade[:, None] >= np.arange(1, len(of.names))
    k = of.present_from
    name = f"at least {of.names[k]}"
    present = _binary(grade >= k, p[:, k - 1], said >= k, name)
    alike = len(set(grade.tolist()) | set(said.tolist())) < 2
    weights = np.ones(len(grade))
    overall = {
        "Quadratic weighted kappa": Statistic(
            _kappa_of(grade, said, len(of.names)),
            None if alike else float(metrics.cohen_kappa_score(grade, said, weights="quadratic")),
            "one grade only" if alike else "",
        ),
        "Mean absolute error": Statistic(ratio(np.abs(grade - said), weights)),
        "Accuracy": Statistic(ratio(grade == said, weights)),
        "ECE": _calibration_error(above, p, False),
        "ECE uncalibrated": _calibration_error(above, before, False),
    }
    steps = {
        step: _binary(above[:, i], p[:, i], said > i, step) for i, step in enumerate(reached(of))
    }
    told = {n: present[n] for n in ("AUC", "Sensitivity", "Specificity")}
    return {**overall, **told}, steps


def _kappa_of(truth: NDArray[Any], said: NDArray[Any], grades: int) -> Callable[[Floats], Floats]:
    pairs = np.eye(grades * grades)[truth * grades + said]
    apart = (np.arange(grades)[:, None] - np.arange(grades)) ** 2

    def draw(w: Floats) -> Floats:
        table = (w @ pairs).reshape(-1, grades, grades)
        chance = table.sum(2)[:, :, None] * table.sum(1)[:, None]
        by_chance = divided((apart * chance).sum((1, 2)), table.sum((1, 2)))
        return np.asarray(1 - divided((apart * table).sum((1, 2)), by_chance))

    return draw


# --- masks -------------------------------------------------------------------------------------


def _segmentation(outcomes: Sequence[Outcome], of: Scheme) -> _Table:
    each: dict[str, Any] = {}
    for name in of.names:
        overlap = _told(outcomes, f"Dice {name}")
        each[name] = {
            "Dice": _mean_of(overlap),
            "Dice, worst": Statistic(None, float(overlap.min())),
            **_distances(outcomes, [name]),
        }
    mean = np.mean([_told(outcomes, f"Dice {name}") for name in of.names], axis=0)
    overall = {"Dice": _mean_of(mean)}
    if all(f"Dice {UNION}" in outcome.output for outcome in outcomes):
        overall["Dice, all labels as one"] = _mean_of(_told(outcomes, f"Dice {UNION}"))
    overall["Dice, worst"] = Statistic(None, float(mean.min()))
    return overall | _distances(outcomes, of.names), each if len(of.names) > 1 else {}


def _distances(outcomes: Sequence[Outcome], names: Sequence[str]) -> dict[str, Statistic]:
    """Mean distance by unit; samples where a mask is missing have none and are counted."""
    told = {}
    for unit in ("mm", "px"):
        keys = [f"HD95 {unit} {name}" for name in names]
        if not any(key in outcome.output for outcome in outcomes for key in keys):
            continue
        found = np.array([_told(outcomes, key) for key in keys])
        known = np.isfinite(found)
        why = "" if known.any() else "in no sample are both masks there"
        told[f"HD95 ({unit})"] = Statistic(
            ratio(np.nan_to_num(found).sum(0), known.sum(0)), None, why
        )
    keys = [f"HD95 {unit} {name}" for unit in ("mm", "px") for name in names]
    asked = np.array([sum(key in o.output for key in keys) for o in outcomes])
    missed = np.array([sum(o.output.get(key, 0.0) is None for key in keys) for o in outcomes])
    return told | ({MISSED: Statistic(ratio(missed, asked))} if told else {})


def _told(outcomes: Sequence[Outcome], key: str) -> Floats:
    """``(samples,)``, NaN where it is not told."""
    return np.array([outcome.output.get(key) for outcome in outcomes], dtype=float)


def _mean_of(values: Floats) -> Statistic:
    return Statistic(ratio(values, np.ones(len(values))))


# --- boxes -------------------------------------------------------------------------------------


def _detection(outcomes: Sequence[Outcome], of: Scheme) -> _Table:
    matches = Matches(outcomes, len(of.names))
    each = {
        name: _of_boxes(matches, [matches.boxes[kind]], kind) for kind, name in enumerate(of.names)
    }
    overall = _of_boxes(matches, matches.boxes, None)
    return overall, each if len(of.names) > 1 else {}


def _of_boxes(matches: Matches, parts: Sequence[Boxes], kind: int | None) -> dict[str, Any]:
    objects = np.sum([part.objects for part in parts], axis=0)
    right = np.sum([part.of_samples(part.matched[0]) for part in parts], axis=0)
    wrong = np.sum([part.of_samples(~part.matched[0]) for part in parts], axis=0)
    overlap = np.sum([part.of_samples(part.iou) for part in parts], axis=0)
    there = [part for part in parts if part.objects.any()]
    why = "" if there else "no object in this set"
    return {
        "mAP50": Statistic(
            _known_mean([part.precision(True) for part in there]),
            matches.average_precision(True, kind),
            why,
        ),
        "mAP": Statistic(
            _known_mean([part.precision(False) for part in there]),
            matches.average_precision(False, kind),
            why,
        ),
        "Sensitivity": Statistic(ratio(right, objects), None, why),
        "False positives per sample": Statistic(ratio(wrong, np.ones(len(wrong)))),
        "Mean IoU of matches": Statistic(
            ratio(overlap, right), None, "" if right.any() else "no object was found"
        ),
    }


def _known_mean(draws: Sequence[Callable[[Floats], Floats]]) -> Callable[[Floats], Floats]:
    """The mean of kinds that a drawn set holds."""

    def draw(w: Floats) -> Floats:
        found = np.array([one(w) for one in draws])
        known = np.isfinite(found)
        return divided(np.nan_to_num(found).sum(0), known.sum(0).astype(float))

    return draw


# --- of a set ----------------------------------------------------------------------------------

_Table = tuple[dict[str, Statistic], dict[str, dict[str, Statistic]]]
_TASKS: dict[str, Callable[[Sequence[Outcome], Scheme], _Table]] = {
    "classification": _classification,
    "grading": _grading,
    "segmentation": _segmentation,
    "detection": _detection,
}


def statistics(outcomes: Sequence[Outcome], of: Scheme) -> _Table:
    """All figures of a set, and those of each class, step, label or kind where several are."""
    return _TASKS[of.task](outcomes, of)


def measured(
    outcomes: Sequence[Outcome], of: Scheme, draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """A set's part of ``evaluation.json``.

    Returns:
        ``samples``, ``groups``, ``generated``, ``refused`` (how many the service would not
        analyse), ``figures``, ``classes`` and ``subgroups``; of a cross-validation ``folds`` too.
    """
    told: dict[str, Any] = {
        "samples": len(outcomes),
        "groups": len({outcome.group for outcome in outcomes}),
        "generated": sum(outcome.generated for outcome in outcomes),
        "refused": sum(bool(outcome.refused) for outcome in outcomes),
        "licences": _counts([outcome.licence or "not told" for outcome in outcomes]),
    }
    if not outcomes:
        return {**told, "figures": {}, "classes": {}, "subgroups": {}}
    overall, each = statistics(outcomes, of)
    groups = [outcome.group for outcome in outcomes]
    told["figures"] = _estimated(overall, groups, draws, seed)
    told["classes"] = {name: _estimated(table, groups, draws, seed) for name, table in each.items()}
    told["subgroups"] = subgroups(outcomes, of, draws, seed)
    folds = sorted({outcome.fold for outcome in outcomes if outcome.fold is not None})
    if len(folds) > 1:
        told["folds"] = _spread(outcomes, of, folds)
    return told


def _estimated(
    table: Mapping[str, Statistic], groups: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    return {name: estimate(one, groups, draws, seed).document() for name, one in table.items()}


def _spread(outcomes: Sequence[Outcome], of: Scheme, folds: Sequence[int]) -> dict[str, Any]:
    """The headline in each fold alone, and how far folds lie apart."""
    each: dict[str, Any] = {}
    for fold in folds:
        held = [outcome for outcome in outcomes if outcome.fold == fold]
        statistic = statistics(held, of)[0][of.headline]
        value = point(statistic, len(held))
        why = statistic.why or "nothing in this fold that it could be told of"
        told_of = Figure(value) if value is not None else Figure(None, None, why)
        each[str(fold)] = {"samples": len(held), **told_of.document()}
    values = [one["value"] for one in each.values() if "value" in one]
    told: dict[str, Any] = {"figure": of.headline, "each": each}
    if len(values) > 1:
        told["standard_deviation"] = round(float(np.std(values, ddof=1)), 4)
        told["range"] = [min(values), max(values)]
    return told


def _counts(values: Sequence[str]) -> dict[str, int]:
    return {value: values.count(value) for value in sorted(set(values))}


# --- subgroups ---------------------------------------------------------------------------------

SHOWN: dict[str, tuple[str, ...]] = {
    "classification": ("AUC", "Sensitivity", "Specificity", "Accuracy"),
    "grading": ("Quadratic weighted kappa", "Accuracy"),
    "segmentation": ("Dice", "Dice, worst"),
    "detection": ("mAP50", "Sensitivity"),
}


def subgroups(
    outcomes: Sequence[Outcome], of: Scheme, draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Attribute -> value -> its figures; why, where it has too few samples."""
    found: dict[str, dict[str, Any]] = {}
    for attribute in sorted({key for outcome in outcomes for key in outcome.attributes}):
        values = classed(attribute, [o.attributes.get(attribute, "") for o in outcomes])
        if len(set(values)) < 2:
            continue
        found[attribute] = {}
        for value in sorted(set(values), key=natural):
            held = [o for o, mine in zip(outcomes, values, strict=True) if mine == value]
            told: dict[str, Any] = {"samples": len(held)}
            if len(held) < SUBGROUP:
                told["absent"] = f"fewer than {SUBGROUP} samples"
            else:
                table = statistics(held, of)[0]
                shown = {name: table[name] for name in SHOWN[of.task] if name in table}
                told["figures"] = _estimated(shown, [o.group for o in held], draws, seed)
            found[attribute][value or "not told"] = told
    return found
