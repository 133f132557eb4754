"""What a radiologist sees: our SEG and SR in OHIF, in a real browser, over Orthanc.

Judged by pixels and their place, not by the absence of errors: a SEG that lies elsewhere loads, is
listed and paints nothing; one a slice off paints the wrong slice. Screenshots are kept for people.
What was seen stands as a table in ``deploy/conformance.md``: ``DICOM_NODE_WRITE_CONFORMANCE=1``
writes it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Encoding, ScForm, SegForm
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import Source
from inference import reading
from inference.display import shown
from inference.measure import longest_diameter
from inference.types import Box, Code, Finding, Prediction, Segment
from tests import dicoms
from tests.results import (
    CONTEXT,
    HEART,
    LUNG,
    MODEL,
    PNEUMONIA,
    RIGHT,
    built,
    grid,
    parse,
    segment,
    source_of,
)
from tests.servers import Orthanc
from tests.viewer import ohif, verdict
from tests.viewer.reader import Painted, Reader, browser

pytestmark = pytest.mark.slow

SEGMENTS, LABELS = "every segment of a BINARY SEG", "of a LABELMAP"
OUTLINES, OUTLINES_EDITED = "outlines drawn", "outlines become measurements"
BOXES, WORDS = "boxes drawn, become measurements", "the words of a report that draws nothing"
PAGES = "secondary capture"
COLUMNS = (SEGMENTS, LABELS, OUTLINES, OUTLINES_EDITED, BOXES, WORDS, PAGES)
NOTE = (
    "1. drawn with the node's number under a plain identifier: OHIF would measure outlines on "
    "ultrasound anew, and wrongly by orders of magnitude"
)
IN_WORDS = {"tilted": "CT, tilted", "US": "US clip", "enhanced": "enhanced CT"}
TOOLS = ("PlanarFreehandROI", "RectangleROI", "Length")
PAGE = Path(__file__).parents[2] / "deploy" / "conformance.md"
MARK = "<!-- generated: viewer, by tests/acceptance/test_viewer.py -->\n"

NODULE = Code("27925004", "SCT", "Nodule")
SOURCES = "CT tilted MR DX CR MG US enhanced".split()
ARTEFACTS = (
    Path(os.environ.get("DICOM_NODE_ARTEFACTS") or Path(__file__).parents[2] / "artefacts")
    / "viewer"
)


@dataclass(frozen=True)
class Stage:
    """One archive, one viewer and one browser for all tests: they take long to start."""

    archive: Orthanc
    reader: Reader
    seen: dict[tuple[str, str], str] = field(default_factory=dict)  # (source, column) -> cell

    def bring(self, datasets: Sequence[Dataset], results: Sequence[bytes]) -> str:
        """Put a study and its results into the archive and open it; gives its UID."""
        for dataset in datasets:
            file = io.BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            ohif.keep(self.archive, file.getvalue())
        for result in results:
            ohif.keep(self.archive, result)
        study = str(datasets[0].StudyInstanceUID)
        series = {str(parse(result).SeriesInstanceUID) for result in results}
        self.reader.open(study, objects=1 + len(series))
        return study


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("viewer")
    with (
        ohif.archive(folder) as archive,
        ohif.viewer(archive) as address,
        browser(address) as reader,
    ):
        yield Stage(archive, reader)


# -- what is shown ------------------------------------------------------------------------------


def drawn_study(name: str, patient: str) -> list[Dataset]:
    """A small study; each frame bears a bright mark that tells it from its neighbours."""
    z = [(-32.0, -32.0, 4.0 * i) for i in range(3)]
    datasets = {
        "CT": lambda: dicoms.ct_series(5, patient_id=patient),
        "tilted": lambda: dicoms.ct_series(3, tilt=20.0, patient_id=patient),
        "MR": lambda: [
            dicoms.mr_slice(position=p, number=i + 1, patient_id=patient) for i, p in enumerate(z)
        ],
        "DX": lambda: [dicoms.dx_image(patient_id=patient)],
        "CR": lambda: [dicoms.dx_image(modality="CR", patient_id=patient)],
        "MG": lambda: [dicoms.dx_image(modality="MG", patient_id=patient)],
        "US": lambda: [dicoms.us_clip(2, patient_id=patient)],
        "enhanced": lambda: [dicoms.enhanced_ct(3, patient_id=patient)],
    }[name]()
    count = 0
    for dataset in datasets:
        pixels = dataset.pixel_array.copy()
        frames = pixels if pixels.ndim == 3 else pixels[None]
        for frame in frames:
            frame[2:8, 4 + 8 * count : 10 + 8 * count] = frame.max()
            count += 1
        dataset.PixelData = pixels.tobytes()
        # So that the mark and the body are both seen in the window that OHIF begins with.
        if name in ("CT", "tilted", "MR"):
            dataset.WindowCenter, dataset.WindowWidth = ("0", "2200")
    return datasets


def frames_of(datasets: Sequence[Dataset]) -> list[NDArray[np.generic]]:
    arrays = [ds.pixel_array for ds in datasets]
    return [frame for a in arrays for frame in (a if a.ndim == 3 else a[None])]


def ball(source: Source, row: float, column: float, radius: float) -> NDArray[np.bool_]:
    """A disc with one outline that wanders and shrinks from frame to frame."""
    n, rows, columns = grid(source)
    r, c = np.mgrid[0:rows, 0:columns]
    mask = np.zeros((n, rows, columns), dtype=bool)
    for i in range(n):
        distance = np.hypot(r - row * rows, c - (column + 0.05 * i) * columns)
        mask[i] = distance < (radius - 0.02 * i) * columns
    return mask


def three_segments(source: Source) -> tuple[Segment, ...]:
    """Two that overlap and a third aside, which the first of several frames lacks."""
    aside = ball(source, 0.75, 0.6, 0.12)
    if len(aside) > 1:
        aside[0] = False
    return (
        segment(ball(source, 0.4, 0.35, 0.2), "Right lung", type=LUNG, laterality=RIGHT,
                colour=(40, 120, 230)),
        segment(ball(source, 0.5, 0.45, 0.17), "Heart", type=HEART, colour=(230, 60, 40)),
        segment(aside, "Nodule", type=NODULE, colour=(60, 200, 80)),
    )  # fmt: skip


# -- segmentations ------------------------------------------------------------------------------


def look(reader: Reader, source: Source, count: int) -> list[Painted]:
    """What is painted of so many segments on each frame of the source."""
    numbers = range(1, count + 1)
    painted = [reader.painted(ref.sop_instance_uid, ref.frame, numbers) for ref in source.frames]
    reader.dress()
    return painted


def wrong(painted: Sequence[Painted], source: Source, segments: Sequence[Segment]) -> list[str]:
    """All that is not as it should be."""
    frames = frames_of(source.datasets)
    complaints = []
    for index, seen in enumerate(painted):
        told = verdict.image(seen.bare, seen.place, frames, index)
        for number, wanted in enumerate(segments, 1):
            told += verdict.segment(seen, number, wanted.mask[index], wanted.colour)
        complaints += [f"frame {index}: {what}" for what in told]
    return complaints


@pytest.mark.parametrize("name", SOURCES)
def test_every_segment_is_painted_in_its_colour_on_its_pixels_and_nowhere_else(
    name: str, stage: Stage
) -> None:
    source = source_of(drawn_study(name, f"SEG-{name}"))
    segments = three_segments(source)
    made = built(Prediction(segments=segments), source)
    stage.bring(source.datasets, [made["seg"]])
    listed = stage.reader.open_segmentation()
    assert [s.label for s in listed] == ["Right lung", "Heart", "Nodule"]
    painted = look(stage.reader, source, len(segments))
    stage.reader.screenshot(ARTEFACTS / f"seg-{name}.png")
    assert wrong(painted, source, segments) == []
    stage.seen[name, SEGMENTS] = "✓"


@pytest.mark.parametrize("name", ["CT", "DX"])
def test_a_label_map_is_painted_in_its_own_colours(name: str, stage: Stage) -> None:
    source = source_of(drawn_study(name, f"LABELS-{name}"))
    first, second, third = three_segments(source)
    apart = (first, replace(second, mask=second.mask & ~first.mask), third)
    form = SegForm(Encoding.LABELMAP)
    (made,) = build_results(Prediction(segments=apart), source, MODEL, CONTEXT, [form])
    stage.bring(source.datasets, [encode(made.dataset)])
    stage.reader.open_segmentation()
    assert wrong(look(stage.reader, source, len(apart)), source, apart) == []
    stage.seen[name, LABELS] = "✓"


def test_a_segmentation_that_is_one_slice_off_is_found_out(stage: Stage) -> None:
    source = source_of(drawn_study("CT", "SHIFTED"))
    true = three_segments(source)[0]
    off = replace(true, mask=np.roll(true.mask, 1, axis=0))
    stage.bring(source.datasets, [built(Prediction(segments=(off,)), source)["seg"]])
    stage.reader.open_segmentation()
    painted = look(stage.reader, source, 1)
    assert wrong(painted, source, [off]) == []
    assert any("elsewhere" in what for what in wrong(painted, source, [true]))


def test_a_segmentation_in_another_colour_is_found_out(stage: Stage) -> None:
    source = source_of(drawn_study("DX", "COLOUR"))
    red = three_segments(source)[1]
    made = built(Prediction(segments=(replace(red, colour=(40, 120, 230)),)), source)
    stage.bring(source.datasets, [made["seg"]])
    stage.reader.open_segmentation()
    (complaint,) = wrong(look(stage.reader, source, 1), source, [red])
    assert "painted in" in complaint


# -- reports ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outline:
    """A region that a report tells: what, on which image, where."""

    label: str
    tool: str
    sop_instance_uid: str
    frame: int
    points: NDArray[np.float64]


def outlines(report: bytes) -> list[Outline]:
    """Every SCOORD of a report."""
    found = []
    for group in (i for i in walk(parse(report)) if concept(i) == "125007"):
        items = list(group.ContentSequence)
        label = next(i.ConceptCodeSequence[0].CodeMeaning for i in items if concept(i) == "121071")
        tool = next(i.TextValue for i in items if concept(i) == "112039").rpartition(":")[2]
        for region in (i for i in walk(group) if i.get("ValueType") == "SCOORD"):
            image = region.ContentSequence[0].ReferencedSOPSequence[0]
            found.append(
                Outline(
                    str(label),
                    tool,
                    str(image.ReferencedSOPInstanceUID),
                    int(image.get("ReferencedFrameNumber") or 1),
                    np.array(region.GraphicData, dtype=float).reshape(-1, 2),
                )
            )
    return found


def walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or []:
        yield child
        yield from walk(child)


def concept(item: Dataset) -> str:
    return (
        str(item.ConceptNameCodeSequence[0].CodeValue) if "ConceptNameCodeSequence" in item else ""
    )


def read(reader: Reader, source: Source, wanted: Sequence[Outline]) -> list[str]:
    """All that is wrong with the drawings of a report that is open."""
    complaints = []
    for ref in source.frames:
        drawn, place = reader.drawn(ref.sop_instance_uid, ref.frame)
        here = [
            o.points
            for o in wanted
            if (o.sop_instance_uid, o.frame) == (ref.sop_instance_uid, ref.frame)
        ]
        complaints += [f"frame {ref.frame}: {what}" for what in verdict.lines(drawn, place, here)]
    return complaints


def hydrated(reader: Reader, wanted: Sequence[Outline]) -> list[str]:
    """All that is wrong with the measurements that a report becomes."""
    measured = reader.hydrate()
    complaints = []
    if len(measured) != len(wanted):
        complaints.append(f"{len(measured)} measurements instead of {len(wanted)}")
    for outline in wanted:
        alike = [
            verdict.same_points(m.points, outline.points)
            for m in measured
            if (m.label, m.tool) == (outline.label, outline.tool)
            and (m.sop_instance_uid, m.frame) == (outline.sop_instance_uid, outline.frame)
        ]
        if not alike:
            complaints.append(f"{outline.label}: no {outline.tool} on its image")
        elif all(alike):
            complaints.append(f"{outline.label}: {min(alike)}")
    return complaints


def judge(stage: Stage, name: str, source: Source, made: dict[str, bytes]) -> None:
    """Draw, look, hydrate, look again."""
    reader, wanted = stage.reader, outlines(made["sr"])
    stage.bring(source.datasets, list(made.values()))
    reader.open_report()
    complaints = read(reader, source, wanted)
    reader.show(wanted[0].sop_instance_uid, wanted[0].frame)
    reader.screenshot(ARTEFACTS / f"sr-{name}-drawn.png")
    if not any(tool in TOOLS for tool in (o.tool for o in wanted)):
        assert complaints == []
        return
    complaints += hydrated(reader, wanted)
    panel = reader.panel()
    complaints += [f"{o.label} is not in the panel" for o in wanted if o.label not in panel]
    reader.screenshot(ARTEFACTS / f"sr-{name}-hydrated.png")
    assert complaints == []


@pytest.mark.parametrize("name", SOURCES)
def test_contours_are_drawn_in_their_place_and_become_named_measurements(
    name: str, stage: Stage
) -> None:
    source = source_of(drawn_study(name, f"SR-{name}"))
    made = built(Prediction(segments=three_segments(source)), source)
    judge(stage, f"contours-{name}", source, made)
    stage.seen[name, OUTLINES] = "✓"
    stage.seen[name, OUTLINES_EDITED] = "– (1)" if name == "US" else "✓"


@pytest.mark.parametrize("name", SOURCES)
def test_boxes_are_drawn_in_their_place_beside_verdicts_that_have_none(
    name: str, stage: Stage
) -> None:
    source = source_of(drawn_study(name, f"BOX-{name}"))
    last = len(source.frames) - 1
    boxes = (Box(0, 10, 14, 30, 40), Box(last, 40.5, 20, 58, 50.5))
    findings = (
        Finding("Pneumonia", PNEUMONIA, True, probability=0.8, threshold=0.5, boxes=boxes),
        Finding("Nodule", NODULE, False, probability=0.1, threshold=0.5),
    )
    judge(stage, f"boxes-{name}", source, built(Prediction(findings=findings), source))
    stage.seen[name, BOXES] = "✓"


def test_a_box_two_pixels_from_its_place_is_found_out(stage: Stage) -> None:
    source = source_of(drawn_study("DX", "MOVED"))
    finding = Finding(
        "Pneumonia", PNEUMONIA, True, probability=0.8, boxes=(Box(0, 10, 14, 30, 40),)
    )
    made = built(Prediction(findings=(finding,)), source)
    (true,) = outlines(made["sr"])
    moved = replace(true, points=true.points + np.array([2.0, 0.0]))
    stage.bring(source.datasets, [made["sr"]])
    stage.reader.open_report()
    assert read(stage.reader, source, [true]) == []
    assert read(stage.reader, source, [moved]) != []
    (complaint,) = hydrated(stage.reader, [moved])
    assert "from its place" in complaint


def test_a_segment_that_was_not_found_does_not_hide_the_others(stage: Stage) -> None:
    source = source_of(drawn_study("CT", "ABSENT"))
    found, *_, missed = three_segments(source)
    missed = replace(missed, mask=np.zeros_like(missed.mask))
    made = built(Prediction(segments=(found, missed)), source)
    judge(stage, "absent-CT", source, made)


def test_a_segment_in_two_pieces_has_both_outlines_drawn(stage: Stage) -> None:
    source = source_of(drawn_study("DX", "IN PIECES"))
    pieces = ball(source, 0.4, 0.3, 0.12) | ball(source, 0.6, 0.7, 0.15)
    made = built(Prediction(segments=(segment(pieces),)), source)
    judge(stage, "pieces-DX", source, made)


def test_the_longest_diameter_is_drawn_and_becomes_a_length(stage: Stage) -> None:
    source = source_of(drawn_study("DX", "LENGTH"))
    mask = ball(source, 0.5, 0.5, 0.2)
    told = longest_diameter(mask, reading.read(source.datasets))
    made = built(Prediction(segments=(segment(mask, measurements=told),)), source)
    assert [outline.tool for outline in outlines(made["sr"])][1:] == ["Length"]
    judge(stage, "length-DX", source, made)


@pytest.mark.parametrize("name", ["CT", "DX"])
def test_a_report_that_draws_nothing_is_shown_in_words(name: str, stage: Stage) -> None:
    """OHIF 3.13 shows a black viewport, or an error, for an Imaging Measurement Report without."""
    source = source_of(drawn_study(name, f"WORDS-{name}"))
    empty = segment(np.zeros(grid(source), dtype=bool), "Nodule", type=NODULE)
    finding = Finding("Pneumonia", PNEUMONIA, True, probability=0.8, threshold=0.5)
    made = built(Prediction(segments=(empty,), findings=(finding,)), source)
    stage.bring(source.datasets, [made["sr"]])
    words = stage.reader.open_text()
    stage.reader.screenshot(ARTEFACTS / f"words-{name}.png")
    for told in ("Nodule: Absent", "Pneumonia: present, probability 80 %", "Research use"):
        assert told in words

    unread = source_of(drawn_study(name, f"UNREAD-{name}"), read=False)
    made = built(Prediction(not_analysed="The view is lateral."), unread)
    stage.bring(unread.datasets, [made["sr"]])
    assert "The view is lateral." in stage.reader.open_text()
    stage.reader.screenshot(ARTEFACTS / f"not-analysed-{name}.png")
    stage.seen[name, WORDS] = "✓"


@pytest.mark.parametrize("name", ["CT", "US"])
def test_a_secondary_capture_is_shown_as_it_was_drawn(name: str, stage: Stage) -> None:
    source = source_of(drawn_study(name, f"PAGES-{name}"))
    stack = reading.read(source.datasets)
    source = replace(source, frames=stack.frames)
    prediction = Prediction(segments=three_segments(source))
    pages = build_results(
        prediction, source, MODEL, CONTEXT, [ScForm()], lambda frame: shown(stack, frame)
    )
    made = [encode(page.dataset) for page in pages]
    stage.bring(source.datasets, made)
    stage.reader.open_capture()
    stage.reader.screenshot(ARTEFACTS / f"capture-{name}.png")
    ((first, _), *_) = stage.reader.images()
    (page,) = [p for p in map(parse, made) if first == p.SOPInstanceUID]
    seen, place = stage.reader.canvas()
    assert verdict.picture(seen, place, page.pixel_array) == []
    stage.seen[name, PAGES] = "✓"


def test_the_conformance_statement_says_what_was_seen(stage: Stage) -> None:
    """Stands last: what the other tests saw."""
    if len(stage.seen) < len(SOURCES):
        pytest.skip("the other tests of this file did not run")
    lines = [f"| source | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name in SOURCES:
        cells = (stage.seen.get((name, column), "") for column in COLUMNS)
        lines.append(f"| {IN_WORDS.get(name, name)} | {' | '.join(cells)} |")
    table = "\n".join([*lines, "", NOTE, ""])
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARK)
    now = before + MARK + table + "<!-- end -->" + rest.partition("<!-- end -->")[2]
    if os.environ.get("DICOM_NODE_WRITE_CONFORMANCE"):
        PAGE.write_text(now, encoding="utf-8")
    assert MARK in text
    assert PAGE.read_text(encoding="utf-8") == now, "DICOM_NODE_WRITE_CONFORMANCE=1 writes it"
