from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian

from inference.errors import ReadingError
from inference.reading import group_by_grid, read, read_files
from tests import dicoms


def test_nothing_is_not_a_stack():
    with pytest.raises(ReadingError, match="no instances"):
        read([])


def test_what_a_stack_says_of_itself():
    series = dicoms.ct_series(3, spacing=(0.7, 0.8))
    stack = read(series)
    assert stack.modality == "CT"
    assert stack.shape == (3, 64, 64)
    assert stack.frames[0].sop_class_uid == dicoms.CT
    assert stack.spacing == (0.7, 0.8)
    assert stack.spacing_source == "Pixel Spacing"
    assert stack.frame_of_reference_uid == series[0].FrameOfReferenceUID
    assert stack.photometric == "MONOCHROME2"
    assert stack.valid is None


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SOPClassUID"])
def test_an_instance_without_its_uids_is_refused(keyword):
    with pytest.raises(ReadingError, match="absent or no UID"):
        read([dicoms.ct_slice(**{keyword: None})])


def test_files_give_the_same_as_their_data_sets(tmp_path):
    series = dicoms.ct_series(4)
    paths = [dicoms.save(ds, tmp_path / f"{9 - i}.dcm") for i, ds in enumerate(series)]
    from_files, from_memory = read_files(paths), read(series)
    assert from_files.frames == from_memory.frames
    np.testing.assert_array_equal(from_files.pixels, from_memory.pixels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file 1 cannot be opened"),
        (b"not DICOM", "file 1 cannot be opened"),
        (b"\0" * 128 + b"DICM", "absent|no pixels|cannot be"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 500, "cannot be|absent|no pixels"),
    ],
)
def test_a_file_that_is_none_is_refused_without_its_name(tmp_path, content, reason):
    path = tmp_path / "Doe^John.dcm"
    path.write_bytes(content)
    with pytest.raises(ReadingError, match=reason) as caught:
        read_files([path])
    assert "Doe" not in str(caught.value)


def test_a_missing_file_is_refused_without_its_name(tmp_path):
    with pytest.raises(ReadingError, match="file 1 cannot be opened: FileNotFoundError"):
        read_files([tmp_path / "Doe^John.dcm"])


def deflated(tmp_path, ds):
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return dicoms.save(ds, tmp_path / "deflated.dcm")


def test_a_deflated_file_is_read(tmp_path):
    plain = read([dicoms.ct_slice()])
    np.testing.assert_array_equal(
        read_files([deflated(tmp_path, dicoms.ct_slice())]).pixels, plain.pixels
    )


def test_a_deflated_file_that_inflates_too_far_is_refused_and_never_held(tmp_path):
    ds = dicoms.ct_slice(np.zeros((64, 64)))
    ds.add_new(0x00091010, "OB", bytes(64 * 2**20))
    ds.add_new(0x00090010, "LO", "dicom-node tests")
    path = deflated(tmp_path, ds)
    assert path.stat().st_size < 2**17
    del ds
    tracemalloc.start()
    try:
        with pytest.raises(ReadingError, match="inflates to more than 16777216 bytes"):
            read_files([path], max_inflated=16 * 2**20)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_garbage_after_the_deflated_header_is_a_reading_error(tmp_path):
    path = deflated(tmp_path, dicoms.ct_slice())
    content = path.read_bytes()
    path.write_bytes(content[:450] + b"\x07" * 100)
    with pytest.raises(ReadingError):
        read_files([path])


def test_deep_nesting_is_a_reading_error(tmp_path):
    # Written by hand: pydicom does not write what breaks its reader.
    opening = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    head = io.BytesIO()
    pydicom.dcmwrite(head, dicoms.ct_slice(PixelData=None), enforce_file_format=True)
    path = tmp_path / "deep.dcm"
    path.write_bytes(head.getvalue() + opening * 3000 + closing * 3000)
    with pytest.raises(ReadingError, match="nested too deeply"):
        read_files([path])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files_give_a_stack_or_a_reading_error(tmp_path, data):
    kind = data.draw(st.sampled_from(["ct", "enhanced", "colour", "deflated"]))
    ds = {
        "ct": dicoms.ct_slice,
        "enhanced": lambda: dicoms.enhanced_ct(2, shape=(8, 8)),
        "colour": lambda: dicoms.us_clip(2, colour=True),
        "deflated": dicoms.ct_slice,
    }[kind]()
    path = deflated(tmp_path, ds) if kind == "deflated" else dicoms.save(ds, tmp_path / "a.dcm")
    content = bytearray(path.read_bytes())
    header = len(content) - len(ds.PixelData) if kind != "deflated" else len(content)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(132, max(133, header - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(132, len(content)))]))
    try:
        stack = read_files([path], max_pixels=2**22, max_inflated=2**22)
    except ReadingError:
        return
    assert stack.pixels.shape[0] == len(stack.frames)


GARBLED = st.sampled_from(["NaN", "inf", "-1", "0", "1e999", "", "x", "1\\2\\3\\4", "9" * 16])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [
            "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
            "ImageOrientationPatient", "InstanceNumber", "AcquisitionNumber", "NumberOfFrames",
        ]
    ),
    GARBLED,
)  # fmt: skip
def test_garbled_numbers_give_a_finite_stack_or_a_reading_error(keyword, value):
    ds = dicoms.ct_slice(np.zeros((4, 4)), **{keyword: None})
    vr = pydicom.datadict.dictionary_VR(keyword)
    tag = pydicom.tag.Tag(keyword)
    encoded = value.encode()
    ds._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(encoded), encoded, 0, False, True)
    try:
        stack = read([ds])
    except ReadingError as error:
        assert error.sop_instance_uid == ds.SOPInstanceUID
        return
    assert np.isfinite(stack.pixels).all()
    assert stack.positions is None or np.isfinite(stack.positions).all()
    assert stack.spacing is None or min(stack.spacing) > 0


def test_the_biggest_group_comes_first_and_nothing_is_lost():
    axial = dicoms.ct_series(4)
    scout = dicoms.ct_slice(number=50, orientation=(1, 0, 0, 0, 0, -1), sop_uid="1.5")
    thin = dicoms.ct_series(2, spacing=(0.5, 0.5), seed=70)
    other_frame = dicoms.ct_slice(number=60, FrameOfReferenceUID="1.2.3", sop_uid="1.6")
    mixed = [scout, thin[0], *axial[:2], other_frame, *axial[2:], thin[1]]
    groups = group_by_grid(mixed)
    assert groups == [axial, thin, [scout], [other_frame]]
    assert read(groups[0]).shape == (4, 64, 64)


def test_a_multi_frame_counts_by_its_frames():
    single, multi = dicoms.ct_series(2), dicoms.enhanced_ct(3, FrameOfReferenceUID="1.9")
    assert group_by_grid([*single, multi]) == [[multi], single]


def test_grids_within_a_ten_thousandth_are_one():
    near = dicoms.ct_slice(number=1, spacing=(1.00005, 1.0), orientation=(1, 5e-5, 0, -5e-5, 1, 0))
    far = dicoms.ct_slice(number=2, spacing=(1.0005, 1.0))
    exact = dicoms.ct_slice(number=3)
    assert group_by_grid([exact, near, far]) == [[exact, near], [far]]


def test_what_is_no_image_is_refused_by_name():
    with pytest.raises(ReadingError, match="has no pixels") as caught:
        group_by_grid([dicoms.ct_slice(), dicoms.ct_slice(sop_uid="1.7", PixelData=None)])
    assert caught.value.sop_instance_uid == "1.7"
