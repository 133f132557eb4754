"""Decided on validation data, measured through the service's code, at the bundle's precision."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from inference.networks import build
from inference.runner import Runner
from tests.unit.training import learning
from training import outcomes
from training.calibration import Decisions
from training.drafts import FAMILIAR, cast, draft, weights_digest
from training.evaluate import (
    CROSS_VALIDATION,
    evaluate,
    judge,
    with_cross_validation,
)
from training.recipe import Recipe
from training.samples import Truth

TASKS = ["classification", "grading", "segmentation", "detection"]


def recipe(task, **evaluation) -> Recipe:
    """Nothing is learnt here: a network at random is measured as well as any other."""
    how = {"backbone": "resnet18", "network": "retinanet"} if task == "detection" else {}
    keys = learning.recipe(task, activation="sigmoid", **how).model_dump()
    keys["evaluation"] |= {"bootstrap": 100, **evaluation}
    return Recipe.model_validate(keys)


def weights(plan, seed=0):
    torch.manual_seed(seed)
    network = build(plan.bundle.architecture)
    for name, tensor in network.named_parameters():
        if name.endswith("cls_logits.bias") or "classification_head" in name:
            tensor.data += 0.05  # else no box of a network at random has a score to speak of
    return network.state_dict()


def parts(task, count=8, test=6):
    return {
        "train": learning.samples(task, count),
        "val": learning.samples(task, count, start=100),
        "test": learning.samples(task, test, start=200),
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_decided_measured_and_written(task, tmp_path):
    plan = recipe(task)
    learnt = weights(plan)
    found = evaluate(
        plan, learnt, parts(task), {"others": learning.samples(task, 4, start=300)}, tmp_path
    )
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document == json.loads(json.dumps(found.document, allow_nan=False))
    assert {title: told["samples"] for title, told in document["sets"].items()} == {
        "test": 6,
        "others": 4,
    }
    assert document["headline"] in document["sets"]["test"]["figures"]
    assert set(document["definitions"]) >= set(document["sets"]["test"]["figures"])
    assert len(document["sets"]["test"]["rows"]) == 6
    assert outcomes.read(tmp_path / "predictions.csv") == found.outcomes
    assert Decisions.read(tmp_path / "decisions.json") == found.decisions
    assert found.decisions.input_check > 0
    assert (tmp_path / FAMILIAR).is_file()
    assert document["weights_sha256"] == weights_digest(cast(learnt, "float16"))


def turned(samples):
    """The same pictures with the truth of their neighbours."""
    truths = [sample.truth for sample in samples]
    return [replace(s, truth=t) for s, t in zip(samples, truths[1:] + truths[:1], strict=True)]


@pytest.mark.parametrize("task", ["classification", "grading", "detection"])
def test_what_the_test_part_says_decides_nothing(task):
    plan = recipe(task)
    learnt, given = weights(plan), parts(task)
    first = judge(plan, learnt, given, {})
    other = judge(plan, learnt, {**given, "test": turned(given["test"])}, {})
    assert other.decisions == first.decisions
    assert [o.truth for o in other.outcomes] != [o.truth for o in first.outcomes]


def test_what_validation_says_decides():
    plan = recipe("classification")
    learnt, given = weights(plan), parts("classification")
    first = judge(plan, learnt, given, {})
    other = judge(plan, learnt, {**given, "val": turned(given["val"])}, {})
    assert other.decisions != first.decisions


@pytest.mark.parametrize("task", ["classification", "grading", "detection"])
def test_a_verdict_is_that_of_the_service(task):
    plan = recipe(task)
    given = parts(task)
    judged = judge(plan, weights(plan), given, {})
    told = [one for one in judged.outcomes if one.set == "test"]
    predictions = judged.runner.predict([sample.read() for sample in given["test"]])
    for one, prediction in zip(told, predictions, strict=True):
        if task == "classification":
            assert one.verdict == {f.label: int(f.present) for f in prediction.findings}
            assert one.output == pytest.approx(
                {f.label: f.probability for f in prediction.findings}, abs=1e-5
            )
        elif task == "grading":
            (finding,) = prediction.findings
            assert one.verdict == {"grade": int(finding.score)}
            assert one.output[">= Grade 1"] == pytest.approx(finding.probability, abs=1e-5)
        else:
            assert sum(one.verdict["boxes"]) == sum(len(f.boxes) for f in prediction.findings)


def test_who_is_refused_is_who_the_service_does_not_analyse():
    plan = recipe("classification", accepted=0.51)
    given = parts("classification", test=10)
    learnt = weights(plan)
    judged = judge(plan, learnt, given, {})
    middle = float(np.median([one.unlike for one in judged.outcomes if one.set == "test"]))
    decisions = replace(judged.decisions, input_check=middle)
    service = Runner(draft(plan, decisions), cast(learnt, "float16"), "cpu", judged.familiar)
    told = outcomes.look(
        judged.runner, given["test"], "test", familiar=judged.familiar, limit=middle
    )
    refused = [bool(one.refused) for one in told]
    predictions = service.predict([sample.read() for sample in given["test"]])
    assert refused == [prediction.not_analysed is not None for prediction in predictions]
    assert 0 < sum(refused) < 10


def test_figures_are_those_of_the_weights_as_they_are_stored():
    plan = recipe("classification")
    learnt = weights(plan)
    exact = {k: v.half().float() if v.is_floating_point() else v for k, v in learnt.items()}
    given = parts("classification")
    first, second = judge(plan, learnt, given, {}), judge(plan, exact, given, {})
    assert first.outcomes == second.outcomes


def test_what_does_not_fit_half_precision_is_refused():
    with pytest.raises(OverflowError, match="w"):
        cast({"w": torch.tensor([1e6])}, "float16")
    assert cast({"n": torch.tensor(1_000_000)}, "float16")["n"].dtype == torch.int64


def test_without_validation_data_the_labels_own_words_stay():
    plan = recipe("classification")
    judged = judge(plan, weights(plan), {**parts("classification"), "val": []}, {})
    assert judged.decisions.temperature == 1
    assert set(judged.decisions.thresholds.values()) == {0.5}
    assert "no validation data" in judged.decisions.how["thresholds"]
    assert judged.decisions.input_check > 0


def test_before_calibration_is_told_beside_after():
    plan = recipe("classification")
    learnt, given = weights(plan), parts("classification")
    plain = judge(recipe("classification", calibrate=False), learnt, given, {})
    judged = judge(plan, learnt, given, {})
    assert judged.decisions.temperature != 1
    assert plain.decisions.temperature == 1
    for one, other in zip(judged.outcomes, plain.outcomes, strict=True):
        assert one.uncalibrated == pytest.approx(other.output, abs=1e-4)
        assert one.output != pytest.approx(other.output, abs=1e-4)


def test_an_input_check_can_be_left_out(tmp_path):
    plan = recipe("classification", input_check=False)
    (tmp_path / FAMILIAR).write_bytes(b"of an earlier evaluation")
    found = evaluate(plan, weights(plan), parts("classification"), {}, tmp_path)
    assert found.decisions.input_check is None
    assert not (tmp_path / FAMILIAR).exists()
    assert all(one.unlike is None and not one.refused for one in found.outcomes)


def test_drawn_pictures_that_were_learnt_from_become_familiar():
    plan = recipe("classification")
    learnt, given = weights(plan), parts("classification")
    drawn = [
        replace(s, name=f"drawn {s.name}", generated=True, read=partial(inverted, s))
        for s in learning.samples("classification", 12, start=500)
    ]

    def unlike(train):
        judged = judge(plan, learnt, {**given, "train": train}, {"drawn": drawn})
        return np.median([one.unlike for one in judged.outcomes if one.set == "drawn"])

    assert unlike([*given["train"], *drawn]) < unlike(given["train"])


def inverted(sample):
    stack = sample.read()
    return replace(stack, pixels=1 - stack.pixels)


def test_the_failures_are_the_wrong_ones(tmp_path):
    plan = recipe("classification")
    found = evaluate(plan, weights(plan), parts("classification", test=10), {}, tmp_path)
    wrong = {
        one.name
        for one in found.outcomes
        if one.set == "test" and dict(one.truth) != dict(one.verdict)
    }
    shown = {case.caption.split("\n")[0] for case in found.failures}
    assert wrong
    assert shown == wrong or (len(shown) == 8 and shown < wrong)


def test_folds_are_pooled_as_they_were_held_out():
    plan = recipe("classification")
    samples = learning.samples("classification", 16)
    told = []
    for fold in (0, 1):
        held = samples[8 * fold : 8 * fold + 8]
        rest = [sample for sample in samples if sample not in held]
        given = {"train": rest, "val": rest[:4], "test": held}
        told += judge(plan, weights(plan, fold), given, {}, fold=fold).outcomes
    document = with_cross_validation({}, told, plan)
    found = document["sets"][CROSS_VALIDATION]
    assert found["samples"] == 16
    assert set(found["folds"]["each"]) == {"0", "1"}
    assert {row["fold"] for row in found["rows"]} == {0, 1}
    json.dumps(document, allow_nan=False)


def test_a_network_is_measured_on_the_samples_own_grid():
    plan = recipe("segmentation")
    given = parts("segmentation")
    judged = judge(plan, weights(plan), given, {})
    (one,) = [one for one in judged.outcomes if one.name == given["test"][0].name]
    (prediction,) = judged.runner.predict([given["test"][0].read()])
    true = given["test"][0].truth.masks()
    both_empty = [not s.mask.any() and not true[i].any() for i, s in enumerate(prediction.segments)]
    assert [f"HD95 px Kind {i}" not in one.output for i in (0, 1)] == both_empty
    for i, segment in enumerate(prediction.segments):
        assert one.output[f"Dice Kind {i}"] == pytest.approx(
            outcomes.dice(segment.mask, true[i]), abs=1e-5
        )


def test_a_truth_of_another_task_is_named():
    plan = recipe("grading")
    given = parts("grading")
    given["val"] = [replace(given["val"][0], name="odd", truth=Truth(classes=(1.0,)))]
    with pytest.raises(Exception, match="odd: no truth for grading"):
        judge(plan, weights(plan), given, {})
