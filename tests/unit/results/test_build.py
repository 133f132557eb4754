import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.results.build import build_results
from dicom_node.results.types import Source
from inference.measure import measure, notes
from inference.reading import read
from inference.types import Prediction
from tests import dicoms
from tests.results import CONTEXT, MODEL, blob, built, errors, parse, segment, source_of
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
