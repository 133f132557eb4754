import dataclasses
from collections import Counter
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Document, Encoding, Identifiers, SegForm, SrForm
from dicom_node.errors import ResultError
from dicom_node.results import codes
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.evidence import reference
from dicom_node.results.statements import FREEHAND, LENGTH, RECTANGLE
from dicom_node.results.types import Source
from inference.types import Box, Code, Finding, Measurement, Prediction
from tests import dicoms
from tests.results import (
    CONTEXT,
    LEFT,
    LUNG,
    MODEL,
    PNEUMONIA,
    RIGHT,
    blob,
    built,
    dsrdump,
    errors,
    grid,
    parse,
    segment,
    source_of,
    two_segments,
)
from tests.tid1500 import children, complaints, descendants, groups

PLAIN = SrForm(identifiers=Identifiers.PLAIN)
VIEWER = SrForm()
ENHANCED = SrForm(Document.ENHANCED)

VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("ml", "UCUM", "milliliter")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
MEAN = Code("373098007", "SCT", "Mean")


def radiograph() -> Source:
    return source_of([dicoms.dx_image()])


def stack(n: int = 4) -> Source:
    return source_of(dicoms.ct_series(n))


def lungs(source: Source) -> Prediction:
    area = Measurement(codes.AREA, 12345.678901, SQUARE_MILLIMETRE, frame=0)
    return Prediction(
        segments=(
            segment(blob(source, 1), "R", type=LUNG, laterality=RIGHT, measurements=(area,)),
            segment(np.zeros(grid(source), dtype=bool), "L", type=LUNG, laterality=LEFT),
        ),
        notes=("Areas are measured at the detector's plane.",),
    )


def volumes(source: Source) -> Prediction:
    told = (
        Measurement(VOLUME, 321.5, MILLILITRE),
        Measurement(MEAN, -650.0, HOUNSFIELD, frame=2),
    )
    return Prediction(segments=(segment(blob(source, 1), "Heart", measurements=told),))


def graded(_: Source) -> Prediction:
    return Prediction(
        findings=(
            Finding(
                "Pneumonia",
                PNEUMONIA,
                present=True,
                probability=0.87654321,
                threshold=0.5,
                severity=codes.MODERATE,
                score=3.5,
                boxes=(Box(0, 10.5, 20, 30, 45.25), Box(0, 40, 20, 60, 45)),
                site=Code("39607008", "SCT", "Lung"),
            ),
            Finding(
                "Effusion",
                Code("60046008", "SCT", "Pleural effusion"),
                present=False,
                probability=0.01,
                threshold=0.4,
            ),
        )
    )


def nothing(source: Source) -> Prediction:
    return Prediction(segments=(segment(np.zeros(grid(source), dtype=bool)),))


def refused(_: Source) -> Prediction:
    return Prediction(
        not_analysed="The view is lateral; this model reads frontal ones.", notes=("Note.",)
    )


CASES = {
    "areas on a radiograph": (radiograph, lungs),
    "volumes in a stack": (stack, volumes),
    "findings": (radiograph, graded),
    "findings in a stack": (lambda: stack(12), graded),
    "nothing found": (radiograph, nothing),
    "nothing found in a stack": (lambda: stack(12), nothing),
    "not analysed": (lambda: source_of([dicoms.dx_image()], read=False), refused),
    "ultrasound clip": (lambda: source_of([dicoms.us_clip(3)]), two_segments),
    "enhanced": (lambda: source_of([dicoms.enhanced_ct(3)]), volumes),
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest) -> tuple[Source, Prediction]:
    make_source, make_prediction = CASES[request.param]
    source = make_source()
    return source, make_prediction(source)


def report(
    prediction: Prediction, source: Source, form: SrForm = PLAIN, **changes: object
) -> Dataset:
    context = dataclasses.replace(CONTEXT, **changes)  # type: ignore[arg-type] # any field
    (made,) = build_results(prediction, source, MODEL, context, [form])
    return parse(encode(made.dataset))


def number(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def meaning(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def texts(item: Dataset, name: str) -> list[str]:
    return [child.TextValue for child in children(item, "TEXT", name)]


class TestEveryReport:
    @pytest.mark.parametrize("form", [PLAIN, VIEWER], ids=str)
    def test_the_templates_are_kept(self, case: tuple[Source, Prediction], form: SrForm) -> None:
        source, prediction = case
        assert complaints(report(prediction, source, form)) == []

    @pytest.mark.parametrize("form", [PLAIN, VIEWER, ENHANCED], ids=str)
    def test_dciodvfy_has_no_error(
        self, case: tuple[Source, Prediction], form: SrForm, tmp_path: Path
    ) -> None:
        source, prediction = case
        assert errors(report(prediction, source, form), tmp_path) == set()

    @pytest.mark.parametrize("form", [PLAIN, VIEWER, ENHANCED], ids=str)
    def test_dcmtk_reads_it(self, case: tuple[Source, Prediction], form: SrForm) -> None:
        source, prediction = case
        (made,) = build_results(prediction, source, MODEL, CONTEXT, [form])
        told = dsrdump(encode(made.dataset))
        kind = "Enhanced" if form is ENHANCED else "Comprehensive 3D"
        assert f"{kind} SR Document" in told
        assert "Research use, not for diagnosis." in told

    def test_a_viewer_finds_coordinates_for_every_tracking_uid_that_it_looks_at(
        self, case: tuple[Source, Prediction]
    ) -> None:
        """OHIF 3.13 fails on a report with a measurement group that has none."""
        source, prediction = case
        drawn: dict[str, bool] = {}
        made = report(prediction, source, VIEWER)
        for group in groups(made):
            (tracked,) = children(group, "UIDREF", "112040 DCM")
            here = bool(descendants(group, "SCOORD"))
            drawn[tracked.UID] = drawn.get(tracked.UID, here)  # the drawn group comes first
        assert all(drawn.values())
        title = made.ConceptNameCodeSequence[0].CodeValue
        assert title == ("126000" if drawn else "111017")

    def test_viewers_and_plain_readers_are_told_the_same(
        self, case: tuple[Source, Prediction]
    ) -> None:
        source, prediction = case

        def said(form: SrForm) -> Counter[tuple[str, str]]:
            items = descendants(report(prediction, source, form))
            numbers = [("number", str(number(i))) for i in items if i.ValueType == "NUM"]
            verdicts = [
                (str(i.ConceptNameCodeSequence[0].CodeValue), meaning(i))
                for i in items
                if i.ValueType == "CODE" and meaning(i) in ("Present", "Absent", "Moderate")
            ]
            return Counter(numbers + verdicts)

        assert said(PLAIN) == said(VIEWER)

    def test_highdicom_reads_it(self, case: tuple[Source, Prediction]) -> None:
        source, prediction = case
        read = hd.sr.Comprehensive3DSR.from_dataset(report(prediction, source))
        assert isinstance(read.content, hd.sr.MeasurementReport)
        (observer,) = read.content.get_observer_contexts()
        assert observer.observer_type.value == codes.DEVICE.value
        found = read.content.get_image_measurement_groups()
        assert len(found) == len(groups(read, "1501"))

    def test_every_reference_stands_in_the_evidence(self, case: tuple[Source, Prediction]) -> None:
        source, prediction = case
        objects = {kind: parse(data) for kind, data in built(prediction, source).items()}
        evidence = {
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for study in objects["sr"].CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        }
        cited = {
            (str(ref.ReferencedSOPClassUID), str(ref.ReferencedSOPInstanceUID))
            for image in descendants(objects["sr"], "IMAGE")
            for ref in image.ReferencedSOPSequence
        }
        assert cited <= evidence
        assert {str(ds.SOPInstanceUID) for ds in source.datasets} <= {uid for _, uid in cited}
        if "seg" in objects:
            assert str(objects["seg"].SOPInstanceUID) in {uid for _, uid in evidence}

    def test_no_reference_names_frames_and_segments_together(
        self, case: tuple[Source, Prediction]
    ) -> None:
        for image in descendants(report(case[1], case[0]), "IMAGE"):
            ref = image.ReferencedSOPSequence[0]
            assert not ("ReferencedFrameNumber" in ref and "ReferencedSegmentNumber" in ref)

    def test_every_group_names_its_algorithm(self, case: tuple[Source, Prediction]) -> None:
        for group in groups(report(case[1], case[0])):
            assert texts(group, "111001 DCM") == ["lung"]
            assert texts(group, "111003 DCM") == ["1.2.0"]
            assert {"left lung=0.4", "right lung=0.5"} <= set(texts(group, "111002 DCM"))

    def test_a_machine_made_it_and_nobody_verified_it(
        self, case: tuple[Source, Prediction]
    ) -> None:
        made = report(case[1], case[0])
        flags = made.CompletionFlag, made.VerificationFlag, made.PreliminaryFlag
        assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
        (equipment,) = made.ContributingEquipmentSequence
        (device,) = children(made, "UIDREF", "121012 DCM")
        assert equipment.DeviceUID == device.UID


def test_segment_and_report_share_the_tracking_uid() -> None:
    source = stack()
    objects = {kind: parse(data) for kind, data in built(volumes(source), source).items()}
    (item,) = objects["seg"].SegmentSequence
    told = {
        child.UID
        for group in groups(objects["sr"])
        for child in children(group, "UIDREF", "112040 DCM")
    }
    assert told == {item.TrackingUID}


def test_every_number_of_the_model_stands_once() -> None:
    for source, prediction in (
        (radiograph(), lungs(radiograph())),
        (stack(), volumes(stack())),
        (radiograph(), graded(radiograph())),
    ):
        told = Counter(number(item) for item in descendants(report(prediction, source), "NUM"))
        given = [m.value for s in prediction.segments for m in s.measurements]
        given += [v for f in prediction.findings for v in (f.probability, f.score) if v is not None]
        for value in given:
            assert told[float(f"{value:.6g}")] == 1
        assert all(count == 1 for count in told.values())


def test_a_radiographs_area_is_drawn_and_its_frame_referred_to() -> None:
    source = radiograph()
    mask = np.zeros(grid(source), dtype=bool)
    mask[0, 10:40, 10:30] = True
    given = Measurement(codes.AREA, 600.5, SQUARE_MILLIMETRE, frame=0)
    prediction = Prediction((segment(mask, "R", measurements=(given,)),))
    made = report(prediction, source)
    drawn = groups(made, "1501")[0]
    assert texts(drawn, "112039 DCM") == ["R"]
    first = groups(report(prediction, source, VIEWER))[0]
    assert texts(first, "112039 DCM") == [FREEHAND]
    (area,) = children(drawn, "NUM")
    (outline,) = children(area, "SCOORD")
    assert outline.GraphicType == "POLYLINE"
    points = np.array(outline.GraphicData).reshape(-1, 2)
    assert np.array_equal(points[0], points[-1])
    assert points.max(axis=0).tolist() <= [source.first.Columns, source.first.Rows]
    (on,) = children(outline, "IMAGE")
    assert on.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.first.SOPInstanceUID
    (referred,) = groups(made, "1410")
    assert texts(referred, "112039 DCM") == ["R"]
    assert not children(referred, "NUM")
    (frame,) = children(referred, "IMAGE", "121214 DCM")
    assert frame.ReferencedSOPSequence[0].ReferencedFrameNumber == 1


def test_the_side_is_in_the_finding_where_one_code_holds_both() -> None:
    source = radiograph()
    found = [
        meaning(children(g, "CODE", "121071 DCM")[0]) for g in groups(report(lungs(source), source))
    ]
    assert found == ["Right lung", "Right lung", "Left lung"]


def test_the_side_stands_at_the_site_elsewhere() -> None:
    source = radiograph()
    breast = Code("76752008", "SCT", "Breast")
    prediction = Prediction((segment(blob(source), "B", type=breast, laterality=LEFT),))
    for group in groups(report(prediction, source)):
        (site,) = children(group, "CODE", "363698007 SCT")
        assert meaning(site) == "Breast"
        assert [meaning(side) for side in children(site)] == ["Left"]


def test_a_segment_without_a_pixel_is_absent() -> None:
    source = radiograph()
    absent = groups(report(lungs(source), source))[-1]
    assert texts(absent, "112039 DCM") == ["L"]
    assert [meaning(c) for c in children(absent, "CODE", "44029006 SCT")] == ["Absent"]
    (image,) = children(absent, "IMAGE")
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.first.SOPInstanceUID


def test_a_volume_is_referred_to_and_its_largest_slice_drawn() -> None:
    source = stack()
    mask = blob(source, 1)
    mask[2, 20:50, 5:60] = True
    mask[2] = np.logical_or.accumulate(mask[2], axis=1)  # one region
    prediction = Prediction(
        (segment(mask, measurements=(Measurement(VOLUME, 321.5, MILLILITRE),)),)
    )
    made = report(prediction, source)
    (drawn,), (referred,) = groups(made, "1501"), groups(made, "1411")
    (area,) = children(drawn, "NUM")
    # 1 mm pixels: the area of the slice is its count of pixels.
    assert number(area) == mask[2].sum()
    on = descendants(area, "IMAGE")[0].ReferencedSOPSequence[0]
    assert on.ReferencedSOPInstanceUID == source.frames[2].sop_instance_uid
    assert [number(n) for n in children(referred, "NUM")] == [321.5]
    (target,) = children(referred, "IMAGE", "121191 DCM")
    assert target.ReferencedSOPSequence[0].ReferencedSegmentNumber == 1


def test_a_number_of_one_slice_names_it() -> None:
    source = stack()
    (referred,) = groups(report(volumes(source), source), "1411")
    mean = next(n for n in children(referred, "NUM") if number(n) == -650)
    (image,) = children(mean, "IMAGE")
    cited = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert cited == source.frames[2].sop_instance_uid


def test_without_spacing_the_area_counts_pixels() -> None:
    source = source_of([dicoms.dx_image(spacing=None)])
    mask = blob(source)
    drawn = groups(report(Prediction((segment(mask),)), source), "1501")[0]
    (area,) = children(drawn, "NUM")
    unit = area.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
    assert (number(area), unit.CodeValue) == (mask.sum(), "{pixels}")


def test_several_regions_are_drawn_each_with_its_own_area_the_largest_first() -> None:
    source = source_of([dicoms.dx_image(spacing=None)])
    mask = np.zeros(grid(source), dtype=bool)
    mask[0, 10:20, 10:20] = mask[0, 30:60, 10:40] = True
    mask[0, 90, 70] = True  # below a hundredth of the largest: not drawn, and counted
    made = report(Prediction((segment(mask),)), source)
    drawn = groups(made, "1501")
    boxes = [np.array(descendants(g, "SCOORD")[0].GraphicData).reshape(-1, 2) for g in drawn]
    assert [(b.min(0).tolist(), b.max(0).tolist()) for b in boxes] == [
        ([10, 30], [40, 60]),
        ([10, 10], [20, 20]),
    ]
    assert [number(descendants(g, "NUM")[0]) for g in drawn] == [900, 100]
    (whole,) = groups(made, "1410")
    assert [number(n) for n in children(whole, "NUM")] == [1001]
    tracked = [children(g, "UIDREF", "112040 DCM")[0].UID for g in (*drawn, whole)]
    assert tracked[0] == tracked[2] != tracked[1]


def test_the_longest_diameter_is_drawn_where_it_was_measured() -> None:
    source = radiograph()
    mask = np.zeros(grid(source), dtype=bool)
    mask[0, 10:20, 10:50] = True
    axis = Code("103339001", "SCT", "Long Axis")
    line = ((10.0, 10.0), (50.0, 20.0))
    told = Measurement(axis, 41.2, Code("mm", "UCUM", "millimeter"), frame=0, line=line)
    made = report(Prediction((segment(mask, measurements=(told,)),)), source, VIEWER)
    (length,) = [g for g in groups(made, "1501") if texts(g, "112039 DCM") == [LENGTH]]
    (item,) = children(length, "NUM", "103339001 SCT")
    assert number(item) == 41.2
    (drawn,) = children(item, "SCOORD")
    assert (drawn.GraphicType, list(drawn.GraphicData)) == ("POLYLINE", [10, 10, 50, 20])


def test_a_report_alone_cites_no_segmentation() -> None:
    source = stack()
    made = report(volumes(source), source, SrForm(cites=None))
    evidence = str(made.CurrentRequestedProcedureEvidenceSequence)
    assert "1.2.840.10008.5.1.4.1.1.66.4" not in evidence
    assert not groups(made, "1411")
    assert 321.5 in [number(item) for item in descendants(made, "NUM")]


def test_a_label_map_stands_in_the_evidence_only() -> None:
    """DCMTK and what stands on it reads no report whose content refers to one."""
    source = stack()
    form = SrForm(cites=SegForm(Encoding.LABELMAP))
    seg, made = (
        one.dataset
        for one in build_results(volumes(source), source, MODEL, CONTEXT, [form, form.cites])
    )
    cited = {
        str(ref.ReferencedSOPInstanceUID)
        for image in descendants(made, "IMAGE")
        for ref in image.ReferencedSOPSequence
    }
    assert seg.SOPInstanceUID not in cited
    assert str(seg.SOPInstanceUID) in str(made.CurrentRequestedProcedureEvidenceSequence)
    told = {child.UID for g in groups(made) for child in children(g, "UIDREF", "112040 DCM")}
    assert seg.SegmentSequence[0].TrackingUID in told


def test_of_a_clip_the_frame_that_is_drawn_is_referred_to() -> None:
    source = source_of([dicoms.us_clip(4)])
    mask = np.zeros(grid(source), dtype=bool)
    mask[1, 10:20, 10:20] = mask[3, 10:40, 10:40] = True
    (referred,) = groups(report(Prediction((segment(mask),)), source), "1410")
    (frame,) = children(referred, "IMAGE", "121214 DCM")
    (image,) = children(referred, "IMAGE", "121233 DCM")
    assert frame.ReferencedSOPSequence[0].ReferencedFrameNumber == 2  # of the segmentation
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 4  # of the clip


def test_a_finding_tells_verdict_probability_threshold_and_grade() -> None:
    source = radiograph()
    made = report(graded(source), source)
    present = groups(made)[1]  # after its first box, whose Tracking UID it shares
    box = groups(made)[0]
    assert (
        children(present, "UIDREF", "112040 DCM")[0].UID
        == children(box, "UIDREF", "112040 DCM")[0].UID
    )
    assert meaning(children(present, "CODE", "121071 DCM")[0]) == "Pneumonia"
    assert meaning(children(present, "CODE", "233604007 SCT")[0]) == "Present"
    assert meaning(children(present, "CODE", "246112005 SCT")[0]) == "Moderate"
    assert number(children(present, "NUM", "122157 DCM")[0]) == 0.876543
    assert number(children(present, "NUM", "246112005 SCT")[0]) == 3.5
    assert "threshold=0.5" in texts(present, "111002 DCM")
    absent = groups(made)[-1]
    assert meaning(children(absent, "CODE", "60046008 SCT")[0]) == "Absent"
    assert number(children(absent, "NUM")[0]) == 0.01


def test_boxes_are_drawn_as_closed_rectangles() -> None:
    source = radiograph()
    boxes = [g for g in groups(report(graded(source), source)) if descendants(g, "SCOORD")]
    assert [texts(g, "112039 DCM") for g in boxes] == [
        ["Pneumonia, region 1"],
        ["Pneumonia, region 2"],
    ]
    viewed = [g for g in groups(report(graded(source), source, VIEWER)) if descendants(g, "SCOORD")]
    assert [texts(g, "112039 DCM") for g in viewed] == [[RECTANGLE], [RECTANGLE]]
    points = np.array(descendants(boxes[0], "SCOORD")[0].GraphicData).reshape(-1, 2)
    assert points.tolist() == [[10.5, 20], [30, 20], [30, 45.25], [10.5, 45.25], [10.5, 20]]
    uids = {children(g, "UIDREF", "112040 DCM")[0].UID for g in boxes}
    assert len(uids) == 2


def test_not_analysed_gives_the_reason_and_asserts_nothing() -> None:
    source = radiograph()
    prediction = dataclasses.replace(lungs(source), not_analysed="The view is lateral.")
    assert set(built(prediction, source)) == {"sr"}
    (group,) = groups(report(prediction, source))
    assert any("The view is lateral." in text for text in texts(group, "121106 DCM"))
    assert not children(group, "CODE", "121071 DCM")
    assert [meaning(c) for c in children(group, "CODE", "111101 DCM")] == ["Non-diagnostic quality"]


def remarks(made: Dataset) -> list[str]:
    (evaluations,) = children(made, "CONTAINER", "C0034375 UMLS")
    return texts(evaluations, "121106 DCM")


def test_notes_and_an_incomplete_study_are_told() -> None:
    source = radiograph()
    made = report(lungs(source), source, incomplete_reason="no image came for 10 minutes")
    assert remarks(made) == [
        "Research use, not for diagnosis.",
        "The study may be incomplete: no image came for 10 minutes",
        "Areas are measured at the detector's plane.",
    ]


def test_a_model_that_is_more_than_research_does_not_say_so() -> None:
    source = radiograph()
    cleared = dataclasses.replace(MODEL, research_only=False)
    for data in built(two_segments(source), source, model=cleared).values():
        assert b"Research" not in data


def test_a_superseding_report_names_its_predecessor() -> None:
    source = radiograph()
    first = report(lungs(source), source)
    before = {str(SrForm()): reference(first)}
    second = report(lungs(source), source, generation=2, predecessors=before)
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SOPInstanceUID != first.SOPInstanceUID


def test_the_procedure_is_the_studys_own_where_it_tells_one() -> None:
    image = dicoms.dx_image(ProcedureCodeSequence=[dicoms.code("P1", "99LOCAL", "Thorax pa")])
    for source, expected in (
        (source_of([image]), "Thorax pa"),
        (radiograph(), "XR unspecified body region"),
        (source_of([dicoms.us_image()]), "Imaging procedure"),
    ):
        (procedure,) = children(report(two_segments(source), source), "CODE", "121058 DCM")
        assert meaning(procedure) == expected


def test_a_finding_on_many_slices_names_their_series() -> None:
    source = stack(12)
    (group,) = groups(report(nothing(source), source))
    assert not children(group, "IMAGE")
    (series,) = children(group, "UIDREF", "112002 DCM")
    assert source.first.SeriesInstanceUID == series.UID


def test_a_prediction_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ResultError, match="says nothing"):
        build_results(Prediction(), radiograph(), MODEL, CONTEXT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_an_error(value: float) -> None:
    finding = Finding("P", PNEUMONIA, present=True, probability=value)
    with pytest.raises(ResultError, match="Probability is"):
        build_results(Prediction(findings=(finding,)), radiograph(), MODEL, CONTEXT)


@pytest.mark.parametrize("box", [Box(1, 0, 0, 5, 5), Box(-1, 0, 0, 5, 5), Box(0, 5, 0, 5, 5)])
def test_a_box_that_is_nowhere_is_an_error(box: Box) -> None:
    finding = Finding("P", PNEUMONIA, present=True, boxes=(box,))
    with pytest.raises(ResultError):
        build_results(Prediction(findings=(finding,)), radiograph(), MODEL, CONTEXT)


class TestTheCheckerItself:
    def broken(self) -> Dataset:
        source = stack()
        return report(volumes(source), source)

    def test_it_misses_a_row(self) -> None:
        made = self.broken()
        group = groups(made)[0]
        group.ContentSequence = [c for c in group.ContentSequence if c.ValueType != "UIDREF"]
        assert any("112040 DCM" in c for c in complaints(made))

    def test_it_sees_a_stranger(self) -> None:
        made = self.broken()
        children(groups(made)[0], "CODE")[0].RelationshipType = "HAS PROPERTIES"
        assert any("no row of 1501 allows it" in c for c in complaints(made))

    def test_it_wants_the_source_of_a_region(self) -> None:
        made = self.broken()
        del descendants(made, "SCOORD")[0].ContentSequence
        assert any("SELECTED FROM" in c for c in complaints(made))
