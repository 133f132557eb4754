"""The report opens without a network, names nobody where it must not, and tells every figure."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.unit.training import said
from training import outcomes, page
from training.evaluate import pooled
from training.gallery import Case

VOID = {"meta", "img", "link", "br"}


class Reader(HTMLParser):
    """Tags that are closed, and all that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def document(sets, of, **changes):
    return {
        "format": 1,
        "name": "x",
        "version": "1.0.0",
        "title": "Lungs <of> A & B",
        "weights": "as stored, float16",
        "weights_sha256": "0" * 64,
        "interval": "95%",
        "scheme": asdict(of),
        "headline": of.headline,
        "definitions": {},
        "decisions": {
            "temperature": 1.5,
            "thresholds": {"Pneumonia": 0.31},
            "input_check": 2.0,
            "how": {"temperature": "so", "thresholds": "youden", "input check": "99%"},
        },
        "data": {"train": {"samples": 3, "groups": 2, "generated": 0, "licences": {"CC0": 3}}},
        "sets": {title: pooled(told, of, 100) for title, told in sets.items()},
        **changes,
    }


@pytest.fixture
def run(tmp_path):
    """A run folder of pneumonia with a hostile recipe, as evaluate leaves it."""
    attributes = [{"sex": "FM"[i % 2]} for i in range(60)]
    told = [replace(o, unlike=1.0) for o in said.simulated_binary(60, attributes=attributes)]
    told += [replace(o, set="one class only") for o in said.binary([1, 1], [0.9, 0.2])]
    sets = {title: [o for o in told if o.set == title] for title in ("test", "one class only")}
    (tmp_path / "evaluation.json").write_text(json.dumps(document(sets, said.BINARY)))
    outcomes.write(told, tmp_path / "predictions.csv")
    (tmp_path / "recipe.toml").write_text("# <script>alert(1)</script>\n")
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,0.9\n2,0.4\n")
    (tmp_path / "environment.json").write_text(json.dumps([{"torch": "2.0"}]))
    (tmp_path / "leaks.json").write_text(
        json.dumps({"near_duplicates": 2, "on_both_sides": [["s0001", "s0002"]]})
    )
    return tmp_path


def failing():
    return [Case("test", "s0001\ntrue: none", np.full((32, 32), 0.5, np.float32))]


def written(run, gallery=True):
    told = json.loads((run / "evaluation.json").read_text())
    said_of = outcomes.read(run / "predictions.csv")
    page.write(told, said_of, failing(), run, gallery=gallery)
    return (run / "report.html").read_text()


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_the_report_fetches_nothing(run):
    html = written(run)
    reader = read(html)
    assert len(reader.fetched) > 8
    assert all(value.startswith("data:image/png;base64,") for value in reader.fetched)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "<script" not in html


def test_the_report_tells_every_figure_and_no_nan(run):
    words = " ".join(read(written(run)).words)
    told = json.loads((run / "evaluation.json").read_text())
    for measured in told["sets"].values():
        for name, one in measured["figures"].items():
            assert name in words
            assert page.figure(one) in words
    assert "all samples of this set are 'Pneumonia'" in words
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)
    assert "Lungs <of> A & B" in words


def test_the_gallery_shows_patients_and_the_other_report_none(run):
    assert "worst cases of test" in written(run)
    page.again(run, run / "elsewhere.html")
    html = (run / "elsewhere.html").read_text()
    read(html)
    assert "worst cases" not in html.lower()
    assert not re.search(r"\bs\d{4}\b", html)
    assert "near duplicates" in html


def test_plots_stand_beside_the_report(run):
    written(run)
    names = {path.name for path in (run / "plots").iterdir()}
    assert {
        "test ROC.png",
        "Learning curve.png",
        "Input check.png",
        "test worst cases.png",
    } <= names


@pytest.mark.parametrize(
    ("told", "of"),
    [
        (said.lungs([(0.9, 0.8), (0.7, 0.6)], [(2.0, None), (3.0, 4.0)]), said.LUNGS),
        (said.boxes([[(0, 1, 1, 9, 9)], []], [[(0, 1, 1, 9, 8, 0.9)], []]), said.BOXES),
        (
            [replace(o, fold=i % 2) for i, o in enumerate(said.grades([0, 1, 2, 0], [0, 2, 2, 1]))],
            said.GRADES,
        ),
        (said.exclusive([0, 1, 2], np.eye(3) * 0.7 + 0.1), said.EXCLUSIVE),
    ],
)
def test_every_task_has_its_page_and_its_table(told, of, tmp_path):
    title = "cross-validation" if told[0].fold is not None else "test"
    doc = document({title: told}, of)
    page.write(doc, told, [], tmp_path)
    read((tmp_path / "report.html").read_text())
    table = page.card_table(doc)
    assert f"| {of.headline} |" in table
    assert not re.search(r"\bnan\b", table, re.IGNORECASE)


def test_nothing_measured_is_said_so(tmp_path):
    doc = document({}, said.BINARY)
    page.write(doc, [], [], tmp_path)
    assert "Nothing was measured" in (tmp_path / "report.html").read_text()
    assert "Nothing was measured" in page.card_table(doc)


def test_a_figure_in_words():
    assert page.figure({"value": 0.94351, "interval_95": [0.9, 0.98]}) == "0.944 (0.900 to 0.980)"
    assert page.figure({"absent": "one class"}) == "not told: one class"
    assert page.figure({"value": 0.5, "no_interval": "one group"}) == (
        "0.500 (no interval: one group)"
    )


def test_the_card_tells_decisions_and_refusals(run):
    told = [replace(o, refused="unlike") for o in said.simulated_binary(20)]
    table = page.card_table(document({"test": told}, said.BINARY))
    assert "Pneumonia 0.31" in table
    assert "would refuse 20" in table
    assert "Temperature 1.5" in table
