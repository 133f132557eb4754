"""Owns the pages that show anywhere: secondary captures of the image with the result drawn on it.

The last resort for viewers that show neither SEG nor SR. Refuses to judge and to read pixels: it
writes down a prediction, and is given each frame as people look at it. What is burned in comes
from the model, its result and three numbers of the source (series, image, frame), never from an
attribute of the patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.results import codes
from dicom_node.results.content import coded
from dicom_node.results.header import RESEARCH_USE
from dicom_node.results.identity import Identity
from dicom_node.results.lettering import Colour, drawable
from dicom_node.results.marks import Heat, Line, Mark, Rectangle, Region
from dicom_node.results.normalise import fit_character_set
from dicom_node.results.overlay import Entry, Sheet, Sides, overlay
from dicom_node.results.words import graded, percentages, quantity
from inference.attributes import Frame, frames_of, integer, numbers
from inference.errors import ReadingError
from inference.geometry import direction, patient_orientation, pixel_spacing
from inference.stored import to_byte
from inference.types import Box, Code, Finding, FrameRef, Measurement, Prediction, Segment

MAX_PAGES = 6
"""A reader leafs through so many; report and segmentation hold the rest."""

SHEET = Sheet(rows=960, columns=1280)
"""Of a page with a picture: 3.5 MiB without compression."""

WORDS_SHEET = Sheet(rows=600, columns=960)
"""Of a page without one."""

MAX_NAMED_IMAGES = 8
"""A page without a picture refers to its inputs where they are no more than this."""

PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (240, 228, 66),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
)
"""Of findings, which bring no colour: told apart also by those who do not tell red from green
(Okabe and Ito, 2008)."""

_TOO_ALIKE = 90  # distance of two colours in sRGB below which one is passed over
_SLIGHT = 0.25  # a direction cosine below which a letter is not told: 15 degrees
_LONG_TEXT, _SHORT_TEXT = 10_240, 1024  # characters of LT and ST (PS3.5 6.2)
_LETTERS = ("RL", "AP", "FH")  # towards less and more of each axis (PS3.3 C.7.6.1.1.1, LPS)
_OPPOSITE = str.maketrans("LRAPHF", "RLPAFH")


def captures(
    prediction: Prediction,
    identity: Identity,
    picture: Callable[[int], NDArray[np.uint8]],
    header: Callable[[int], Dataset],
) -> list[Dataset]:
    """The pages of one prediction, as single-frame Secondary Capture Images.

    One for each key frame: where a segment is largest or a length was measured, where there are
    boxes, where the heat map of a finding that is present peaks. What lies on one frame shares a
    page, but for a second heat map. With more than `MAX_PAGES` each finding and segment has its
    first page before any has its second. Nothing found: one page with the middle frame and what
    was looked for. Not analysed: one page with the reason and no picture.

    The same arguments give the same pages. Full texts, also where a page cannot draw them, stand
    in Image Comments.

    Args:
        prediction: what the model says; arrays on the grid of ``identity.source.frames``.
        identity: of the job.
        picture: frame, from 0, as people look at it: ``(rows, columns)`` grey or
            ``(rows, columns, 3)`` RGB, as `inference.display.shown` gives it. Only asked for the
            frames that are shown, and never when nothing was analysed.
        header: page, from 1, to a new data set with all attributes that results have in common.

    Raises:
        ResultError: an array, a box or a line does not lie on the source, or the prediction says
            nothing at all.
    """
    if prediction.not_analysed is not None:
        reason = prediction.not_analysed.removeprefix(f"Not analysed by {_title(identity)}: ")
        told = [Entry("Not analysed"), Entry(reason[:1].upper() + reason[1:])]
        return [_words_only(told, prediction, identity, header(1))]
    if not prediction.segments and not prediction.findings:
        raise ResultError("the prediction says nothing: no segment, no finding, no reason")
    book = _Book(prediction, identity)
    if not book.frames:
        return [_words_only(book.legend(None), prediction, identity, header(1))]
    return [
        book.page(page, picture(page.frame), header(number))
        for number, page in enumerate(book.pages, 1)
    ]


@dataclass(frozen=True)
class _Page:
    """A frame, from 0, and the finding whose heat map lies on it."""

    frame: int
    heat: int | None = None


class _Book:
    """All pages with a picture of one prediction."""

    def __init__(self, prediction: Prediction, identity: Identity) -> None:
        self.prediction, self.identity = prediction, identity
        self.frames = identity.source.frames
        self.pixels = [self._counts(segment) for segment in prediction.segments]
        self.colours = _colours(prediction)
        boxes = [(i, j) for i, f in enumerate(prediction.findings) for j in range(len(f.boxes))]
        self.numbers = {place: number for number, place in enumerate(boxes, 1)}
        wanted = self._wanted()
        self.pages = sorted(wanted[:MAX_PAGES], key=lambda page: page.frame)
        self.left_out = len(wanted) - len(self.pages)
        if not self.pages:
            self.pages = [_Page(len(self.frames) // 2)]

    def page(self, page: _Page, image: NDArray[np.uint8], dataset: Dataset) -> Dataset:
        """One page, made of its picture and of a header that is completed."""
        ref = self.frames[page.frame]
        frame = _frame(self.identity, ref)
        directions = _directions(frame)
        legend, title, note = self.legend(page), _title(self.identity), _note(self.identity)
        footer = _footer(legend, self._about(frame), self.prediction, self.identity)
        pixels = overlay(
            image,
            list(self._marks(page)),
            legend,
            _heading(self.identity),
            note,
            footer=footer,
            sheet=SHEET,
            aspect=_aspect(frame),
            sides=_sides(directions),
        )
        _describe(dataset, pixels, [title, note, *_lines(legend), *footer], self.identity)
        dataset.PatientOrientation = list(directions) if directions else ""
        dataset.SourceImageSequence = [_source_image(ref, frame)]
        _copy_loss(dataset, frame.dataset)
        return dataset

    def legend(self, page: _Page | None) -> list[Entry]:
        """What is on this page, then what is elsewhere, then what was not found."""
        entries: list[tuple[int, Entry]] = []
        for index, finding in enumerate(self.prediction.findings):
            numbers = [number for owner, number, _ in self._boxes(page) if owner == index]
            heated = page is not None and page.heat == index
            entry = _of_finding(finding, numbers, self.colours[index], heated)
            entries.append((3 if not finding.present else 0 if heated or numbers else 1, entry))
        for segment, pixels in zip(self.prediction.segments, self.pixels, strict=True):
            here = page is not None and pixels[page.frame] > 0
            entry = _of_segment(segment, page.frame if page else None, here, any(pixels))
            entries.append((0 if here else 2 if any(pixels) else 3, entry))
        legend = [entry for _, entry in sorted(entries, key=lambda item: item[0])]
        if all(order == 3 for order, _ in entries):
            legend.insert(0, Entry("Nothing found", ("Looked for:",)))
        return legend

    def _counts(self, segment: Segment) -> list[int]:
        """Pixels on each frame."""
        self._check(segment.mask.shape[0])
        return [int(np.count_nonzero(frame)) for frame in segment.mask]

    def _check(self, frames: int) -> None:
        if frames != len(self.frames):
            raise ResultError(f"an array of {frames} frames on a source of {len(self.frames)}")

    def _wanted(self) -> list[_Page]:
        """Key frames, the most telling first: one for each finding and segment, then their next."""
        things: list[list[_Page]] = []
        findings = enumerate(self.prediction.findings)
        for index, finding in sorted(findings, key=lambda item: _doubt(item[1])):
            pages = [_Page(self._known(box.frame)) for box in finding.boxes]
            peak = self._peak(finding)
            things.append(pages if peak is None else [_Page(peak, index), *pages])
        for segment, pixels in zip(self.prediction.segments, self.pixels, strict=True):
            pages = [_Page(pixels.index(max(pixels)))] if any(pixels) else []
            pages += [_Page(self._known(m.frame)) for m in segment.measurements if _on_frame(m)]
            things.append(pages)
        found: list[_Page] = []
        for rank in range(max(map(len, things), default=0)):
            for pages in things:
                for page in pages[rank : rank + 1]:
                    _add(found, page)
        return found

    def _peak(self, finding: Finding) -> int | None:
        """The frame on which its heat map is highest; None when there is none to be shown.

        Compared as bytes, since that is what a prediction keeps of it.
        """
        heat = finding.saliency
        if heat is None or not finding.present:
            return None
        self._check(heat.shape[0])
        peaks = to_byte(
            np.clip([np.fmax.reduce(frame, axis=None, initial=0) for frame in heat], 0, 1)
        )
        return int(peaks.argmax()) if peaks.any() else None

    def _known(self, frame: int | None) -> int:
        if frame is None or not 0 <= frame < len(self.frames):
            raise ResultError(f"frame {frame} of a source of {len(self.frames)} frames")
        return frame

    def _marks(self, page: _Page) -> Iterator[Mark]:
        if page.heat is not None:
            heat = self.prediction.findings[page.heat].saliency
            assert heat is not None  # noqa: S101 - `_wanted` found its peak
            yield Heat(heat[page.frame])
        for segment, pixels in zip(self.prediction.segments, self.pixels, strict=True):
            if pixels[page.frame]:
                yield Region(segment.mask[page.frame], segment.colour)
            for measurement in segment.measurements:
                if measurement.line is not None and measurement.frame == page.frame:
                    yield Line(measurement.line, segment.colour)
        for index, number, box in self._boxes(page):
            edges = box.left, box.top, box.right, box.bottom
            yield Rectangle(*edges, self.colours[index], str(number))

    def _boxes(self, page: _Page | None) -> Iterator[tuple[int, int, Box]]:
        """Index of the finding, number and box of those on the page."""
        for (index, place), number in self.numbers.items():
            box = self.prediction.findings[index].boxes[place]
            if page is not None and box.frame == page.frame:
                yield index, number, box

    def _about(self, frame: Frame) -> list[str]:
        lines = _numbered([frame.dataset], frame.index + 1 if frame.of > 1 else None)
        if self.left_out:
            lines.append(f"{len(self.pages)} of {len(self.pages) + self.left_out} key images shown")
        return lines


def _add(pages: list[_Page], page: _Page) -> None:
    """Another key frame; what is on one already shares its page, but for a second heat map."""
    for index, other in enumerate(pages):
        if other.frame == page.frame and (page.heat is None or other.heat in (None, page.heat)):
            pages[index] = other if page.heat is None else page
            return
    pages.append(page)


def _doubt(finding: Finding) -> tuple[bool, float]:
    """Orders findings: those present first, the most probable first."""
    return not finding.present, -(1.0 if finding.probability is None else finding.probability)


def _on_frame(measurement: Measurement) -> bool:
    return measurement.line is not None and measurement.frame is not None


def _colours(prediction: Prediction) -> list[Colour]:
    """One for each finding, unlike those of the segments while there are any left."""
    taken = [np.array(segment.colour, dtype=float) for segment in prediction.segments]
    free = [
        colour
        for colour in PALETTE
        if all(np.linalg.norm(colour - other) >= _TOO_ALIKE for other in taken)
    ]
    return [(free or PALETTE)[i % len(free or PALETTE)] for i in range(len(prediction.findings))]


def _of_finding(finding: Finding, boxes: Sequence[int], colour: Colour, heated: bool) -> Entry:
    """What the legend says of it: the verdict first, then what it stands on."""
    verdict = codes.PRESENT if finding.present else codes.ABSENT
    details = []
    if finding.probability is not None:
        chance, least = percentages(finding.probability, finding.threshold)
        details.append(f"probability {chance}" + (f", threshold {least}" if least else ""))
    if grade := graded(finding):
        details.append(grade)
    if finding.site:
        details.append(f"site: {finding.site.meaning}")
    if len(boxes) > 1:
        details.append(f"boxes on this image: {', '.join(map(str, boxes))}")
    elif finding.boxes and not boxes:
        details.append("its boxes are on other images")
    if heated:
        details.append("Heat map (Grad-CAM): how much each place spoke for it; not its outline")
    return Entry(
        f"{finding.label}: {verdict.meaning}",
        tuple(details),
        plain=f"{_coded(finding.code)}: {verdict.meaning}",
        colour=colour if finding.boxes else None,
        swatch="full" if boxes or (finding.present and not finding.boxes) else "hollow",
        scale=heated,
        key=str(boxes[0]) if len(boxes) == 1 else "",
        faded=not finding.present,
    )


def _of_segment(segment: Segment, frame: int | None, here: bool, anywhere: bool) -> Entry:
    """What the legend says of it: its measures, but areas of other frames."""
    details = []
    if anywhere:
        for measurement in segment.measurements:
            elsewhere = measurement.frame is not None and measurement.frame != frame
            if elsewhere and measurement.line is None:
                continue
            words = f"{measurement.name.meaning.lower()} "
            words += quantity(measurement.value, measurement.unit)
            details.append(f"{words}, on another image" if elsewhere else words)
        if not here:
            details.append("not on this image")
    plain = _coded(segment.type)
    if segment.laterality:
        plain = f"{segment.laterality.meaning} {plain}"
    missing = "" if anywhere else ": not found"
    return Entry(
        segment.label + missing,
        (", ".join(details),) if details else (),
        plain=plain + missing,
        colour=segment.colour,
        swatch="full" if here else "hollow",
        faded=not anywhere,
    )


def _coded(code: Code) -> str:
    """A name that can be drawn: the meaning, else the code itself."""
    return code.meaning if drawable(code.meaning) else f"{code.scheme} {code.value}"


def _words_only(
    legend: Sequence[Entry], prediction: Prediction, identity: Identity, dataset: Dataset
) -> Dataset:
    """A page without a picture."""
    title, note = _title(identity), _note(identity)
    datasets = list(identity.source.by_uid.values())
    footer = _footer(legend, _numbered(datasets), prediction, identity)
    pixels = overlay(None, (), legend, _heading(identity), note, footer=footer, sheet=WORDS_SHEET)
    _describe(dataset, pixels, [title, note, *_lines(legend), *footer], identity)
    dataset.PatientOrientation = ""
    if len(datasets) <= MAX_NAMED_IMAGES:
        dataset.SourceImageSequence = [
            _source_image(FrameRef(str(ds.SOPInstanceUID), str(ds.SOPClassUID)), Frame(ds))
            for ds in datasets
        ]
    return dataset


def _describe(
    dataset: Dataset, pixels: NDArray[np.uint8], words: Sequence[str], identity: Identity
) -> None:
    """General Image, SC Equipment, SC Image and Image Pixel modules (PS3.3 A.8.1.3, C.8.6).

    Pixel Spacing is left out on purpose: nothing shall be measured on a page.
    """
    model = identity.model
    # Required unless the body part is known to be no paired one, and empty where it is not known
    # (PS3.3 C.7.3.1, type 2C).
    dataset.Laterality = ""
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "WSD"
    dataset.BurnedInAnnotation = "YES"
    dataset.DerivationDescription = _clean(
        f"Result of {model.name} {model.version} drawn over the image, for people to look at",
        _SHORT_TEXT,
    )
    dataset.ImageComments = _clean("\n".join(filter(None, words)), _LONG_TEXT)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    data = pixels.tobytes()
    dataset.add_new(0x7FE00010, "OB", data + b"\0" * (len(data) % 2))
    fit_character_set(dataset, identity.source.first)


def _copy_loss(dataset: Dataset, source: Dataset) -> None:
    """What was once compressed with loss stays so (PS3.3 C.7.6.1.1.5)."""
    if source.get("LossyImageCompression") != "01":
        return
    dataset.LossyImageCompression = "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if source.get(keyword):
            setattr(dataset, keyword, source.get(keyword))


def _source_image(ref: FrameRef, frame: Frame) -> Dataset:
    """An item of Source Image Sequence (PS3.3 C.12.4)."""
    item = Dataset()
    item.ReferencedSOPClassUID = ref.sop_class_uid
    item.ReferencedSOPInstanceUID = ref.sop_instance_uid
    if frame.of > 1:
        item.ReferencedFrameNumber = ref.frame
    item.SpatialLocationsPreserved = "NO"  # enlarged, and set beside a legend
    item.PurposeOfReferenceCodeSequence = [coded(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    return item


def _title(identity: Identity) -> str:
    return f"{identity.model.title} {identity.model.version}"


def _heading(identity: Identity) -> str:
    """The title, or the model's short name where the title cannot be drawn."""
    model = identity.model
    return _title(identity) if drawable(model.title) else f"{model.name} {model.version}"


def _note(identity: Identity) -> str:
    return RESEARCH_USE if identity.model.research_only else ""


def _numbered(datasets: Sequence[Dataset], frame: int | None = None) -> list[str]:
    """Which images these are, by numbers that tell nothing of the patient; none where unknown."""
    series = {_number(Frame(dataset), "SeriesNumber") for dataset in datasets}
    number = _number(Frame(datasets[0]), "InstanceNumber") if len(datasets) == 1 else None
    told = [f"series {number}" for number in sorted(filter(None, series))[:3]]
    if len(datasets) > 1:
        told.append(f"{len(datasets)} images")
    told += [f"{name} {n}" for name, n in (("image", number), ("frame", frame)) if n is not None]
    return [", ".join(told).capitalize()] if told else []


def _footer(
    legend: Sequence[Entry], about: Sequence[str], prediction: Prediction, identity: Identity
) -> list[str]:
    """What holds for the whole page; the safety of the reading first."""
    lines = []
    if identity.context.incomplete_reason:
        lines.append(f"The study may be incomplete: {identity.context.incomplete_reason}")
    lines += [*prediction.notes, *about]
    if not all(map(drawable, (_title(identity), *_lines(legend), *lines))):
        lines.append("Some words cannot be drawn here; the image's comments hold them all.")
    return lines


def _lines(legend: Sequence[Entry]) -> list[str]:
    return [line for e in legend for line in (e.words, *(f"  {d}" for d in e.details))]


def _clean(words: str, most: int) -> str:
    """Without control characters, which would end a value or look like another."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in words)[:most]


def _frame(identity: Identity, ref: FrameRef) -> Frame:
    """The header of one frame, with its functional groups where they can be told."""
    dataset = identity.source.by_uid[ref.sop_instance_uid]
    count = _number(Frame(dataset), "NumberOfFrames") or 1
    try:
        return frames_of(dataset, count)[ref.frame - 1]
    except (ReadingError, IndexError):
        return Frame(dataset, ref.frame - 1, count)


def _number(frame: Frame, keyword: str) -> int | None:
    try:
        return integer(frame, keyword)
    except ReadingError:
        return None


def _aspect(frame: Frame) -> float:
    """Height of a pixel by its width; 1 where that is not known or cannot be."""
    try:
        spacing, _ = pixel_spacing(frame, str(frame.get("Modality") or ""))
        height, width = spacing or numbers(frame, "PixelAspectRatio", 2) or (1.0, 1.0)
        ratio = height / width
    except (ReadingError, ZeroDivisionError):
        return 1.0
    return ratio if math.isfinite(ratio) and 0.1 <= ratio <= 10 else 1.0


def _directions(frame: Frame) -> tuple[str, str] | None:
    """Where rows and columns run to in the patient (PS3.3 C.7.6.1.1.1), where that is known."""
    try:
        cosines = direction(frame)
        if cosines is None:
            return patient_orientation(frame)
    except ReadingError:
        return None
    return _letters(cosines[:3]), _letters(cosines[3:])


def _letters(cosines: Sequence[float]) -> str:
    """Letters of the axes that a direction runs along, the main one first, slight ones left out."""
    axes = sorted(range(3), key=lambda axis: -abs(cosines[axis]))
    return "".join(
        _LETTERS[axis][cosines[axis] > 0] for axis in axes if abs(cosines[axis]) > _SLIGHT
    )


def _sides(directions: tuple[str, str] | None) -> Sides | None:
    if directions is None:
        return None
    row, column = directions
    return Sides(row.translate(_OPPOSITE), column.translate(_OPPOSITE), row, column)
