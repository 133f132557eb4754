import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.domain.profile import ScForm
from dicom_node.errors import ResultError
from dicom_node.results import codes
from dicom_node.results.capture import (
    MAX_PAGES,
    PALETTE,
    captures,
)
from dicom_node.results.encode import encode
from dicom_node.results.header import common
from dicom_node.results.identity import Identity
from dicom_node.results.types import ModelIdentity, Source
from inference.display import shown, window_of
from inference.reading import read
from inference.types import Box, Code, Finding, FrameRef, Measurement, Prediction, Segment
from tests import dicoms
from tests.results import (
    CONTEXT,
    HEART,
    LUNG,
    MODEL,
    PNEUMONIA,
    RIGHT,
    blob,
    errors,
    grid,
    parse,
    segment,
    source_of,
)

VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
MILLILITRE, MILLIMETRE = Code("ml", "UCUM", "milliliter"), Code("mm", "UCUM", "millimeter")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
GREEN = (60, 220, 120)


def grey(source: Source) -> Callable[[int], NDArray[np.uint8]]:
    """Every frame in one grey of its own."""
    return lambda frame: np.full(grid(source)[1:], 40 + frame, dtype=np.uint8)


def pages(
    prediction: Prediction,
    source: Source,
    picture: Callable[[int], NDArray[np.uint8]] | None = None,
    **changes: Any,
) -> list[Dataset]:
    """As any reader gets them."""
    identity = Identity(
        source, changes.pop("model", MODEL), dataclasses.replace(CONTEXT, **changes)
    )

    def header(page: int) -> Dataset:
        return common(ScForm(), SecondaryCaptureImageStorage, "OT", identity, page)

    made = captures(prediction, identity, picture or grey(source), header)
    return [parse(encode(page)) for page in made]


def never(frame: int) -> NDArray[np.uint8]:
    raise AssertionError(f"frame {frame} was asked for")


def radiograph() -> Source:
    return source_of([dicoms.dx_image()])


def stack(n: int = 9) -> Source:
    return source_of(dicoms.ct_series(n))


def found(*frames: int, index: int = 0, source: Source, **fields: Any) -> Finding:
    """A finding with a box on each of the frames."""
    boxes = tuple(Box(frame, 10, 10, 20 + index, 20) for frame in frames)
    return Finding("Pneumonia", PNEUMONIA, present=True, boxes=boxes, **fields)


def on(source: Source, *frames: int, **fields: Any) -> Segment:
    """A segment on some frames, larger on each than on the one before."""
    mask = np.zeros(grid(source), dtype=bool)
    for size, frame in enumerate(frames, 10):
        mask[frame, 10 : 10 + size, 10 : 10 + size] = True
    return segment(mask, **fields)


def heat(source: Source, frame: int) -> NDArray[np.float32]:
    values = np.zeros(grid(source), dtype=np.float32)
    values[:, 20:30, 20:30] = 0.5
    values[frame, 40:50, 40:50] = 1.0
    return values


def shown_frames(made: Sequence[Dataset], source: Source) -> list[int]:
    """Which frames the pages refer to, as indices into the source's frames."""
    places = {(ref.sop_instance_uid, ref.frame): i for i, ref in enumerate(source.frames)}
    return [
        places[item.ReferencedSOPInstanceUID, int(item.get("ReferencedFrameNumber", 1))]
        for page in made
        for item in page.SourceImageSequence
    ]


def has(page: Dataset, colour: tuple[int, int, int]) -> bool:
    """Whether the picture, not the legend, has a colour."""
    picture = page.pixel_array[:, : page.Columns - 388].astype(int)
    return bool((np.abs(picture - colour).sum(-1) < 24).any())


def sources() -> list[tuple[str, list[Dataset]]]:
    return [
        ("CT", dicoms.ct_series(3)),
        ("MR", [dicoms.mr_slice()]),
        ("DX", [dicoms.dx_image()]),
        ("MG", [dicoms.dx_image(modality="MG")]),
        ("CR", [dicoms.dx_image(modality="CR", photometric="MONOCHROME1")]),
        ("US", [dicoms.us_image()]),
        ("US clip", [dicoms.us_clip(3, colour=True)]),
        ("enhanced CT", [dicoms.enhanced_ct(3)]),
        ("legacy", [dicoms.legacy_enhanced_ct(dicoms.ct_series(3))]),
    ]


@pytest.mark.parametrize(("name", "datasets"), sources(), ids=[name for name, _ in sources()])
def test_a_page_has_no_error_that_its_source_has_not(
    name: str, datasets: list[Dataset], tmp_path: Path
) -> None:
    image_stack = read(datasets)
    source = dataclasses.replace(source_of(datasets), frames=image_stack.frames)

    def picture(frame: int) -> NDArray[np.uint8]:
        ref = source.frames[frame]
        return shown(image_stack, frame, window_of(source.by_uid[ref.sop_instance_uid], ref.frame))

    last = len(source.frames) - 1
    prediction = Prediction(
        segments=(segment(blob(source, 1), measurements=(_length(last),)),),
        findings=(found(0, source=source, probability=0.8, saliency=heat(source, last)),),
    )
    known = set().union(*(errors(ds, tmp_path) for ds in datasets))
    identity = Identity(source, MODEL, CONTEXT)
    for case, frames in ((prediction, len(source.frames)), (_nothing(source), 1)):
        made = captures(
            case,
            identity,
            picture,
            lambda page: common(ScForm(), SecondaryCaptureImageStorage, "OT", identity, page),
        )
        assert 1 <= len(made) <= frames
        for page in made:
            assert errors(encode(page), tmp_path) - known == set()


def _length(frame: int) -> Measurement:
    return Measurement(LONG_AXIS, 23.42, MILLIMETRE, frame, ((12.0, 30.0), (40.0, 35.0)))


def _nothing(source: Source) -> Prediction:
    return Prediction(
        segments=(segment(np.zeros(grid(source), dtype=bool), "Effusion"),),
        findings=(Finding("Pneumonia", PNEUMONIA, present=False, probability=0.03, threshold=0.5),),
    )


def test_a_page_says_what_it_is_and_what_it_was_made_of() -> None:
    source = radiograph()
    (page,) = pages(Prediction(findings=(found(0, source=source),)), source)
    assert page.SOPClassUID == SecondaryCaptureImageStorage
    assert page.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert list(page.ImageType) == ["DERIVED", "SECONDARY"]
    assert (page.ConversionType, page.Modality, page.BurnedInAnnotation) == ("WSD", "OT", "YES")
    assert (page.PhotometricInterpretation, page.BitsAllocated) == ("RGB", 8)
    assert page.DerivationDescription and page.Laterality == ""
    assert "NumberOfFrames" not in page and "PixelSpacing" not in page
    (item,) = page.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == source.first.SOPInstanceUID
    assert "ReferencedFrameNumber" not in item
    assert item.SpatialLocationsPreserved == "NO"


def test_a_page_of_a_multi_frame_source_names_its_frame() -> None:
    source = source_of([dicoms.us_clip(6)])
    (page,) = pages(Prediction(segments=(on(source, 4),)), source)
    assert page.SourceImageSequence[0].ReferencedFrameNumber == 5
    assert "Series 1, image 1, frame 5" in page.ImageComments


def test_a_page_is_of_moderate_size() -> None:
    source = source_of([dicoms.dx_image(np.zeros((2000, 300), np.uint16))])
    (page,) = pages(Prediction(findings=(found(0, source=source),)), source)
    assert page.Columns <= 1280 and page.Rows <= 960
    assert len(page.PixelData) == page.Rows * page.Columns * 3 <= 3.6 * 2**20


def test_key_frames_are_those_with_something_to_see() -> None:
    source = stack()
    prediction = Prediction(
        segments=(
            on(source, 1, 2, 3, colour=GREEN),
            on(source, 6, measurements=(_length(5),)),
            on(source),
        ),
        findings=(found(0, 3, source=source), found(source=source, saliency=heat(source, 8))),
    )
    assert shown_frames(pages(prediction, source), source) == [0, 3, 5, 6, 8]


def test_what_lies_on_one_frame_shares_a_page() -> None:
    source = radiograph()
    prediction = Prediction(
        segments=(on(source, 0, colour=GREEN, measurements=(_length(0),)),),
        findings=(found(0, source=source, saliency=heat(source, 0)),),
    )
    (page,) = pages(prediction, source)
    assert has(page, GREEN) and has(page, PALETTE[0])


def test_a_second_heat_map_of_a_frame_has_a_page_of_its_own() -> None:
    source = radiograph()
    one = found(source=source, saliency=heat(source, 0), probability=0.6)
    other = dataclasses.replace(one, label="Effusion", probability=0.9)
    first, second = pages(Prediction(findings=(one, other)), source)
    assert shown_frames([first, second], source) == [0, 0]
    texts = [page.ImageComments for page in (first, second)]
    assert [text.count("Heat map") for text in texts] == [1, 1]
    assert texts[0].index("Effusion") < texts[0].index("Heat map") < texts[0].index("Pneumonia")


def test_the_heat_of_what_is_absent_is_not_shown() -> None:
    source = radiograph()
    absent = Finding("Pneumonia", PNEUMONIA, present=False, saliency=heat(source, 0))
    (page,) = pages(Prediction(findings=(absent,)), source)
    assert "Heat map" not in page.ImageComments
    assert not np.ptp(page.pixel_array[400:500, 300:600])


def test_a_heat_map_of_nothing_makes_no_page() -> None:
    source = stack()
    empty = found(source=source, saliency=np.zeros(grid(source), np.float32))
    (page,) = pages(Prediction(findings=(empty,), segments=(on(source, 2),)), source)
    assert shown_frames([page], source) == [2]


def test_there_are_no_more_pages_than_a_reader_leafs_through() -> None:
    source = stack(20)
    prediction = Prediction(
        segments=(on(source, 19),), findings=(found(*range(12), source=source, probability=0.9),)
    )
    made = pages(prediction, source)
    assert shown_frames(made, source) == [0, 1, 2, 3, 4, 19], "each has its first page first"
    assert len(made) == MAX_PAGES
    assert all("6 of 13 key images shown" in page.ImageComments for page in made)


def test_pages_differ_in_uid_and_number() -> None:
    source = stack()
    made = pages(Prediction(findings=(found(1, 4, 7, source=source),)), source)
    assert len({page.SOPInstanceUID for page in made}) == 3
    assert len({page.InstanceNumber for page in made}) == 3
    assert len({page.SeriesInstanceUID for page in made}) == 1


def test_nothing_found_shows_the_middle_and_what_was_looked_for() -> None:
    source = stack(9)
    (page,) = pages(_nothing(source), source)
    assert shown_frames([page], source) == [4]
    lines = page.ImageComments.splitlines()
    assert lines.index("Nothing found") < lines.index("Pneumonia: Absent")
    assert "  probability 3 %, threshold 50 %" in lines
    assert "Effusion: not found" in lines


def test_a_finding_without_a_place_is_told_on_the_middle_frame() -> None:
    source = stack(9)
    (page,) = pages(Prediction(findings=(found(source=source),)), source)
    assert shown_frames([page], source) == [4]
    assert "Nothing found" not in page.ImageComments


@pytest.mark.parametrize("read_", [True, False])
def test_not_analysed_gives_the_reason_and_no_picture(read_: bool) -> None:
    source = source_of(dicoms.ct_series(3), read=read_)
    reason = "Not analysed by Lungs on radiographs 1.2.0: it has no frames."
    (page,) = pages(Prediction(not_analysed=reason), source, never)
    assert "Not analysed\nIt has no frames." in page.ImageComments
    assert "Research use, not for diagnosis" in page.ImageComments
    assert "Series 1, 3 images" in page.ImageComments
    assert len(page.SourceImageSequence) == 3
    assert page.PatientOrientation in ("", None)
    assert np.ptp(page.pixel_array) > 100


def test_a_page_of_many_images_names_none_of_them() -> None:
    source = source_of(dicoms.ct_series(12), read=False)
    (page,) = pages(Prediction(not_analysed="because"), source, never)
    assert "SourceImageSequence" not in page


def test_a_prediction_that_says_nothing_is_refused() -> None:
    with pytest.raises(ResultError, match="says nothing"):
        pages(Prediction(), radiograph())


@pytest.mark.parametrize("frame", [-1, 9])
def test_a_box_or_length_on_a_frame_that_is_not_there_is_refused(frame: int) -> None:
    source = stack(9)
    with pytest.raises(ResultError, match="frame"):
        pages(Prediction(findings=(found(frame, source=source),)), source)
    with pytest.raises(ResultError, match="frame"):
        pages(Prediction(segments=(on(source, 1, measurements=(_length(frame),)),)), source)


def test_arrays_of_another_source_are_refused() -> None:
    source, other = stack(9), stack(8)
    with pytest.raises(ResultError, match="8 frames"):
        pages(Prediction(segments=(on(other, 1),)), source)
    with pytest.raises(ResultError, match="8 frames"):
        pages(Prediction(findings=(found(source=source, saliency=heat(other, 1)),)), source)


def test_the_legend_tells_verdict_probability_threshold_and_grade() -> None:
    finding = Finding(
        "Pneumonia",
        PNEUMONIA,
        present=True,
        probability=0.8765,
        threshold=0.5,
        severity=codes.MODERATE,
        score=3.25,
        site=LUNG,
    )
    (page,) = pages(Prediction(findings=(finding,), notes=("A note.",)), radiograph())
    assert page.ImageComments.splitlines() == [
        "Lungs on radiographs 1.2.0",
        "Research use, not for diagnosis",
        "Pneumonia: Present",
        "  probability 88 %, threshold 50 %",
        "  severity moderate, score 3.25",
        "  site: Lung",
        "A note.",
        "Series 1, image 1",
    ]


def test_the_legend_tells_the_measures_of_what_is_shown() -> None:
    source = stack(4)
    told = (
        Measurement(VOLUME, 1234.5, MILLILITRE),
        Measurement(codes.AREA, 250.0, SQUARE_MILLIMETRE, frame=1),
        Measurement(codes.AREA, 12_345.0, SQUARE_MILLIMETRE, frame=2),
        _length(0),
    )
    first, second = pages(Prediction(segments=(on(source, 1, 2, measurements=told),)), source)
    assert "Heart\n  volume 1,234 ml, long axis 23.4 mm, not on this image" in first.ImageComments
    assert (
        "Heart\n  volume 1,234 ml, area 123 cm², long axis 23.4 mm, on another image"
        in second.ImageComments
    )


def test_an_incomplete_study_is_told() -> None:
    source = radiograph()
    (page,) = pages(_nothing(source), source, incomplete_reason="silent for 60 s")
    assert "The study may be incomplete: silent for 60 s" in page.ImageComments


def test_only_a_model_that_claims_otherwise_has_no_warning() -> None:
    source = radiograph()
    cleared = dataclasses.replace(MODEL, research_only=False)
    (warned,), (bare,) = (
        pages(_nothing(source), source),
        pages(_nothing(source), source, model=cleared),
    )
    assert "Research use" in warned.ImageComments and "Research use" not in bare.ImageComments
    amber = (255, 183, 77)
    assert (warned.pixel_array == amber).all(-1).sum() > 500
    assert not (bare.pixel_array == amber).all(-1).any()


def test_a_structure_has_the_colour_that_its_segmentation_recommends() -> None:
    source = stack(3)
    (page,) = pages(Prediction(segments=(on(source, 1, colour=GREEN),)), source)
    legend = page.pixel_array[:, -360:].reshape(-1, 3)
    assert has(page, GREEN) and (legend == GREEN).all(1).any()


def test_findings_avoid_the_colours_of_structures() -> None:
    source = radiograph()
    prediction = Prediction(
        segments=(on(source, 0, colour=PALETTE[0]),), findings=(found(0, source=source),)
    )
    (page,) = pages(prediction, source)
    assert has(page, PALETTE[1]) and not has(page, PALETTE[2])


def test_no_attribute_of_the_patient_is_burned_in_or_commented() -> None:
    """Two patients with the same image: their pages are the same to the pixel."""

    def made(**attributes: Any) -> Dataset:
        source = source_of([dicoms.dx_image(sop_uid="1.2.3", study_uid="1.2", **attributes)])
        prediction = Prediction(findings=(found(0, source=source),))
        return pages(prediction, source)[0]

    one = made()
    other = made(
        PatientName="Secret^Patient",
        patient_id="SECRET",
        PatientBirthDate="19010203",
        PatientSex="F",
        PatientAge="099Y",
        AccessionNumber="SECRET",
        StudyDescription="Secret",
        SeriesDescription="Secret",
        StudyDate="19990101",
        ReferringPhysicianName="Secret",
        InstitutionName="Secret",
        ImageComments="Secret",
        ProtocolName="Secret",
    )
    assert other.PatientName == "Secret^Patient"
    assert other.PixelData == one.PixelData
    assert other.ImageComments == one.ImageComments


@pytest.mark.parametrize("keyword", ["SeriesNumber", "InstanceNumber"])
def test_a_number_that_is_none_is_not_burned_in(keyword: str) -> None:
    ds = dicoms.dx_image()
    ds[keyword].VR = "LO"
    ds[keyword].value = "Secret^Patient"
    source = source_of([ds])
    (page,) = pages(_nothing(source), source)
    assert "Secret" not in page.ImageComments


def test_words_that_cannot_be_drawn_are_kept_in_the_comments() -> None:
    source = radiograph()
    japanese = Finding("肺炎", PNEUMONIA, present=True)
    (page,) = pages(Prediction(findings=(japanese,)), source)
    (english,) = pages(
        Prediction(findings=(dataclasses.replace(japanese, label="Pneumonia"),)), source
    )
    assert "肺炎: Present" in page.ImageComments
    assert "cannot be drawn here" in page.ImageComments
    assert "cannot be drawn here" not in english.ImageComments
    top = slice(0, 600)  # above the footer they are the same
    assert (page.pixel_array[top] == english.pixel_array[top]).all()


def test_a_japanese_label_fits_a_latin_study() -> None:
    source = source_of([dicoms.dx_image(SpecificCharacterSet="ISO_IR 100")])
    (page,) = pages(Prediction(segments=(on(source, 0, label="心臓"),)), source)
    assert page.SpecificCharacterSet == "ISO_IR 192"
    assert "心臓" in page.ImageComments


def test_a_side_and_structure_stand_for_a_label_that_cannot_be_drawn() -> None:
    source = radiograph()
    fields: dict[str, Any] = {"type": LUNG, "laterality": RIGHT}
    (one,) = pages(Prediction(segments=(on(source, 0, label="右肺", **fields),)), source)
    (other,) = pages(Prediction(segments=(on(source, 0, label="Right Lung", **fields),)), source)
    assert (one.pixel_array[:600] == other.pixel_array[:600]).all()


def test_texts_of_any_length_leave_the_warning_in_its_place() -> None:
    source = radiograph()
    model = ModelIdentity("lung", "1" * 300, "T" * 500, "M", "0" * 64)
    finding = Finding("x" * 9000, HEART, present=True)
    long = Prediction(findings=(finding,) * 60, notes=("n" * 9000,) * 60)
    (page,) = pages(long, source, model=model)
    (short,) = pages(_nothing(source), source)
    assert (page.pixel_array[-70:, -360:] == short.pixel_array[-70:, -360:]).all()
    assert len(page.ImageComments) <= 10_240


@pytest.mark.parametrize(
    ("datasets", "expected"),
    [
        (dicoms.ct_series(1), ["L", "P"]),
        (dicoms.ct_series(1, tilt=20), ["L", "PH"]),
        ([dicoms.dx_image(patient_orientation=("R", "F"))], ["R", "F"]),
        ([dicoms.dx_image(modality="MG")], ["A", "R"]),
        ([dicoms.us_image()], []),
    ],
)
def test_a_page_is_oriented_as_its_source_is(datasets: list[Dataset], expected: list[str]) -> None:
    source = source_of(datasets)
    (page,) = pages(Prediction(segments=(on(source, 0),)), source)
    assert list(page.PatientOrientation or []) == expected


def test_pixels_that_are_not_square_are_shown_as_the_patient_is() -> None:
    source = source_of([dicoms.us_image(spacing_cm=(0.04, 0.02))])
    (page,) = pages(Prediction(segments=(on(source, 0, colour=GREEN),)), source)
    picture = page.pixel_array[:, : page.Columns - 388].astype(int)
    rows, columns = np.nonzero(np.abs(picture - GREEN).sum(-1) < 24)
    assert np.ptp(rows) == pytest.approx(2 * np.ptp(columns), rel=0.05)


def test_what_was_compressed_with_loss_stays_so() -> None:
    source = source_of(
        [dicoms.dx_image(LossyImageCompression="01", LossyImageCompressionRatio="12")]
    )
    (page,) = pages(_nothing(source), source)
    assert (page.LossyImageCompression, page.LossyImageCompressionRatio) == ("01", 12)


def test_the_same_input_gives_the_same_bytes() -> None:
    source = stack()
    prediction = Prediction(
        segments=(on(source, 1, 2, measurements=(_length(1),)),),
        findings=(found(0, source=source, saliency=heat(source, 3)),),
    )
    identity = Identity(source, MODEL, CONTEXT)

    def made() -> list[bytes]:
        return [
            encode(page)
            for page in captures(
                prediction,
                identity,
                grey(source),
                lambda n: common(ScForm(), SecondaryCaptureImageStorage, "OT", identity, n),
            )
        ]

    assert made() == made()


def test_a_page_of_a_large_ct_takes_no_time_to_speak_of() -> None:
    first = dicoms.ct_slice(Rows=512, Columns=512)
    refs = [FrameRef(f"1.2.3.{i}", dicoms.CT) for i in range(100)]
    datasets = [
        dicoms.ct_slice(sop_uid=ref.sop_instance_uid, Rows=512, Columns=512) for ref in refs
    ]
    assert datasets[0].StudyInstanceUID == first.StudyInstanceUID
    source = Source(tuple(datasets), ("0" * 64,) * 100, tuple(refs))
    mask = np.zeros((100, 512, 512), dtype=bool)
    mask[20:80, 100:400, 100:400] = True
    identity = Identity(source, MODEL, CONTEXT)
    prediction = Prediction(segments=(segment(mask),) * 3)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        made = captures(
            prediction,
            identity,
            grey(source),
            lambda n: common(ScForm(), SecondaryCaptureImageStorage, "OT", identity, n),
        )
        taken.append((time.perf_counter() - start) / len(made))
    assert min(taken) < 1  # a tenth of it on a quiet machine; a copy of the volume would show
