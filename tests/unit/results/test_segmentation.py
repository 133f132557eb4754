import copy
import dataclasses
from collections.abc import Callable, Sequence

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import Source
from inference.types import FrameRef, Prediction
from tests import dicoms
from tests.judges.readback import read_back
from tests.results import (
    CONTEXT,
    LUNG,
    MODEL,
    RIGHT,
    blob,
    built,
    errors,
    files,
    grid,
    parse,
    segment,
    source_of,
    two_segments,
)

TILTED = (1.0, 0.0, 0.0, 0.0, 0.9396926, 0.3420201)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def uneven() -> list[Dataset]:
    return [
        dicoms.ct_slice(position=(-30.25, 12.5, z), number=i + 1)
        for i, z in enumerate((0.0, 5.0, 5.1, 20.333333, 100.0))
    ]


def duplicates() -> list[Dataset]:
    return [
        dicoms.ct_slice(position=(0.0, 0.0, z), number=i + 1) for i, z in enumerate((0, 5, 5, 10))
    ]


def backwards() -> list[Dataset]:
    return dicoms.ct_series(5)[::-1]


def shuffled() -> list[Dataset]:
    series = dicoms.ct_series(5)
    return [series[i] for i in (3, 0, 4, 1, 2)]


def oblique() -> list[Dataset]:
    return [
        dicoms.ct_slice(position=(1.5 * i, -2.25 * i, 3.125 * i), orientation=OBLIQUE, number=i + 1)
        for i in range(4)
    ]


def odd_size() -> list[Dataset]:
    return [dicoms.ct_slice(dicoms.phantom((33, 47)), (0, 0, i), number=i + 1) for i in range(3)]


SOURCES: dict[str, Callable[[], list[Dataset]]] = {
    "one slice": lambda: [dicoms.ct_slice()],
    "series": lambda: dicoms.ct_series(4),
    "backwards": backwards,
    "shuffled": shuffled,
    "tilted": lambda: dicoms.ct_series(4, tilt=20.0),
    "oblique": oblique,
    "uneven": uneven,
    "duplicate positions": duplicates,
    "frames of odd size": odd_size,
    "MR": lambda: [dicoms.mr_slice(position=(0, 0, i), number=i + 1) for i in range(3)],
    "enhanced": lambda: [dicoms.enhanced_ct(4, order=(2, 0, 3, 1))],
    "legacy converted": lambda: [dicoms.legacy_enhanced_ct(dicoms.ct_series(3))],
    "DX": lambda: [dicoms.dx_image()],
    "DX without spacing": lambda: [dicoms.dx_image(spacing=None)],
    "DX calibrated": lambda: [dicoms.dx_image(PixelSpacing=["0.18", "0.18"])],
    "CR without orientation": lambda: [dicoms.dx_image(modality="CR", PatientOrientation=None)],
    "MG": lambda: [dicoms.dx_image(modality="MG")],
    "ultrasound": lambda: [dicoms.us_image()],
    "ultrasound clip": lambda: [dicoms.us_clip(4)],
    "no frame of reference": lambda: dicoms.ct_series(3, FrameOfReferenceUID=None),
    "GE head, tilted and uneven": lambda: files("dcm_qa_ct", "In", "GE"),
    "liver": lambda: files("dcmqi", "data", "segmentations", "ct-3slice"),
    "multi-frame": lambda: files("dcmqi", "data", "segmentations", "24x38x3", "multiframe"),
    "radiograph, spacing zero": lambda: files(
        "dicom-test-files", "data", "WG04", "J2KI", "RG1_J2KI"
    ),
}


@pytest.fixture(params=SOURCES, name="source")
def _source(request: pytest.FixtureRequest) -> Source:
    return source_of(SOURCES[request.param]())


def test_every_voxel_comes_back(source: Source) -> None:
    prediction = two_segments(source)
    data = built(prediction, source)["seg"]
    seg = hd.seg.segread(data)
    assert seg.number_of_segments == 2
    for number, wanted in enumerate(prediction.segments, start=1):
        assert np.array_equal(read_back(seg, source, number), wanted.mask)


def test_dciodvfy_finds_no_error_that_the_source_does_not_have(source: Source, tmp_path) -> None:
    known = set().union(*(errors(ds, tmp_path) for ds in source.datasets[:2]))
    for data in built(two_segments(source), source).values():
        assert errors(data, tmp_path) <= known


def test_each_frame_lies_where_its_source_lies(source: Source) -> None:
    seg = parse(built(two_segments(source), source)["seg"])
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient is not None
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (cited,) = frame.DerivationImageSequence[0].SourceImageSequence
        origin = source.by_uid[cited.ReferencedSOPInstanceUID]
        assert cited.ReferencedSOPClassUID == origin.SOPClassUID
        position, orientation, spacing = place(origin, cited.get("ReferencedFrameNumber"))
        told = frame.PlanePositionSequence[0].ImagePositionPatient
        if position is None:
            assert list(told) == [0, 0, 0]
            assert "FrameOfReferenceUID" not in seg
            continue
        turned = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert np.allclose(told, position, rtol=0, atol=1e-4)
        assert np.allclose(turned, orientation, rtol=0, atol=1e-6)
        assert np.allclose(shared.PixelMeasuresSequence[0].PixelSpacing, spacing, atol=1e-6)
        assert seg.get("FrameOfReferenceUID") == origin.get("FrameOfReferenceUID")


def place(
    origin: Dataset, frame: int | None
) -> tuple[Sequence[float] | None, Sequence[float] | None, Sequence[float] | None]:
    groups: list[Dataset] = [origin]
    if "PerFrameFunctionalGroupsSequence" in origin:
        assert frame is not None
        groups = [
            origin.PerFrameFunctionalGroupsSequence[frame - 1],
            origin.SharedFunctionalGroupsSequence[0],
        ]

    def get(sequence: str, keyword: str) -> Sequence[float] | None:
        for group in groups:
            holder = group.get(sequence, [group])[0]
            if keyword in holder:
                return [float(v) for v in holder.get(keyword)]
        return None

    return (
        get("PlanePositionSequence", "ImagePositionPatient"),
        get("PlaneOrientationSequence", "ImageOrientationPatient"),
        get("PixelMeasuresSequence", "PixelSpacing"),
    )


def test_highdicom_rebuilds_the_volume_of_an_even_stack() -> None:
    source = source_of(dicoms.ct_series(6, step=2.5))
    mask = blob(source, frames=slice(1, 6))
    volume = hd.seg.segread(built(Prediction((segment(mask),)), source)["seg"]).get_volume()
    assert np.array_equal(np.sort(volume.array.sum((1, 2, 3))), np.sort(mask[1:].sum((1, 2))))
    assert volume.spacing == pytest.approx((2.5, 1.0, 1.0))


def test_frames_without_a_pixel_are_left_out() -> None:
    source = source_of(dicoms.ct_series(5))
    seg = parse(built(Prediction((segment(blob(source, frames=slice(2, 4))),)), source)["seg"])
    assert seg.NumberOfFrames == 2
    cited = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert cited == [ref.sop_instance_uid for ref in source.frames[2:4]]


def test_an_empty_segment_is_not_in_the_segmentation() -> None:
    source = source_of([dicoms.dx_image()])
    empty = segment(np.zeros(grid(source), dtype=bool), "Right lung")
    seg = parse(built(Prediction((empty, segment(blob(source)))), source)["seg"])
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["Heart"]
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1]


def test_nothing_found_makes_no_segmentation() -> None:
    source = source_of([dicoms.dx_image()])
    empty = segment(np.zeros(grid(source), dtype=bool))
    assert set(built(Prediction((empty,)), source)) == {"sr"}


def test_no_two_frames_share_their_dimension_indices(source: Source) -> None:
    seg = parse(built(two_segments(source), source)["seg"])
    indices = [
        tuple(frame.FrameContentSequence[0].DimensionIndexValues)
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert len(set(indices)) == len(indices)


def test_words_of_a_bundle_cannot_break_the_object(tmp_path) -> None:
    source = source_of([dicoms.dx_image()])
    odd = segment(blob(source), "a\\b\x00" + "c" * 80, colour=(300, -5, 0))
    model = dataclasses.replace(MODEL, title="t\\u" * 30, manufacturer="", version="1\\2")
    for data in built(Prediction((odd,)), source, model=model).values():
        assert errors(data, tmp_path) == set()
        assert parse(data).Manufacturer == "-"
    seg = parse(built(Prediction((odd,)), source, model=model)["seg"])
    assert seg.SegmentSequence[0].SegmentLabel == "a b " + "c" * 60


def test_overlap_is_told() -> None:
    source = source_of([dicoms.dx_image()])
    left, right = np.zeros(grid(source), dtype=bool), np.zeros(grid(source), dtype=bool)
    left[:, :, :30], right[:, :, 30:] = True, True
    apart = parse(built(Prediction((segment(left), segment(right))), source)["seg"])
    assert apart.SegmentsOverlap == "NO"
    right[:, 0, 29] = True
    over = parse(built(Prediction((segment(left), segment(right))), source)["seg"])
    assert over.SegmentsOverlap == "YES"


def test_a_segment_says_what_it_is_and_who_drew_it() -> None:
    source = source_of([dicoms.dx_image()])
    lung = segment(blob(source), "Right lung", type=LUNG, laterality=RIGHT)
    (item,) = parse(built(Prediction((lung,)), source)["seg"]).SegmentSequence
    assert item.SegmentLabel == "Right lung"
    assert item.SegmentAlgorithmType == "AUTOMATIC"
    assert item.SegmentAlgorithmName == "lung 1.2.0"
    (kind,) = item.SegmentedPropertyTypeCodeSequence
    assert kind.CodeMeaning == "Lung"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"


def test_the_colour_is_the_segments_own() -> None:
    source = source_of([dicoms.dx_image()])
    (item,) = parse(
        built(Prediction((segment(blob(source), colour=(230, 60, 40)),)), source)["seg"]
    ).SegmentSequence
    lightness, a, b = item.RecommendedDisplayCIELabValue
    # PS3.3 C.10.7.1.1: L* of 0..100 and a*, b* of -128..127 over the whole range of 16 bits.
    assert lightness / 65535 * 100 == pytest.approx(52.3, abs=1)
    assert a / 65535 * 255 - 128 == pytest.approx(64.6, abs=2)
    assert b / 65535 * 255 - 128 == pytest.approx(49.5, abs=2)


def test_viewers_find_the_series_it_belongs_to() -> None:
    source = source_of(dicoms.ct_series(3))
    seg = parse(built(two_segments(source), source)["seg"])
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.first.SeriesInstanceUID
    cited = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert cited == set(source.by_uid)


@pytest.mark.parametrize(
    ("image", "spacing"),
    [
        (dicoms.dx_image(), [0.2, 0.2]),
        (dicoms.dx_image(spacing=None), None),
        (dicoms.us_image(), [0.2, 0.3]),
        (dicoms.dx_image(modality="CR", PixelSpacing=["0", "0"]), [0.2, 0.2]),
        (dicoms.dx_image(PixelSpacing=["0.18", "0.18"]), [0.18, 0.18]),
    ],
)
def test_what_a_projection_does_not_tell_is_called_a_placeholder(
    image: Dataset, spacing: list[float] | None
) -> None:
    """OHIF loads no segmentation without pixel measures, and nobody shall measure by them."""
    source = source_of([image])
    seg = parse(built(two_segments(source), source)["seg"])
    (measures,) = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert list(measures.PixelSpacing) == (spacing or [1, 1])
    assert "slice thickness are placeholders" in seg.ImageComments
    assert ("Pixel Spacing is one too" in seg.ImageComments) == (spacing is None)
    assert "FrameOfReferenceUID" not in seg


def test_a_thickness_that_nobody_knows_is_called_a_placeholder() -> None:
    source = source_of([dicoms.ct_slice(SliceThickness=None)])
    seg = parse(built(two_segments(source), source)["seg"])
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 1
    assert seg.ImageComments == "Slice Thickness is a placeholder: none is known."


def test_a_whole_geometry_needs_no_comment() -> None:
    source = source_of(dicoms.ct_series(3))
    assert "ImageComments" not in parse(built(two_segments(source), source)["seg"])


def test_a_projection_keeps_its_patient_orientation() -> None:
    source = source_of([dicoms.dx_image(patient_orientation=("L", "F"))])
    assert list(parse(built(two_segments(source), source)["seg"]).PatientOrientation) == ["L", "F"]


def test_a_slice_without_thickness_gets_the_distance_of_its_neighbours() -> None:
    source = source_of(dicoms.ct_series(3, step=2.5, SliceThickness=None))
    shared = parse(built(two_segments(source), source)["seg"]).SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 2.5


def test_uneven_slices_tell_no_distance() -> None:
    source = source_of(uneven())
    shared = parse(built(two_segments(source), source)["seg"]).SharedFunctionalGroupsSequence[0]
    assert "SpacingBetweenSlices" not in shared.PixelMeasuresSequence[0]


def test_frames_that_lean_differently_keep_their_own_orientation() -> None:
    slices = [dicoms.ct_slice(number=1), dicoms.ct_slice(number=2, orientation=TILTED)]
    source = source_of(slices)
    seg = parse(built(Prediction((segment(blob(source)),)), source)["seg"])
    told = [
        list(frame.PlaneOrientationSequence[0].ImageOrientationPatient)
        for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert np.allclose(told, [dicoms.AXIAL, TILTED])


def test_lossy_sources_make_a_result_of_lossy_sources(tmp_path) -> None:
    image = dicoms.dx_image(
        LossyImageCompression="01",
        LossyImageCompressionRatio="10",
        LossyImageCompressionMethod="ISO_10918_1",
    )
    source = source_of([image])
    data = built(two_segments(source), source)["seg"]
    assert parse(data).LossyImageCompression == "01"
    assert errors(data, tmp_path) == set()


@pytest.mark.parametrize("shape", [(1, 96, 79), (2, 96, 80), (96, 80)])
def test_a_mask_off_the_grid_is_refused(shape: tuple[int, ...]) -> None:
    source = source_of([dicoms.dx_image()])
    with pytest.raises(ResultError, match="mask of shape"):
        build_results(Prediction((segment(np.ones(shape, dtype=bool)),)), source, MODEL, CONTEXT)


def test_a_mask_of_numbers_is_refused() -> None:
    source = source_of([dicoms.dx_image()])
    mask = np.ones(grid(source), dtype=np.uint8)
    with pytest.raises(ResultError, match="uint8"):
        build_results(Prediction((segment(mask),)), source, MODEL, CONTEXT)  # type: ignore[arg-type] # on purpose


def test_frames_in_another_order_than_the_instances_are_followed() -> None:
    slices = dicoms.ct_series(4)
    straight = source_of(slices)
    frames = tuple(
        FrameRef(str(slices[i].SOPInstanceUID), str(slices[i].SOPClassUID)) for i in (2, 0, 3, 1)
    )
    source = Source(straight.datasets, straight.digests, frames)
    mask = blob(source)
    seg = hd.seg.segread(built(Prediction((segment(mask),)), source)["seg"])
    back = seg.get_pixels_by_source_instance([str(ds.SOPInstanceUID) for ds in slices])[..., 0]
    assert np.array_equal(back[[2, 0, 3, 1]].astype(bool), mask)


def test_the_object_can_be_looked_at_before_it_is_written() -> None:
    source = source_of(dicoms.ct_series(3))
    made = build_results(two_segments(source), source, MODEL, CONTEXT)[0].dataset
    before = encode(copy.copy(made))
    assert len(made.PerFrameFunctionalGroupsSequence) == made.NumberOfFrames
    assert encode(made) == before
