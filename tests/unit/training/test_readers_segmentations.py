"""DICOM SEG as truth: what was drawn on an image comes back on that image, whatever the order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Encoding, SegForm
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import Source
from inference.errors import ReadingError
from inference.reading import read_files
from inference.types import Prediction, Segment
from tests import dicoms
from tests.data import shared
from tests.results import CONTEXT, LUNG, MODEL, blob, segment, source_of
from tests.unit.training.reading import bundle
from training.errors import DataError, RecipeError
from training.recipe import Bundle, DicomSeg
from training.sources import load

TWO = bundle("segmentation", "Right lung", "Heart", unit="series")
DATA = DicomSeg(kind="dicom-seg", folder="in")


def lay(folder: Path, datasets: Sequence[Dataset]) -> Source:
    """Writes a series, and gives it as the service reads it: frames in reading order."""
    paths = [dicoms.save(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in datasets]
    stack = read_files(paths)
    given = source_of(datasets)
    return Source(given.datasets, given.digests, stack.frames)


def segmented(
    folder: Path, source: Source, *segments: Segment, encoding: Encoding = Encoding.BINARY
) -> Path:
    """Writes the SEG that the service makes of these segments."""
    (made,) = build_results(Prediction(segments), source, MODEL, CONTEXT, [SegForm(encoding)])
    path = folder / f"seg-{encoding}.dcm"
    path.write_bytes(encode(made.dataset))
    return path


def halves(source: Source) -> tuple[Segment, Segment]:
    """Two that do not overlap; the second is not on the first frame."""
    one, other = blob(source, 1), blob(source, 2)
    one[:, :, 40:], other[:, :, :40] = False, False
    other[: len(other) // 2] = False
    assert one.any()
    assert other.any()
    return segment(one, "Right lung", type=LUNG), segment(other, "Heart")


SERIES = {
    "feet to head": lambda: dicoms.ct_series(5),
    "backwards": lambda: dicoms.ct_series(5)[::-1],
    "tilted": lambda: dicoms.ct_series(5, tilt=20.0)[::-1],
    "numbered against their place": lambda: [
        dicoms.ct_slice(position=(0, 0, 10.0 - i), number=i + 1) for i in range(5)
    ],
    "frames of odd size": lambda: [
        dicoms.ct_slice(dicoms.phantom((33, 61)), (0, 0, i), number=i + 1) for i in range(3)
    ],
    "enhanced": lambda: [dicoms.enhanced_ct(4, order=(2, 0, 3, 1))],
    "radiograph": lambda: [dicoms.dx_image()],
    "clip": lambda: [dicoms.us_clip(3)],
}


@pytest.mark.parametrize("encoding", [Encoding.BINARY, Encoding.LABELMAP, Encoding.FRACTIONAL])
@pytest.mark.parametrize("series", SERIES)
def test_every_voxel_comes_back_where_it_was_drawn(tmp_path, series, encoding):
    source = lay(tmp_path / "in", SERIES[series]())
    drawn = halves(source) if len(source.frames) > 1 else (halves(source)[0],)
    if encoding is Encoding.FRACTIONAL:
        drawn = tuple(
            replace(s, probability=np.where(s.mask, 0.6, 0.4).astype(np.float32)) for s in drawn
        )
    segmented(tmp_path / "in", source, *drawn, encoding=encoding)
    of = TWO if len(drawn) > 1 else bundle("segmentation", "Right lung", unit="series")
    (sample,) = load(DATA, of, tmp_path).learn
    assert sample.read().frames == source.frames
    masks = sample.truth.masks()
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, np.stack([s.mask for s in drawn]))


def test_samples_name_no_patient(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3, patient_id="SECRET"))
    segmented(tmp_path / "in", source, *halves(source))
    (sample,) = load(DATA, TWO, tmp_path).learn
    assert sample.name == source.first.SeriesInstanceUID
    assert "SECRET" not in repr(sample)
    assert sample.study != source.first.StudyInstanceUID


def test_segments_are_found_by_code_too_and_those_of_one_channel_are_joined(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3))
    one, other = halves(source)
    segmented(tmp_path / "in", source, one, replace(other, type=LUNG))
    data = DicomSeg(kind="dicom-seg", folder="in", segments=[LUNG.value])
    (sample,) = load(data, bundle("segmentation", "Lungs", unit="series"), tmp_path).learn
    assert np.array_equal(sample.truth.masks()[0], one.mask | other.mask)


def test_several_segmentations_of_a_series_are_joined(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3))
    one, other = halves(source)
    path = segmented(tmp_path / "in", source, one)
    again = segmented(tmp_path / "in", source, other, encoding=Encoding.LABELMAP)
    assert path != again
    ds = pydicom.dcmread(again)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = dicoms.uid("another")
    dicoms.save(ds, again)
    (sample,) = load(DATA, TWO, tmp_path).learn
    assert np.array_equal(sample.truth.masks(), np.stack([one.mask, other.mask]))


def test_radiographs_of_one_series_are_samples_of_their_own_where_images_are_selected(tmp_path):
    for i in range(2):
        folder = tmp_path / "in" / str(i)
        source = lay(folder, [dicoms.dx_image(number=i, series_uid="1.2.3", seed=i)])
        segmented(folder, source, segment(blob(source, i), "Heart"))
    samples = load(DATA, bundle("segmentation", "Heart"), tmp_path).learn
    assert len({s.name for s in samples}) == 2
    assert all(s.read().shape[0] == 1 for s in samples)
    assert all(s.truth.masks().any() for s in samples)


def test_images_nobody_drew_on_are_passed_over(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3))
    segmented(tmp_path / "in", source, *halves(source))
    lay(tmp_path / "in", dicoms.ct_series(2, seed=9, series_uid="1.2.9"))
    assert len(load(DATA, TWO, tmp_path).learn) == 1


def test_everything_wrong_is_told_in_one_error(tmp_path):
    folder = tmp_path / "in"
    source = lay(folder, dicoms.ct_series(3))
    gone = lay(tmp_path / "elsewhere", dicoms.ct_series(3, seed=5, series_uid="1.2.5"))
    heart = segmented(folder, source, segment(blob(source), "Heart"))
    heart.rename(folder / "heart.dcm")
    strange = segmented(folder, source, segment(blob(source), "Spleen", type=LUNG))
    ds = pydicom.dcmread(strange)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.77"
    dicoms.save(ds, strange).rename(folder / "strange.dcm")
    missing = segmented(folder, gone, segment(blob(gone), "Heart"))
    missing_uid = pydicom.dcmread(missing).SOPInstanceUID
    (folder / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00")
    (folder / "again.dcm").write_bytes((folder / "heart.dcm").read_bytes())
    with pytest.raises(DataError) as caught:
        load(DATA, TWO, tmp_path)
    told = str(caught.value)
    for said in (
        "(it knows Right lung, Heart): 1.2.77",
        f"images that are missing (add the images): {missing_uid}",
        "second time (leave them out): heart.dcm",
        "damaged (replace them): cut.dcm",
        "classes without a segment (draw some, or correct data.segments): Right lung",
    ):
        assert said in told


def test_a_segmentation_that_lies_elsewhere_is_not_moved(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3))
    path = segmented(tmp_path / "in", source, *halves(source))
    ds = pydicom.dcmread(path)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 1
    dicoms.save(ds, path)
    with pytest.raises(ReadingError, match="lies elsewhere"):
        load(DATA, TWO, tmp_path).learn[0].truth.masks()


def test_a_segmentation_on_another_grid_is_not_resampled(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(3))
    path = segmented(tmp_path / "in", source, *halves(source))
    ds = pydicom.dcmread(path)
    ds.Rows, ds.Columns = 32, 128
    dicoms.save(ds, path)
    with pytest.raises(ReadingError, match="other rows and columns"):
        load(DATA, TWO, tmp_path).learn[0].truth.masks()


def test_frames_without_a_citation_are_placed_by_their_position(tmp_path):
    source = lay(tmp_path / "in", dicoms.ct_series(5)[::-1])
    drawn = halves(source)
    path = segmented(tmp_path / "in", source, *drawn)
    ds = pydicom.dcmread(path)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dicoms.save(ds, path)
    (sample,) = load(DATA, TWO, tmp_path).learn
    assert np.array_equal(sample.truth.masks(), np.stack([s.mask for s in drawn]))


@pytest.mark.parametrize(
    ("images", "seg", "name", "shape"),
    [
        ("ct-3slice", "liver.dcm", "Liver", (3, 512, 512)),
        ("24x38x3/image", "24x38x3/seg/label.seg", "T-62000", (3, 38, 24)),
        ("23x38x3/image", "23x38x3/seg/label.seg", "liver", (3, 38, 23)),
    ],
)
def test_segmentations_made_by_others_are_read(tmp_path, images, seg, name, shape):
    root = shared("dicom", "dcmqi", "data", "segmentations")
    shutil.copytree(root / images, tmp_path / "in")
    shutil.copy(root / seg, tmp_path / "in")
    data = DicomSeg(kind="dicom-seg", folder="in", segments=[name])
    (sample,) = load(data, bundle("segmentation", "Liver", unit="series"), tmp_path).learn
    masks = sample.truth.masks()
    assert masks.shape == (1, *shape)
    assert masks.sum() == pydicom.dcmread(root / seg).pixel_array.sum() > 0


@pytest.mark.parametrize(
    ("of", "segments"),
    [
        (bundle("detection", "Lung"), []),
        (TWO, ["Lung"]),
    ],
)
def test_what_a_segmentation_cannot_tell_is_a_matter_of_the_recipe(
    tmp_path, of: Bundle, segments: list[str]
):
    with pytest.raises(RecipeError):
        load(DicomSeg(kind="dicom-seg", folder="in", segments=segments), of, tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no folder in"):
        load(DATA, TWO, tmp_path)
