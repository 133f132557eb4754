import copy
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from pydicom.dataset import Dataset

from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.normalise import REQUIRED, local_time, study_header, utc_offset
from tests import dicoms
from tests.results import CONTEXT, MODEL, built, errors, files, parse, source_of, two_segments

WHEN = datetime(2026, 3, 1, 22, 30, 5, tzinfo=UTC)


def result(image: Dataset, kind: str = "sr") -> Dataset:
    source = source_of([image])
    return parse(built(two_segments(source), source)[kind])


@pytest.mark.parametrize("keyword", REQUIRED)
def test_a_source_that_lacks_an_attribute_gets_its_results(keyword: str, tmp_path) -> None:
    image = dicoms.dx_image(**{keyword: None})
    source = source_of([image])
    for data in built(two_segments(source), source).values():
        dataset = parse(data)
        assert keyword in dataset and not dataset.get(keyword)
        assert errors(data, tmp_path) == set()


@pytest.mark.parametrize("keyword", REQUIRED)
def test_an_empty_attribute_stays_empty(keyword: str, tmp_path) -> None:
    image = dicoms.dx_image(**{keyword: ""})
    source = source_of([image])
    for data in built(two_segments(source), source).values():
        assert not parse(data).get(keyword)
        assert errors(data, tmp_path) == set()


@pytest.mark.parametrize("sex", ["M", "F", "O"])
def test_a_sex_of_the_enumeration_is_copied(sex: str) -> None:
    assert result(dicoms.dx_image(PatientSex=sex)).PatientSex == sex


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("sex", ["U", "female", "m"])
def test_a_sex_outside_the_enumeration_is_left_empty(sex: str) -> None:
    made = result(dicoms.dx_image(PatientSex=sex))
    assert made.PatientSex == ""


def test_identity_is_copied_unchanged() -> None:
    image = dicoms.dx_image(
        IssuerOfPatientID="Hospital A",
        TimezoneOffsetFromUTC="+0530",
        PatientWeight="70.50",
        PatientAge="056Y",
        OtherPatientIDsSequence=[dicoms.item(PatientID="B2", IssuerOfPatientID="B")],
        ProcedureCodeSequence=[dicoms.code("P1", "99LOCAL", "Thorax")],
    )
    for kind in ("seg", "sr"):
        made = result(image, kind)
        for keyword in (
            *REQUIRED,
            "StudyInstanceUID",
            "IssuerOfPatientID",
            "TimezoneOffsetFromUTC",
            "PatientAge",
            "OtherPatientIDsSequence",
            "ProcedureCodeSequence",
        ):
            assert made.get(keyword) == image.get(keyword), keyword
        assert made["PatientWeight"].value.original_string == "70.50"


def test_the_source_is_not_modified() -> None:
    image = dicoms.dx_image(OtherPatientIDsSequence=[dicoms.item(PatientID="B2")])
    before = copy.deepcopy(image)
    source = source_of([image])
    made = build_results(two_segments(source), source, MODEL, CONTEXT)
    for thing in made:
        thing.dataset.OtherPatientIDsSequence[0].PatientID = "changed"
    assert image == before


CHARACTER_SETS = [
    "chrArab",
    "chrFren",
    "chrFrenMulti",
    "chrGerm",
    "chrGreek",
    "chrH31",
    "chrH32",
    "chrHbrw",
    "chrI2",
    "chrJapMulti",
    "chrJapMultiExplicitIR6",
    "chrKoreanMulti",
    "chrRuss",
    "chrX1",
    "chrX2",
]


@pytest.mark.parametrize("name", CHARACTER_SETS)
def test_names_in_every_character_set_survive(name: str, tmp_path) -> None:
    (image,) = files("pydicom", "src", "pydicom", "data", "charset_files", f"{name}.dcm")
    source = source_of([image])
    for data in built(two_segments(source), source).values():
        made = parse(data)
        assert str(made.PatientName) == str(image.PatientName)
        assert made.get("SpecificCharacterSet") in (
            image.get("SpecificCharacterSet"),
            "ISO_IR 192",
        )
        assert errors(data, tmp_path) <= errors(image, tmp_path)


def test_a_set_that_holds_all_text_is_kept() -> None:
    image = dicoms.dx_image(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    assert result(image).SpecificCharacterSet == "ISO_IR 100"


def test_a_label_outside_the_set_makes_it_unicode() -> None:
    image = dicoms.dx_image(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    source = source_of([image])
    prediction = two_segments(source)
    object.__setattr__(prediction.segments[0], "label", "Лёгкое справа")
    for data in built(prediction, source).values():
        made = parse(data)
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == "Müller^Jörg"
    assert parse(built(prediction, source)["seg"]).SegmentSequence[0].SegmentLabel == (
        "Лёгкое справа"
    )


def test_a_set_that_nobody_knows_does_no_harm() -> None:
    image = dicoms.dx_image(SpecificCharacterSet="ISO_IR 999")
    assert result(image).PatientID == "TEST-1"


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("+0530", timedelta(hours=5, minutes=30)),
        ("-0330", -timedelta(hours=3, minutes=30)),
        ("+0000", timedelta(0)),
        ("+1500", None),
        ("0530", None),
        ("+05:30", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_zone_is_read_or_refused(offset: str | None, expected: timedelta | None) -> None:
    assert utc_offset(dicoms.dx_image(TimezoneOffsetFromUTC=offset)) == expected


def test_times_are_told_on_the_clock_of_the_source() -> None:
    assert local_time(WHEN, dicoms.dx_image(TimezoneOffsetFromUTC="+0530")) == (
        "20260302",
        "040005.000000",
    )


def test_without_a_zone_times_are_utc_and_none_is_claimed() -> None:
    assert local_time(WHEN, dicoms.dx_image()) == ("20260301", "223005.000000")
    assert "TimezoneOffsetFromUTC" not in result(dicoms.dx_image())


@pytest.mark.filterwarnings("ignore")
def test_values_that_break_their_type_are_copied_or_left_without_being_quoted() -> None:
    image = dicoms.dx_image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.PatientID = "Secret " * 20
        image.StudyDate = "1.2.1999"
        image.PatientBirthDate = "secret"
    source = source_of([image])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = build_results(two_segments(source), source, MODEL, CONTEXT)
        encoded = [encode(thing.dataset) for thing in made]
    assert not [str(w.message) for w in told]
    assert all(b"Secret Secret" in data for data in encoded)


def test_the_header_shares_nothing_with_the_source() -> None:
    image = dicoms.dx_image(OtherPatientIDsSequence=[dicoms.item(PatientID="B2")])
    assert study_header(image).OtherPatientIDsSequence[0] is not image.OtherPatientIDsSequence[0]
