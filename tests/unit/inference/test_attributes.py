from __future__ import annotations

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from inference.attributes import Frame, about, frames_of, get, integer, number, numbers, text
from inference.errors import ReadingError
from tests import dicoms


def raw(keyword: str, value: bytes, vr: str = "DS"):
    """A data set as it comes from the wire: bytes that nobody has looked at."""
    ds = dicoms.item(SOPInstanceUID="1.2.3")
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return ds


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"Doe^John", "not a number|cannot be read"),
        (b"NaN ", "not finite"),
        (b"inf", "not finite"),
        (b"1e999", "not finite"),
        (b"1\\2", "2 values instead of 1"),
        (b"--1", "not a number|cannot be read"),
        (b"\xff\xfe", "not a number|cannot be read"),
    ],
)
def test_what_is_no_finite_number_is_named_and_not_repeated(value, reason):
    ds = raw("RescaleSlope", value)
    with pytest.raises(ReadingError, match=f"RescaleSlope.*{reason}") as caught:
        number(ds, "RescaleSlope")
    assert "Doe" not in str(caught.value)


def test_absent_and_empty_are_none():
    assert number(raw("RescaleSlope", b""), "RescaleSlope") is None
    assert number(dicoms.item(), "RescaleSlope") is None
    assert numbers(raw("PixelSpacing", b" "), "PixelSpacing", 2) is None
    assert text(dicoms.item(), "Modality") == ""


def test_numbers_come_with_blanks_or_without():
    assert numbers(raw("PixelSpacing", b" 0.5 \\1e0 "), "PixelSpacing", 2) == (0.5, 1.0)


def test_whole_numbers_are_whole():
    assert integer(raw("NumberOfFrames", b"12 ", "IS"), "NumberOfFrames") == 12
    assert integer(dicoms.item(), "NumberOfFrames", 1) == 1
    with pytest.raises(ReadingError, match="Rows is absent"):
        integer(dicoms.item(), "Rows")
    with pytest.raises(ReadingError, match="RescaleSlope is not a whole number"):
        integer(dicoms.item(RescaleSlope=0.5), "RescaleSlope")


def test_zero_is_a_value():
    assert get(dicoms.item(RescaleIntercept=0), "RescaleIntercept") == 0


def test_a_frame_looks_into_its_own_group_then_the_shared_one_then_the_data_set():
    ds = dicoms.enhanced_ct(2)
    ds.PixelSpacing = [9, 9]
    ds.RescaleSlope = 9
    first, second = frames_of(ds, 2)
    assert numbers(first, "PixelSpacing", 2) == (1.0, 1.0)
    assert number(second, "RescaleSlope") == 1.0
    assert text(first, "Modality") == "CT"
    assert Frame(ds).get("RescaleSlope") == 9


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RecursionError("Doe^John"), "nested too deeply"),
        (MemoryError("Doe^John"), "memory"),
        (KeyError("Doe^John"), r"cannot be read \(KeyError\)"),
        (ReadingError("why"), "why"),
    ],
)
def test_nothing_but_a_reading_error_gets_out_and_it_names_the_instance(error, reason):
    with (
        pytest.raises(ReadingError, match=reason) as caught,
        about(dicoms.item(SOPInstanceUID="1.2")),
    ):
        raise error
    assert caught.value.sop_instance_uid == "1.2"
    assert caught.value.__suppress_context__
    assert "Doe" not in str(caught.value)


def test_what_is_no_uid_is_not_named():
    with pytest.raises(ReadingError) as caught, about(dicoms.item(SOPInstanceUID="Doe^John")):
        raise ReadingError("why")
    assert str(caught.value) == "why"
