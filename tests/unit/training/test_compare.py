"""Two runs on the same samples: the difference, drawn together."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.unit.training import said
from training import compare, outcomes
from training.errors import DataError, RunError
from training.metrics import measured


def run(folder, told, of=said.BINARY):
    folder.mkdir()
    sets = {title: [o for o in told if o.set == title] for title in {o.set for o in told}}
    document = {
        "scheme": asdict(of),
        "headline": of.headline,
        "sets": {title: measured(held, of, 200) for title, held in sets.items()},
    }
    (folder / "evaluation.json").write_text(json.dumps(document))
    outcomes.write(told, folder / "predictions.csv")
    return folder


def blurred(told, by, seed=1):
    """The same samples by a network that sees less."""
    rng = np.random.default_rng(seed)
    p = np.array([one.output["Pneumonia"] for one in told])
    logits = np.log(p / (1 - p)) + rng.normal(0, by, len(told))
    return said.binary([one.truth["Pneumonia"] for one in told], said.sigmoid(logits))


@pytest.fixture
def good():
    return said.simulated_binary(200, apart=1.6)


def test_a_run_is_not_better_than_itself(tmp_path, good):
    (one,) = compare.differences(run(tmp_path / "a", good), run(tmp_path / "b", good))
    assert one.difference.value == 0
    assert one.difference.interval == (0, 0)
    assert one.verdict == "no difference shown"


def test_what_sees_less_is_worse(tmp_path, good):
    a, b = run(tmp_path / "a", good), run(tmp_path / "b", blurred(good, 3))
    (one,) = compare.differences(a, b)
    assert one.difference.value == pytest.approx(one.b - one.a)
    assert one.difference.interval[1] < 0
    assert one.verdict == "a is better"
    (other,) = compare.differences(b, a)
    assert other.verdict == "b is better"
    assert other.difference.value == pytest.approx(-one.difference.value)


def test_pairs_tell_what_two_intervals_would_not(tmp_path, good):
    a, b = run(tmp_path / "a", good), run(tmp_path / "b", blurred(good, 0.7))
    (one,) = compare.differences(a, b)
    low, high = one.difference.interval
    alone = [compare.overview(folder)[0]["interval_95"] for folder in (a, b)]
    assert high - low < 0.7 * min(edges[1] - edges[0] for edges in alone)


def test_the_order_of_the_samples_does_not_matter(tmp_path, good):
    worse = blurred(good, 1)
    first = compare.paired("test", good, worse, said.BINARY, 200)
    assert compare.paired("test", good[::-1], worse, said.BINARY, 200) == first


def test_other_samples_are_named(tmp_path, good):
    with pytest.raises(DataError, match="test: measured by one run only: s0199"):
        compare.paired("test", good, good[:-1], said.BINARY)


def test_another_truth_is_named(good):
    other = [replace(good[0], truth={"Pneumonia": 1 - good[0].truth["Pneumonia"]}), *good[1:]]
    with pytest.raises(DataError, match="another truth or group in each run: s0000"):
        compare.paired("test", good, other, said.BINARY)


def test_runs_of_other_labels_are_not_compared(tmp_path, good):
    graded = run(tmp_path / "b", said.grades([0, 1, 2], [0, 1, 2]), said.GRADES)
    with pytest.raises(RunError, match="grading of Normal"):
        compare.differences(run(tmp_path / "a", good), graded)


def test_runs_without_a_shared_set_are_not_compared(tmp_path, good):
    other = run(tmp_path / "b", [replace(one, set="elsewhere") for one in good])
    with pytest.raises(DataError, match="elsewhere"):
        compare.differences(run(tmp_path / "a", good), other)


def test_a_run_that_was_not_evaluated_is_named(tmp_path, good):
    (tmp_path / "b").mkdir()
    with pytest.raises(RunError, match="b was not evaluated; run evaluate first"):
        compare.compare([run(tmp_path / "a", good), tmp_path / "b"])


def test_one_class_has_no_difference_but_a_reason(good):
    told = said.binary([1, 1, 1], [0.2, 0.4, 0.6])
    found = compare.paired("test", told, told, said.BINARY)
    assert found.difference.value is None
    assert "Pneumonia" in found.verdict


def test_many_runs_stand_in_one_table(tmp_path, good):
    runs = [run(tmp_path / f"r{i}", blurred(good, i)) for i in range(3)]
    found = compare.compare(runs, 200)
    json.dumps(found, allow_nan=False)
    lines = compare.table(found).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["r0", "r1", "r2"]
    assert len(found["differences"]) == 2
    assert any(line.startswith("r0  r2") for line in lines)


def test_boxes_are_compared_too():
    true = [[(0, 0, 0, 20, 20)] for _ in range(10)]
    good = [[(0, 0, 0, 20, 19, 0.9)] for _ in range(10)]
    bad = [[(0, 0, 0, 20, 19 if i % 2 else 5, 0.9)] for i in range(10)]
    found = compare.paired("t", said.boxes(true, good), said.boxes(true, bad), said.BOXES, 200)
    assert found.a == 1
    assert found.difference.interval[1] < 0
