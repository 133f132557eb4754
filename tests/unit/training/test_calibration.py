"""What validation data decide, on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.unit.training import said
from training.calibration import (
    TEMPERATURES,
    Decisions,
    box_threshold,
    limit,
    temperature,
    threshold,
)
from training.metrics import statistics
from training.outcomes import tempered


def overconfident(count=2000, times=3.0, seed=0):
    """Truth drawn at a probability, and the probability of a network that is too sure of it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, count)
    truth = (rng.uniform(size=count) < said.sigmoid(logits)).astype(int)
    return truth, said.sigmoid(times * logits)


def ece(truth, p):
    outcomes = said.binary(truth, p)
    return statistics(outcomes, said.BINARY)[0]["ECE"].draw(np.ones((1, len(truth))))[0]


def frames(p):
    return list(np.asarray(p).reshape(len(p), 1, -1))


def test_the_temperature_is_how_many_times_too_sure_it_was():
    truth, p = overconfident()
    assert temperature(frames(p), truth[:, None], False) == pytest.approx(3, rel=0.1)


def test_calibration_lowers_the_error_on_data_that_it_did_not_see():
    truth, p = overconfident(seed=1)
    found = temperature(frames(p), truth[:, None], False)
    truth, p = overconfident(seed=2)
    after = tempered(p[:, None], found, False)[:, 0]
    assert ece(truth, after) < 0.4 * ece(truth, p)


def test_exclusive_classes_have_their_temperature_too():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1.5, (2000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.eye(3)[[rng.choice(3, p=row) for row in p]]
    sure = tempered(p, 1 / 2.0, True)
    assert sure.sum(1) == pytest.approx(np.ones(2000))
    assert temperature(frames(sure), truth, True) == pytest.approx(2, rel=0.1)


def test_the_frames_of_a_stack_speak_together():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1.5, (1500, 3, 1))
    said_together = said.sigmoid(logits).max(1)
    truth = (rng.uniform(size=said_together.shape) < said_together).astype(int)
    sure = list(said.sigmoid(2 * logits))
    assert temperature(sure, truth, False, "max") == pytest.approx(2, rel=0.15)


def test_a_temperature_keeps_the_order_and_turns_back():
    p = np.linspace(0.01, 0.99, 50)[:, None]
    soft = tempered(p, 3.0, False)
    assert (np.diff(soft[:, 0]) > 0).all()
    assert tempered(soft, 1 / 3.0, False) == pytest.approx(p)


def test_one_answer_says_nothing_of_temperature():
    assert temperature(frames(np.array([0.2, 0.9])), np.ones((2, 1)), False) == 1
    assert temperature([], np.zeros((0, 1)), False) == 1


def test_few_samples_that_are_all_right_do_not_make_it_sure():
    p = np.array([0.1, 0.2, 0.8, 0.9])
    found = temperature(frames(p), np.array([0, 0, 1, 1])[:, None], False)
    assert found == pytest.approx(TEMPERATURES[0], rel=0.01)


# --- thresholds --------------------------------------------------------------------------------

TRUTH = np.array([0, 0, 0, 1, 0, 1, 1, 1])
SCORE = np.array([0.1, 0.2, 0.3, 0.35, 0.6, 0.7, 0.8, 0.9])


def test_the_rule_of_youden_parts_best():
    # Above 0.6: 3 of 4 and 4 of 4, together 1.75; above 0.3: 4 of 4 and 3 of 4, the same.
    assert threshold("youden", TRUTH, SCORE, 0.5) == pytest.approx(0.65)


def quality(rule, y, score, at):
    positive = score >= at
    if rule == "youden":
        return sk.recall_score(y, positive) + sk.recall_score(y, positive, pos_label=0)
    return {"accuracy": sk.accuracy_score, "f1": sk.f1_score}[rule](y, positive)


@pytest.mark.parametrize("rule", ["youden", "accuracy", "f1"])
def test_no_other_threshold_is_better_by_its_rule(rule):
    rng = np.random.default_rng(8)
    y = rng.integers(0, 2, 70)
    score = np.clip(0.2 * y + rng.uniform(0, 0.8, 70), 0, 1).round(2)
    found = threshold(rule, y, score, 0.5)
    best = max(quality(rule, y, score, at) for at in np.linspace(0.005, 0.995, 100))
    assert quality(rule, y, score, found) == pytest.approx(best)


def test_a_wanted_sensitivity_is_reached_by_the_highest_threshold():
    found = threshold("sensitivity:0.75", TRUTH, SCORE, 0.5)
    assert (SCORE[TRUTH == 1] >= found).mean() == 0.75
    assert 0.6 < found <= 0.7
    assert threshold("sensitivity:0.99", TRUTH, SCORE, 0.5) < 0.35


def test_a_wanted_specificity_is_reached_by_the_lowest_threshold():
    found = threshold("specificity:0.75", TRUTH, SCORE, 0.5)
    assert (SCORE[TRUTH == 0] < found).mean() == 0.75
    assert 0.3 < found <= 0.35


def test_fixed_and_one_class_leave_the_labels_own():
    assert threshold("fixed", TRUTH, SCORE, 0.42) == 0.42
    assert threshold("youden", np.ones(8), SCORE, 0.42) == 0.42


def test_a_threshold_is_never_0_or_1():
    assert 0 < threshold("sensitivity:0.99", np.array([1, 0]), np.array([0.0, 1.0]), 0.5) < 1
    assert 0 < threshold("specificity:0.99", np.array([1, 0]), np.array([0.0, 1.0]), 0.5) < 1


def test_boxes_are_cut_where_f1_is_best():
    matched = np.array([True, True, False, True, False, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2])
    # From 0.6 on: 3 right, 1 wrong, 4 there: F1 = 6 / 8; from 0.8 on: 4 / 6.
    assert box_threshold("youden", matched, score, 4, 0.5) == pytest.approx(0.45)
    assert box_threshold("sensitivity:0.5", matched, score, 4, 0.5) == pytest.approx(0.75)
    assert box_threshold("fixed", matched, score, 4, 0.42) == 0.42
    assert box_threshold("f1", ~matched & False, score, 4, 0.42) == 0.42


# --- the input check ---------------------------------------------------------------------------


def test_enough_validation_data_have_the_quantile_themselves():
    scores = np.linspace(0, 1, 1000)
    assert limit(scores / 10, scores, 0.99) == pytest.approx(0.99, abs=0.005)


def test_few_validation_data_let_one_more_of_their_kind_pass():
    rng = np.random.default_rng(0)
    passed = []
    for _ in range(300):
        scores = rng.normal(1, 0.3, 13)
        highest = limit(np.array([0.1]), scores[:12], 0.99)
        passed.append(scores[12] <= highest)
        assert highest >= scores[:12].max()
    assert np.mean(passed) > 0.97


def test_the_limit_lies_over_the_training_data():
    assert limit(np.full(50, 2.0), np.full(200, 1.0), 0.99) == pytest.approx(2.1)


def test_decisions_come_back_from_their_file(tmp_path):
    written = Decisions(1.3, {"Pneumonia": 0.4}, 2.5, {"temperature": "so"})
    written.write(tmp_path / "decisions.json")
    assert Decisions.read(tmp_path / "decisions.json") == written
