"""Reads every file of the shared data; what each is stands in its index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_modality_lut

from inference.errors import ReadingError
from inference.pixels import BRIGHTNESS
from inference.reading import group_by_grid, read, read_files
from tests.data import ROOT, shared

INDEX = ROOT / "dicom" / "index.json"
ENTRIES: list[dict[str, Any]] = json.loads(INDEX.read_text()) if INDEX.exists() else []
FILES = {entry["path"]: entry for entry in ENTRIES}

# What pydicom decodes and we do not, each for its reason.
REFUSED = {
    "JPGExtended.dcm": "cannot be decoded",  # 12 bits of JPEG Extended: no decoder of ours
    "OBXXXX1A_expb.dcm": "a palette in big endian",
    "bad_sequence.dcm": "absent or no UID",
    "JLSL_RGB_ILV0.dcm": "cannot be opened",  # no preamble: not a Part 10 file
    "JLSL_RGB_ILV1.dcm": "cannot be opened",
    "JLSL_RGB_ILV2.dcm": "cannot be opened",
    "JLSN_RGB_ILV0.dcm": "cannot be opened",
}


def dataset(*parts: str) -> pydicom.Dataset:
    return pydicom.dcmread(shared("dicom", *parts))


@pytest.mark.skipif(not ENTRIES, reason="shared data absent")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_file_gives_a_stack_or_a_reading_error():
    for path, entry in FILES.items():
        name = Path(path).name
        decodable = (entry["px"] or "").startswith("ok") and entry["mod"] != "SEG"
        try:
            stack = read_files([ROOT / "dicom" / path])
        except ReadingError as error:
            assert not decodable or REFUSED.get(name, "-") in error.reason, f"{name}: {error}"
            continue
        assert name not in REFUSED, f"{name} is read now"
        assert np.isfinite(stack.pixels).all(), name
        assert len(stack.frames) == len(stack.pixels), name
        if stack.unit == "1" and stack.pixels.dtype == np.float32:
            assert 0 <= stack.pixels.min() <= stack.pixels.max() <= 1, name


@pytest.mark.skipif(not ENTRIES, reason="shared data absent")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_single_grey_frames_equal_what_pydicom_makes_of_them():
    compared = 0
    for path, entry in FILES.items():
        name = Path(path).name
        grey = entry["pi"] in ("MONOCHROME1", "MONOCHROME2")
        if not (grey and (entry["px"] or "").startswith("ok")) or name in REFUSED:
            continue
        if entry["mod"] == "SEG" or entry["mod"] in BRIGHTNESS or "Float" in entry["sop"]:
            continue
        ds = pydicom.dcmread(ROOT / "dicom" / path)
        if ds.get("NumberOfFrames") not in (None, 1) or "PixelData" not in ds:
            continue
        expected = apply_modality_lut(ds.pixel_array, ds)
        np.testing.assert_allclose(read([ds]).pixels[0], expected, rtol=1e-6, err_msg=name)
        compared += 1
    assert compared > 80


def test_a_tilted_head_ct_lies_where_its_slices_say():
    folder = shared("dicom", "dcm_qa_ct", "In", "GE")
    datasets = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"), reverse=True)]
    assert len(datasets) == 28
    stack = read(datasets)
    assert stack.unit == "[hnsf'U]"
    normal = np.cross(stack.orientation[:3], stack.orientation[3:])
    assert abs(normal[1]) > 0.1, "the gantry is tilted"
    along = stack.positions @ normal
    steps = np.diff(along)
    assert (steps > 0).all()
    assert np.ptp(steps) > 1, "the steps are uneven"
    by_uid = {ds.SOPInstanceUID: ds for ds in datasets}
    for place, frame in enumerate(stack.frames):
        source = by_uid[frame.sop_instance_uid]
        np.testing.assert_array_equal(stack.positions[place], source.ImagePositionPatient)
        np.testing.assert_array_equal(
            stack.pixels[place], apply_modality_lut(source.pixel_array, source)
        )


@pytest.mark.parametrize("folder", ["J2KI", "JLSN"])
def test_a_15_bit_monochrome1_chest_is_turned_over_and_has_no_millimetres(folder):
    ds = dataset("dicom-test-files", "data", "WG04", folder, f"RG1_{folder}")
    stack = read([ds])
    assert (ds.BitsStored, ds.PhotometricInterpretation) == (15, "MONOCHROME1")
    assert stack.unit == "1"
    assert stack.shape == (1, 1955, 1841)
    assert stack.spacing is None
    assert "Pixel Spacing is not positive" in stack.spacing_source
    np.testing.assert_allclose(stack.pixels[0], 1 - ds.pixel_array / (2**15 - 1), atol=1e-6)
    assert stack.patient_orientation == ("L", "F")
    rows, columns = stack.shape[1:]
    middle = stack.pixels[0, :, columns // 2 - 100 : columns // 2 + 100].mean()
    lungs = stack.pixels[0, rows // 4 : rows // 2, columns // 5 : columns // 3].mean()
    assert middle > lungs, "the spine is brighter than the lung"


def test_the_three_slices_of_a_multi_frame_equal_its_single_frames():
    folder = shared("dicom", "dcmqi", "data", "segmentations", "24x38x3")
    single = read([pydicom.dcmread(path) for path in (folder / "image").glob("*.dcm")])
    multi = read([pydicom.dcmread(folder / "multiframe" / "mf.dcm")])
    np.testing.assert_array_equal(multi.pixels, single.pixels)
    np.testing.assert_allclose(multi.positions, single.positions)
    np.testing.assert_allclose(multi.affine, single.affine)
    assert multi.spacing == single.spacing


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_encodings_of_one_image_give_one_stack():
    folder = ("dicom-test-files", "data", "pydicom")
    plain = read([dataset(*folder, "emri_small.dcm")])
    for other in ("RLE", "big_endian", "jpeg_2k_lossless", "jpeg_ls_lossless"):
        stack = read([dataset(*folder, f"emri_small_{other}.dcm")])
        np.testing.assert_array_equal(stack.pixels, plain.pixels, err_msg=other)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ultrasound_clip_and_palette_come_out_as_rgb_with_millimetres():
    folder = ("pydicom", "src", "pydicom", "data", "test_files")
    clip = read([dataset(*folder, "examples_ybr_color.dcm")])
    assert clip.pixels.shape == (30, 240, 320, 3)
    assert clip.spacing == pytest.approx((0.5105, 0.5105), abs=1e-4)
    palette = read([dataset(*folder, "examples_palette.dcm")])
    assert palette.pixels.shape == (1, 350, 800, 3)
    assert palette.pixels.max() > 200


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_folder_of_many_series_falls_into_groups_that_can_all_be_read():
    folder = shared("dicom", "pydicom", "src", "pydicom", "data", "test_files", "dicomdirtests")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    images = []
    for path in paths:
        try:
            ds = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue
        if "PixelData" in ds:
            images.append(ds)
    groups = group_by_grid(images)
    assert sum(map(len, groups)) == len(images)
    assert [len(g) for g in groups] == sorted(map(len, groups), reverse=True)
    for group in groups:
        assert len(read(group).frames) == len(group)
