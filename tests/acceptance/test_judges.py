"""Every form of a result, of every kind of source, before every judge; no mock among them.

What they say stands as a table in ``deploy/conformance.md``. ``DICOM_NODE_WRITE_CONFORMANCE=1``
writes it; without that the tests hold it against what they found. To judge another form, add a
line to `OBJECTS`; another source, a line to `tests.judges.exhibits.SOURCES`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dicom_node.domain.profile import (
    Compression,
    Document,
    Encoding,
    Form,
    Identifiers,
    ScForm,
    SegForm,
    SrForm,
)
from dicom_node.results.evidence import reference
from dicom_node.results.types import Source
from inference.types import ImageStack, Prediction
from tests.judges.archive import Archive, dicomweb
from tests.judges.exhibits import SOURCES, apart, made, predicted, source_of
from tests.judges.table import JUDGES
from tests.judges.types import Judge, NotApplicable, Origin, Verdict, parse
from tests.results import CONTEXT, LUNG, segment
from tests.servers import orthanc

PAGE = Path(__file__).parents[2] / "deploy" / "conformance.md"
MARK = "<!-- generated: judges, by tests/acceptance/test_judges.py -->\n"
"""Not in the form of ``deploy/pages.py``, which knows how to make its own blocks only."""
BLOCK = re.compile(f"({MARK}).*?(<!-- end -->)", re.DOTALL)
PASSES, FAILS = "✓", "✗"

# -- What is judged -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A form of the result, and what of the prediction it can hold."""

    form: Form
    of: Callable[[Prediction], Prediction] = lambda prediction: prediction


LABEL_MAP = SegForm(Encoding.LABELMAP)
PLAIN = SrForm(identifiers=Identifiers.PLAIN)
OBJECTS: dict[str, Asked] = {
    "SEG BINARY": Asked(SegForm()),
    "SEG BINARY, JPEG 2000": Asked(SegForm(compression=Compression.JPEG2000)),
    "SEG FRACTIONAL": Asked(SegForm(Encoding.FRACTIONAL)),
    "SEG FRACTIONAL, RLE": Asked(SegForm(Encoding.FRACTIONAL, Compression.RLE)),
    "SEG LABELMAP": Asked(LABEL_MAP, apart),
    "SEG LABELMAP, RLE": Asked(SegForm(Encoding.LABELMAP, Compression.RLE), apart),
    "SR Comprehensive 3D": Asked(SrForm()),
    "SR Comprehensive 3D, plain identifiers": Asked(PLAIN),
    "SR Enhanced": Asked(SrForm(Document.ENHANCED)),
    "SR Enhanced, plain identifiers": Asked(replace(PLAIN, document=Document.ENHANCED)),
    "SR on a LABELMAP": Asked(SrForm(cites=LABEL_MAP), apart),
    "SR alone": Asked(SrForm(cites=None)),
    "secondary capture": Asked(ScForm()),
}


def objects_of(name: str, source: Source, stack: ImageStack) -> tuple[dict[str, bytes], Origin]:
    """What a line of `OBJECTS` names: one file, of captures several; and where it comes from."""
    asked = OBJECTS[name]
    cited = asked.form.cites if isinstance(asked.form, SrForm) else None
    forms = [asked.form, *([cited] if cited else [])]
    files, origin = made(asked.of(predicted(stack)), source, stack, forms)
    return {form: data for form, data in files.items() if form.startswith(str(asked.form))}, origin


# -- What they say ------------------------------------------------------------------------------


class Court:
    """All judges, and what they said of each source so far."""

    def __init__(self, archive: Archive) -> None:
        self.judges: dict[str, Judge] = {
            **JUDGES,
            "Orthanc C-STORE": archive.c_store,
            "Orthanc STOW-RS": archive.stow,
        }
        self.said: dict[str, dict[str, dict[str, Verdict]]] = {}

    def hear(self, source: str) -> Mapping[str, Mapping[str, Verdict]]:
        """Verdicts by object and judge."""
        if source not in self.said:
            read_source = source_of(source)
            self.said[source] = {name: self._of(name, *read_source) for name in OBJECTS}
        return self.said[source]

    def _of(self, name: str, source: Source, stack: ImageStack) -> dict[str, Verdict]:
        try:
            files, origin = objects_of(name, source, stack)
        except Exception as error:  # so that the others are judged all the same
            why = " ".join(str(error).splitlines()[:1])
            reason = f"not built: {type(error).__name__}: {why}"
            return {judge: [reason] for judge in self.judges}
        return self.judge(files, origin)

    def judge(self, files: Mapping[str, bytes], origin: Origin) -> dict[str, Verdict]:
        """Of one object; of several pages all that is wrong with any."""
        verdicts: dict[str, Verdict] = {}
        for name, judge in self.judges.items():
            each = [judge(data, origin) for data in files.values()]
            complaints = [one for verdict in each if isinstance(verdict, list) for one in verdict]
            verdicts[name] = complaints if complaints else each[0]
        return verdicts


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    with orthanc(tmp_path_factory.mktemp("judges"), **dicomweb()) as server:
        yield Court(Archive(server))


def wrong(verdicts: Mapping[str, Verdict]) -> list[str]:
    return [
        f"{judge}: {one}"
        for judge, verdict in verdicts.items()
        if isinstance(verdict, list)
        for one in verdict
    ]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_no_judge_complains(court: Court, source: str) -> None:
    found = [
        f"{name}: {one}" for name, verdicts in court.hear(source).items() for one in wrong(verdicts)
    ]
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_the_conformance_statement_says_what_the_judges_say(court: Court) -> None:
    table = "\n".join(rendered({source: court.hear(source) for source in SOURCES}))
    text = PAGE.read_text(encoding="utf-8")
    now = BLOCK.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)
    if os.environ.get("DICOM_NODE_WRITE_CONFORMANCE"):
        PAGE.write_text(now, encoding="utf-8")
    assert MARK in text
    assert PAGE.read_text(encoding="utf-8") == now, "DICOM_NODE_WRITE_CONFORMANCE=1 writes it"


def rendered(said: Mapping[str, Mapping[str, Mapping[str, Verdict]]]) -> Iterator[str]:
    """The table: sources of which all judges say the same share a row; reasons are footnotes."""
    yield f"All sources: {'; '.join(said)}."
    yield ""
    notes: dict[str, int] = {}

    def cell(verdict: Verdict) -> str:
        if isinstance(verdict, NotApplicable):
            return f"– ({notes.setdefault(verdict.reason, len(notes) + 1)})"
        return FAILS if verdict else PASSES

    rows: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in OBJECTS:
        for source, objects in said.items():
            rows[name, tuple(map(cell, objects[name].values()))].append(source)
    judges = list(next(iter(next(iter(said.values())).values())))
    yield f"| object | of | {' | '.join(judges)} |"
    yield "|---|---|" + "---|" * len(judges)
    for (name, cells), sources in rows.items():
        of = "all" if len(sources) == len(said) else "; ".join(sources)
        yield f"| {name} | {of} | {' | '.join(cells)} |"
    yield ""
    for reason, number in notes.items():
        yield f"{number}. {reason}"


# -- What the matrix does not hold --------------------------------------------------------------


def heard(files: Mapping[str, bytes], origin: Origin) -> dict[str, list[str]]:
    """Those who need no server."""
    found = {
        f"{judge} of {form}": ask(data, origin)
        for form, data in files.items()
        for judge, ask in JUDGES.items()
    }
    return {who: said for who, said in found.items() if isinstance(said, list) and said}


REPORTS = (SrForm(), SrForm(Document.ENHANCED), PLAIN)


@pytest.mark.parametrize("name", ["CT", "DX", "US clip"])
def test_a_report_that_nothing_was_analysed_passes(name: str) -> None:
    source, _ = source_of(name)
    reason = "The view is lateral; this model reads frontal ones (größer als 20°)."
    unread = replace(source, frames=())
    prediction = Prediction(not_analysed=reason, notes=("Note.",))
    files, origin = made(prediction, unread, None, (SegForm(), *REPORTS))
    assert [parse(data).Modality for data in files.values()] == ["SR"] * len(REPORTS)
    assert heard(files, origin) == {}


@pytest.mark.parametrize("name", ["CT", "DX"])
def test_a_report_that_nothing_was_found_passes(name: str) -> None:
    source, stack = source_of(name)
    empty = np.zeros(stack.shape, bool)
    prediction = Prediction(segments=(segment(empty), segment(empty, "Lung", type=LUNG)))
    files, origin = made(prediction, source, stack, (SegForm(), *REPORTS))
    assert [parse(data).Modality for data in files.values()] == ["SR"] * len(REPORTS)
    assert heard(files, origin) == {}


def test_a_report_that_supersedes_another_passes() -> None:
    source, stack = source_of("CT")
    first, _ = made(predicted(stack), source, stack, REPORTS)
    before = {form: reference(parse(data)) for form, data in first.items()}
    again = replace(CONTEXT, generation=2, predecessors=before)
    files, origin = made(predicted(stack), source, stack, (SegForm(), *REPORTS), again)
    assert heard(files, origin) == {}
    for form, old in before.items():
        (study,) = parse(files[form]).PredecessorDocumentsSequence
        named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == old.sop_instance_uid
