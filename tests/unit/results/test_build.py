from collections.abc import Sequence

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

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
from dicom_node.errors import ResultError
from dicom_node.results.build import build_results, cannot
from dicom_node.results.encode import encode
from dicom_node.results.types import Source
from inference.display import shown
from inference.measure import measure, notes
from inference.reading import read
from inference.stored import dumps, loads
from inference.types import Box, Finding, Prediction
from tests import dicoms
from tests.results import CONTEXT, MODEL, PNEUMONIA, blob, built, errors, parse, segment, source_of
from tests.tid1500 import complaints, groups


@pytest.mark.parametrize(
    ("datasets", "unit", "number"),
    [
        (dicoms.ct_series(5, tilt=15.0)[::-1], "ml", "118565006 SCT"),
        ([dicoms.enhanced_ct(4, order=(2, 0, 3, 1))], "ml", "118565006 SCT"),
        ([dicoms.dx_image()], "mm2", "42798000 SCT"),
        ([dicoms.dx_image(spacing=None)], "{pixels}", "42798000 SCT"),
    ],
    ids=["CT series, upside down", "enhanced CT", "DX", "DX without spacing"],
)
def test_what_inference_reads_and_measures_becomes_objects(
    datasets: list[Dataset], unit: str, number: str, tmp_path
) -> None:
    stack = read(datasets)
    given = source_of(datasets)
    source = Source(given.datasets, given.digests, stack.frames)
    mask = blob(source)
    told = measure(mask, stack)
    prediction = Prediction((segment(mask, measurements=told),), notes=notes(stack))
    data = built(prediction, source)
    assert all(errors(d, tmp_path) == set() for d in data.values())

    seg = hd.seg.segread(data["seg"])
    for i, ref in enumerate(stack.frames):
        if "NumberOfFrames" in source.by_uid[ref.sop_instance_uid]:
            plane = seg.get_pixels_by_source_frame(ref.sop_instance_uid, [ref.frame])
        else:
            plane = seg.get_pixels_by_source_instance([ref.sop_instance_uid])
        assert np.array_equal(plane[0, :, :, 0].astype(bool), mask[i])

    report = parse(data["sr"])
    assert complaints(report) == []
    values = [
        float(item.MeasuredValueSequence[0].NumericValue)
        for group in groups(report)
        for item in group.ContentSequence
        if item.ValueType == "NUM"
        and item.ConceptNameCodeSequence[0].CodeValue == number.split(maxsplit=1)[0]
        and item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == unit
    ]
    assert values == [pytest.approx(told[0].value, rel=1e-5)]


def test_the_segmentation_comes_before_the_report_that_cites_it() -> None:
    source = source_of([dicoms.dx_image()])
    made = build_results(Prediction((segment(blob(source)),)), source, MODEL, CONTEXT)
    assert [thing.kind for thing in made] == ["seg", "sr"]
    for thing in made:
        assert thing.sop_instance_uid == thing.dataset.SOPInstanceUID
        assert thing.sop_class_uid == thing.dataset.SOPClassUID
        assert thing.series_instance_uid == thing.dataset.SeriesInstanceUID


ALL_FORMS = [
    *(SegForm(encoding) for encoding in Encoding if encoding is not Encoding.NONE),
    SegForm(Encoding.LABELMAP, Compression.RLE),
    SegForm(compression=Compression.JPEG2000),
    *(
        SrForm(document, identifiers, cites)
        for document in (Document.COMPREHENSIVE_3D, Document.ENHANCED)
        for identifiers in Identifiers
        for cites in (SegForm(), None)
    ),
    ScForm(),
]


def everything(source: Source) -> Prediction:
    """Segments that do not overlap with probabilities, a finding with boxes and saliency."""
    mask = blob(source)
    rng = np.random.default_rng(1)
    probability = rng.random(mask.shape).astype(np.float32)
    box = Box(0, 5.0, 6.0, 40.0, 41.5)
    finding = Finding(
        "P", PNEUMONIA, present=True, probability=0.7, boxes=(box,), saliency=probability
    )
    other = np.roll(mask, 7, axis=2) & ~mask
    return Prediction(
        (
            segment(mask, probability=probability),
            segment(other, "Other", probability=1 - probability),
        ),
        (finding,),
        notes=("A note.",),
    )


@pytest.mark.parametrize("datasets", [dicoms.ct_series(4), [dicoms.dx_image()]], ids=["CT", "DX"])
def test_a_kept_prediction_gives_the_same_bytes_in_every_form(datasets: list[Dataset]) -> None:
    stack = read(datasets)
    given = source_of(datasets)
    source = Source(given.datasets, given.digests, stack.frames)
    told = everything(source)
    again, frames, _ = loads(dumps(told, stack.frames, {}))
    assert frames == source.frames

    def made(prediction: Prediction, forms: Sequence[Form]) -> dict[str, bytes]:
        return {
            thing.sop_instance_uid: encode(thing.dataset)
            for thing in build_results(
                prediction, source, MODEL, CONTEXT, forms, lambda frame: shown(stack, frame)
            )
        }

    together = made(told, ALL_FORMS)
    assert len(together) >= len(ALL_FORMS)
    apart: dict[str, bytes] = {}
    for form in reversed(ALL_FORMS):
        apart |= made(again, [form])
    assert apart == together


def test_a_label_map_of_overlapping_segments_is_refused() -> None:
    source = source_of([dicoms.dx_image()])
    prediction = Prediction((segment(blob(source)), segment(blob(source), "Other")))
    assert cannot(prediction) == {Encoding.LABELMAP, Encoding.FRACTIONAL}
    for encoding, words in ((Encoding.LABELMAP, "overlap"), (Encoding.FRACTIONAL, "probabilities")):
        with pytest.raises(ResultError, match=words):
            build_results(prediction, source, MODEL, CONTEXT, [SegForm(encoding)])


def test_nothing_found_makes_no_segmentation_in_any_form() -> None:
    source = source_of([dicoms.dx_image()])
    nothing = segment(np.zeros_like(blob(source)), probability=blob(source).astype(np.float32))
    forms = [form for form in ALL_FORMS if isinstance(form, SegForm | SrForm)]
    made = build_results(Prediction((nothing,)), source, MODEL, CONTEXT, forms)
    assert {thing.kind for thing in made} == {"sr"}
