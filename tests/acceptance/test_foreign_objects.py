"""Files of many makers, sound and broken, go in; each gives results or is refused in words.

All 357 of the shared folder ``dicom`` (test data of pydicom, highdicom, dcmqi and others). Nothing
but a `ReadingError`, or a `ResultError` for a file that no listener would take, may come of any.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.results.types import Source
from inference.errors import ReadingError
from inference.reading import read
from inference.types import Prediction
from tests.data import shared
from tests.judges.dicom3tools import errors
from tests.judges.types import parse
from tests.results import built, segment
from tests.tid1500 import complaints

UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(eq=False)
class Outcome:
    """What came of one file."""

    path: Path
    dataset: Dataset = field(repr=False)
    results: dict[str, bytes] = field(default_factory=dict, repr=False)
    refused: str = ""
    """Why it is no image; then a report says that nothing was analysed."""
    unusable: str = ""
    """Why it cannot even be the source of a report."""

    @property
    def sop_class(self) -> str:
        return str(self.dataset.get("SOPClassUID") or "")


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    root = shared("dicom")
    index = json.loads((root / "index.json").read_text())
    assert len(index) > 350
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break their VR
        return [came_of(path, ds) for path, ds in parsed(root / entry["path"] for entry in index)]


def parsed(paths: Iterator[Path]) -> Iterator[tuple[Path, Dataset]]:
    for path in paths:
        try:
            yield path, pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            assert path.read_bytes()[128:132] != b"DICM", f"{path.name} has a preamble"


def came_of(path: Path, dataset: Dataset) -> Outcome:
    outcome = Outcome(path, dataset)
    try:
        stack = read([dataset])
    except ReadingError as error:
        outcome.refused = str(error)
        prediction, frames = Prediction(not_analysed=outcome.refused), ()
    else:
        mask = np.zeros(stack.shape, dtype=bool)
        mask[:, : max(1, stack.shape[1] // 2), : max(1, stack.shape[2] // 2)] = True
        prediction, frames = Prediction(segments=(segment(mask),)), stack.frames
    try:
        outcome.results = built(prediction, Source((dataset,), ("0" * 64,), frames))
    except ResultError as error:
        outcome.unusable = str(error)
    return outcome


def test_every_file_gives_results_or_is_refused_in_words(outcomes: list[Outcome]) -> None:
    kinds = Counter("+".join(outcome.results) for outcome in outcomes)
    assert kinds["seg+sr"] >= 200
    assert kinds["sr"] >= 100
    for outcome in outcomes:
        if not outcome.results:
            lacks = [keyword for keyword in UIDS if not outcome.dataset.get(keyword)]
            assert lacks, outcome.path.name
            assert outcome.unusable == f"a source instance has no {lacks[0]}"
        if outcome.refused:
            assert set(outcome.results) <= {"sr"}
            assert re.match(r"\w.{5,}", outcome.refused)


def test_a_refusal_names_no_patient(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        told = outcome.refused + outcome.unusable
        for keyword in ("PatientName", "PatientID"):
            value = str(outcome.dataset.get(keyword) or "")
            assert len(value) < 5 or value not in told, outcome.path.name


@pytest.mark.parametrize(
    ("sop_class", "words", "least"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "is a segmentation, not an image", 20),
        ("1.2.840.10008.5.1.4.1.1.66.7", "is a segmentation, not an image", 4),
        ("1.2.840.10008.5.1.4.1.1.88.11", "has no pixels", 2),
        ("1.2.840.10008.5.1.4.1.1.88.33", "has no pixels", 2),
        ("1.2.840.10008.5.1.4.1.1.88.34", "has no pixels", 2),
    ],
)
def test_segmentations_and_reports_of_others_are_no_images(
    outcomes: list[Outcome], sop_class: str, words: str, least: int
) -> None:
    theirs = [outcome for outcome in outcomes if outcome.sop_class == sop_class]
    assert len(theirs) >= least
    for outcome in theirs:
        assert words in outcome.refused
        assert set(outcome.results) == {"sr"}


def test_every_report_keeps_its_templates(outcomes: list[Outcome]) -> None:
    found = {
        outcome.path.name: complaints(parse(outcome.results["sr"]))
        for outcome in outcomes
        if outcome.results
    }
    assert {name: said for name, said in found.items() if said} == {}


def test_names_of_patients_survive_in_every_script(outcomes: list[Outcome]) -> None:
    scripts = set()
    for outcome in outcomes:
        name = shown(outcome.dataset)
        for data in outcome.results.values():
            assert shown(parse(data)) == name, outcome.path.name
            scripts |= {script for script, letters in SCRIPTS.items() if re.search(letters, name)}
    assert scripts == set(SCRIPTS)


SCRIPTS = {
    "Latin": r"[a-zA-Z]",
    "Latin-1": r"[äéüß]",
    "Greek": r"[α-ω]",
    "Cyrillic": r"[а-я]",
    "Hebrew": r"[א-ת]",
    "Arabic": r"[ء-ي]",
    "kana": r"[ぁ-ん]",
    "Han": r"[一-龥]",
    "Hangul": r"[가-힣]",
}


def shown(dataset: Dataset) -> str:
    """The name as a reader sees it; trailing delimiters mean nothing (PS3.5 6.2.1)."""
    return str(dataset.get("PatientName") or "").rstrip("^= ")


@pytest.mark.slow
def test_dciodvfy_finds_no_error_that_the_source_does_not_have(outcomes: list[Outcome]) -> None:
    chosen = [outcome for outcome in outcomes if outcome.results]
    with ThreadPoolExecutor() as pool:
        each = zip(chosen, pool.map(new_errors, chosen), strict=True)
        found = {outcome.path.name: said for outcome, said in each}
    bad = {name: said for name, said in found.items() if said}
    assert not bad, "\n".join(f"{name}: {one}" for name, said in bad.items() for one in said)


def new_errors(outcome: Outcome) -> list[str]:
    """Of the results, but neither the source's own nor those that its own bad UIDs bring along."""
    with tempfile.TemporaryDirectory() as folder:
        ours = set().union(*(errors(data, Path(folder)) for data in outcome.results.values()))
        if not ours:
            return []
        theirs = errors(outcome.path.read_bytes(), Path(folder))
    uids = {str(outcome.dataset.get(keyword)) for keyword in (*UIDS, "FrameOfReferenceUID")}
    return sorted(
        error
        for error in ours - theirs
        if not any(f"<{uid}>" in error for uid in uids) and not odd_frames(error, outcome)
    )


def odd_frames(error: str, outcome: Outcome) -> bool:
    """A source with several frames in a class that has one: its frames must be told apart."""
    several = not outcome.refused and int(outcome.dataset.get("NumberOfFrames") or 1) > 1
    return several and "Referenced SOP Class that is not multi-frame" in error
