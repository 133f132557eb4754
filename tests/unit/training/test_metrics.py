"""Figures against scikit-learn, torchmetrics and sums done by hand; intervals against the truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from torchmetrics.classification import BinaryCalibrationError
from torchmetrics.detection import MeanAveragePrecision

from tests.unit.training import said
from tests.unit.training.learning import recipe
from training.bootstrap import Statistic, drawn, estimate, ratio
from training.boxes import Matches
from training.metrics import MISSED, Scheme, measured, scheme, statistics, subgroups
from training.recipe import Recipe


def column(outcomes, what):
    return np.array([getattr(one, what)["Pneumonia"] for one in outcomes])


def ones(count):
    return np.ones((1, count))


def tied(count=80, seed=3):
    """Probabilities of one digit, so that many are equal."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    return said.binary(truth, np.clip(0.3 * truth + rng.uniform(0, 0.7, count), 0, 1).round(1))


SKLEARN = {
    "AUC": ("output", sk.roc_auc_score, {}),
    "Average precision": ("output", sk.average_precision_score, {}),
    "Brier": ("output", sk.brier_score_loss, {}),
    "Accuracy": ("verdict", sk.accuracy_score, {}),
    "Balanced accuracy": ("verdict", sk.balanced_accuracy_score, {}),
    "Sensitivity": ("verdict", sk.recall_score, {}),
    "Specificity": ("verdict", sk.recall_score, {"pos_label": 0}),
    "PPV": ("verdict", sk.precision_score, {}),
    "NPV": ("verdict", sk.precision_score, {"pos_label": 0}),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_a_figure_and_its_drawn_sets_are_those_of_sklearn(name):
    outcomes = tied()
    what, theirs, how = SKLEARN[name]
    y, told = column(outcomes, "truth"), column(outcomes, what)
    statistic = statistics(outcomes, said.BINARY)[0][name]
    often = np.random.default_rng(0).integers(0, 4, (5, len(y))).astype(float)
    expected = [theirs(y, told, sample_weight=w, **how) for w in often]
    assert statistic.draw(often) == pytest.approx(expected)
    assert statistic.draw(ones(len(y)))[0] == pytest.approx(theirs(y, told, **how))
    if statistic.value is not None:
        assert statistic.value == pytest.approx(theirs(y, told, **how))


def test_the_calibration_error_is_that_of_torchmetrics():
    outcomes = said.simulated_binary(200)
    y, p = column(outcomes, "truth"), column(outcomes, "output")
    theirs = BinaryCalibrationError(n_bins=15, norm="l1")(torch.tensor(p), torch.tensor(y))
    ours = statistics(outcomes, said.BINARY)[0]["ECE"].draw(ones(200))[0]
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_counts_by_hand():
    outcomes = said.binary([1, 1, 1, 0, 0], [0.9, 0.8, 0.2, 0.6, 0.1])
    found = measured(outcomes, said.BINARY, 100)["figures"]
    assert found["Sensitivity"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["Specificity"]["value"] == 0.5
    assert found["PPV"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["NPV"]["value"] == 0.5
    assert found["Accuracy"]["value"] == 0.6
    assert found["AUC"]["value"] == pytest.approx(5 / 6, abs=1e-6)


def simulated_exclusive(count=150):
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, count)
    logits = rng.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, p


def test_of_exclusive_classes_the_mean_auc_is_sklearns():
    truth, p = simulated_exclusive()
    overall, each = statistics(said.exclusive(truth, p), said.EXCLUSIVE)
    assert overall["AUC"].value == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))
    assert overall["AUC"].draw(ones(150))[0] == pytest.approx(overall["AUC"].value)
    right = p.argmax(1)
    assert overall["Accuracy"].value == pytest.approx(sk.accuracy_score(truth, right))
    balanced = overall["Balanced accuracy"].draw(ones(150))[0]
    assert balanced == pytest.approx(sk.balanced_accuracy_score(truth, right))
    assert list(each) == list(said.EXCLUSIVE.names)


def test_kappa_and_its_drawn_sets_are_sklearns():
    rng = np.random.default_rng(2)
    truth, told = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    told[:40] = truth[:40]
    statistic = statistics(said.grades(truth, told), said.GRADES)[0]["Quadratic weighted kappa"]
    often = rng.integers(0, 3, (4, 60)).astype(float)
    expected = [
        sk.cohen_kappa_score(truth, told, weights="quadratic", sample_weight=w) for w in often
    ]
    assert statistic.value == pytest.approx(sk.cohen_kappa_score(truth, told, weights="quadratic"))
    assert statistic.draw(often) == pytest.approx(expected)


def test_a_grade_is_off_by_so_many_steps():
    found = measured(said.grades([0, 1, 2, 2], [0, 2, 2, 0]), said.GRADES, 100)["figures"]
    assert found["Mean absolute error"]["value"] == 0.75
    assert found["Accuracy"]["value"] == 0.5


# --- boxes -------------------------------------------------------------------------------------


def random_boxes(samples=12):
    rng = np.random.default_rng(7)
    true = [[(0, 10, 10, 40, 60), (1, 60, 12, 95, 58)] for _ in range(samples)]
    found = []
    for there in true:
        near = [
            (k, *(np.array(e) + rng.normal(0, 4, 4)).tolist(), rng.uniform()) for k, *e in there
        ]
        far = [(int(rng.integers(2)), 5.0, 5.0, 30.0, 90.0, float(rng.uniform())) for _ in range(3)]
        found.append(near + far)
    return true, found


def torchmetrics_map(true, found, **how):
    def tensors(boxes, scored):
        told = {
            "boxes": torch.tensor([box[1:5] for box in boxes], dtype=torch.float64),
            "labels": torch.tensor([box[0] for box in boxes]),
        }
        return told | ({"scores": torch.tensor([b[5] for b in boxes])} if scored else {})

    metric = MeanAveragePrecision(**how)
    metric.update([tensors(f, True) for f in found], [tensors(t, False) for t in true])
    return metric.compute()


def test_average_precision_is_that_of_torchmetrics():
    true, found = random_boxes()
    theirs = torchmetrics_map(true, found)
    overall, _ = statistics(said.boxes(true, found), said.BOXES)
    assert 0.2 < overall["mAP50"].value < 0.98
    assert overall["mAP50"].value == pytest.approx(float(theirs["map_50"]), abs=1e-5)
    assert overall["mAP"].value == pytest.approx(float(theirs["map"]), abs=1e-5)


def test_a_drawn_set_has_the_average_precision_of_its_samples_repeated():
    true, found = random_boxes()
    overall, _ = statistics(said.boxes(true, found), said.BOXES)
    often = np.array([2, 0, 1, 1, 3, 1, 0, 1, 1, 0, 1, 1])
    repeated = torchmetrics_map(
        [t for t, n in zip(true, often, strict=True) for _ in range(n)],
        [f for f, n in zip(found, often, strict=True) for _ in range(n)],
    )
    # Of equal scores their order decides in COCO; weighted at once they have none.
    drawn_set = overall["mAP"].draw(often[None].astype(float))[0]
    assert drawn_set == pytest.approx(float(repeated["map"]), abs=0.02)
    assert overall["mAP"].draw(ones(12))[0] == pytest.approx(overall["mAP"].value, abs=1e-6)


def test_perfect_boxes_have_an_average_precision_of_one():
    true = [[(0, 1, 1, 20, 20), (1, 30, 30, 50, 60)], [(0, 5, 5, 15, 25)]]
    found = measured(
        said.boxes(true, [[(*box, 0.9) for box in there] for there in true]), said.BOXES, 100
    )["figures"]
    assert found["mAP"]["value"] == found["mAP50"]["value"] == 1
    assert found["Sensitivity"]["value"] == 1
    assert found["False positives per sample"]["value"] == 0
    assert found["Mean IoU of matches"]["value"] == 1


def test_only_boxes_from_the_threshold_on_are_found_or_false():
    true = [[(0, 0, 0, 10, 10)], [(0, 0, 0, 10, 10)], []]
    found = [
        [(0, 0, 0, 10, 8, 0.9)],
        [(0, 0, 0, 10, 10, 0.4)],
        [(0, 0, 0, 5, 5, 0.8), (1, 0, 0, 5, 5, 0.7)],
    ]
    figures = measured(said.boxes(true, found), said.BOXES, 100)["figures"]
    assert figures["Sensitivity"]["value"] == 0.5
    assert figures["False positives per sample"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["Mean IoU of matches"]["value"] == 0.8


def test_where_no_object_is_there_is_no_average_precision():
    found = measured(said.boxes([[], []], [[], [(0, 1, 1, 9, 9, 0.9)]]), said.BOXES, 100)
    assert found["figures"]["mAP50"] == {"absent": "no object in this set"}
    assert found["figures"]["False positives per sample"]["value"] == 0.5


def test_nothing_found_and_nothing_there_can_be_told():
    found = measured(said.boxes([[], []], [[], []]), said.BOXES, 100)["figures"]
    assert found["False positives per sample"]["value"] == 0


def test_the_same_box_counts_once():
    matches = Matches(
        said.boxes([[(0, 0, 0, 10, 10)]], [[(0, 0, 0, 10, 10, 0.9), (0, 0, 0, 10, 9, 0.8)]]), 1
    )
    assert matches.boxes[0].matched[0].tolist() == [True, False]


# --- masks -------------------------------------------------------------------------------------


def test_dice_is_told_by_label_their_mean_and_the_worst_sample():
    found = measured(said.lungs([(0.9, 0.7), (1.0, 0.8)]), said.LUNGS, 100)
    assert found["figures"]["Dice"]["value"] == pytest.approx(0.85)
    assert found["figures"]["Dice, worst"] == {"value": 0.8}
    assert found["classes"]["Right lung"]["Dice"]["value"] == 0.95


def test_a_missing_mask_has_no_distance_and_is_counted():
    outcomes = said.lungs([(0.9, 0.0), (0.9, 0.9)], [(2.0, None), (4.0, 6.0)], "mm")
    found = measured(outcomes, said.LUNGS, 100)["figures"]
    assert found["HD95 (mm)"]["value"] == 4
    assert found[MISSED]["value"] == 0.25


def test_millimetres_and_pixels_are_not_averaged():
    outcomes = said.lungs([(0.9, 0.9)], [(2.0, 2.0)], "mm")
    outcomes += said.lungs([(0.9, 0.9)], [(8.0, 8.0)], "px")
    found = measured(outcomes, said.LUNGS, 100)["figures"]
    assert found["HD95 (mm)"]["value"] == 2
    assert found["HD95 (px)"]["value"] == 8


# --- what cannot be told -----------------------------------------------------------------------


@pytest.mark.parametrize("answer", [0, 1])
def test_one_class_has_no_auc_and_says_why(answer):
    found = measured(said.binary([answer] * 5, [0.2, 0.4, 0.6, 0.7, 0.1]), said.BINARY, 100)
    assert "Pneumonia" in found["figures"]["AUC"]["absent"]
    json.dumps(found, allow_nan=False)


def test_a_missing_class_takes_the_mean_of_classes_with_it():
    truth, p = simulated_exclusive()
    some = truth != 2
    found = measured(said.exclusive(truth[some], p[some]), said.EXCLUSIVE, 100)
    assert found["figures"]["AUC"]["absent"].startswith("Malignant: ")
    assert "value" in found["classes"]["Benign"]["AUC"]
    json.dumps(found, allow_nan=False)


def test_an_empty_set_has_no_figures():
    found = measured([], said.BINARY, 100)
    assert found["samples"] == 0
    assert found["figures"] == {}


def test_a_figure_of_one_group_has_no_interval():
    outcomes = said.binary([0, 1, 1], [0.1, 0.9, 0.4], groups=["a"] * 3)
    assert measured(outcomes, said.BINARY, 100)["figures"]["AUC"]["no_interval"] == "one group"


def test_where_drawn_sets_mostly_lack_a_class_there_is_no_interval():
    outcomes = said.binary([1, 0, 0], [0.9, 0.1, 0.2])
    told = measured(outcomes, said.BINARY, 200)["figures"]["AUC"]
    assert told == {"value": 1.0, "no_interval": "too few groups"}


# --- intervals ---------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_nineteen_times_of_twenty():
    apart = 1.5
    truth = stats.norm.cdf(apart / np.sqrt(2))
    held = 0
    for seed in range(60):
        outcomes = said.simulated_binary(120, seed, apart)
        statistic = statistics(outcomes, said.BINARY)[0]["AUC"]
        low, high = estimate(statistic, [o.group for o in outcomes], 300, 0).interval
        held += low <= truth <= high
    assert 52 <= held < 60


def test_the_interval_is_wider_when_samples_come_from_few_patients():
    values = np.array([0.6] * 10 + [1.0] * 10)
    mean = Statistic(ratio(values, np.ones(20)))
    many = estimate(mean, [str(i) for i in range(20)], 1000, 0).interval
    few = estimate(mean, ["a"] * 10 + ["b"] * 10, 1000, 0).interval
    assert few == (0.6, 1.0)
    assert 0.6 < many[0] < 0.8 < many[1] < 1.0


def test_groups_are_drawn_whole():
    weights = []

    def look(w):
        weights.append(w)
        return w[:, 0]

    drawn(["a", "b", "a", "c"], 50, 0, look)
    (w,) = weights
    assert (w[:, 0] == w[:, 2]).all()
    assert (w[:, [0, 1, 3]].sum(1) == 3).all()


def test_the_same_seed_draws_the_same():
    outcomes = said.simulated_binary(40)
    assert measured(outcomes, said.BINARY, 100, 1) == measured(outcomes, said.BINARY, 100, 1)
    assert measured(outcomes, said.BINARY, 100, 1) != measured(outcomes, said.BINARY, 100, 2)


# --- subgroups and folds -----------------------------------------------------------------------


def test_a_subgroup_of_few_says_so_and_of_many_has_an_interval():
    attributes = [{"sex": "F" if i < 35 else "M"} for i in range(40)]
    found = subgroups(
        said.simulated_binary(40, attributes=attributes), said.BINARY, draws=200, seed=0
    )
    assert found["sex"]["M"] == {"samples": 5, "absent": "fewer than 10 samples"}
    assert "interval_95" in found["sex"]["F"]["figures"]["AUC"]


def test_a_subgroup_of_one_class_has_no_auc_but_a_sensitivity():
    truth = [1] * 12 + [0, 1] * 10
    attributes = [{"view": "AP" if i < 12 else "PA"} for i in range(32)]
    p = np.random.default_rng(0).uniform(size=32)
    found = subgroups(said.binary(truth, p, attributes=attributes), said.BINARY, 100, 0)
    assert "absent" in found["view"]["AP"]["figures"]["AUC"]
    assert "value" in found["view"]["AP"]["figures"]["Sensitivity"]


def test_ages_fall_into_steps_of_twenty_years():
    attributes = [{"age": f"{7 * (i % 12) + 3:03}Y"} for i in range(60)]
    found = subgroups(said.simulated_binary(60, attributes=attributes), said.BINARY, 100, 0)
    assert list(found["age"]) == [
        "under 20", "20 to 40", "40 to 60", "60 to 80", "80 and more",
    ]  # fmt: skip
    assert sum(told["samples"] for told in found["age"].values()) == 60


def test_an_attribute_that_all_share_makes_no_subgroups():
    outcomes = said.simulated_binary(30, attributes=[{"site": "A"}] * 30)
    assert subgroups(outcomes, said.BINARY, 100, 0) == {}


def test_folds_are_told_together_and_one_by_one():
    outcomes = [
        replace(one, fold=i % 3) for i, one in enumerate(said.simulated_binary(90, apart=1.0))
    ]
    told = measured(outcomes, said.BINARY, 100)
    each = [
        sk.roc_auc_score(
            *(column([o for o in outcomes if o.fold == k], w) for w in ("truth", "output"))
        )
        for k in range(3)
    ]
    values = [told["folds"]["each"][str(k)]["value"] for k in range(3)]
    assert values == pytest.approx(each, abs=1e-6)
    assert told["folds"]["standard_deviation"] == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    assert told["samples"] == 90


def test_a_scheme_knows_its_headline():
    assert Scheme("detection", ("a",)).headline == "mAP50"


def test_a_segmentations_background_has_no_label_and_no_figures():
    keys = recipe("segmentation", classes=3).model_dump()
    keys["bundle"]["labels"] = keys["bundle"]["labels"][1:]
    assert scheme(Recipe.model_validate(keys).bundle).names == ("Kind 1", "Kind 2")
