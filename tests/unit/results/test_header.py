import dataclasses

import pytest

from dicom_node.results.header import series_description
from tests import dicoms
from tests.results import CONTEXT, MODEL, built, parse, source_of, two_segments


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Lungs", "Lungs 1.2.0 - Research use, not for diagnosis"),
        (
            "Lungs on frontal chest radiographs",
            "Lungs on frontal chest radiographs 1.2.0 - Research use",
        ),
        ("L" * 64, "lung 1.2.0 - Research use"),
    ],
)
def test_the_warning_stays_when_the_description_is_too_long(title: str, expected: str) -> None:
    told = series_description(dataclasses.replace(MODEL, title=title))
    assert told == expected
    assert len(told) <= 64


def test_a_very_long_version_never_pushes_the_warning_out() -> None:
    told = series_description(dataclasses.replace(MODEL, title="L" * 64, version="1." + "9" * 80))
    assert len(told) == 64
    assert told.endswith("Research use")


def test_both_objects_are_of_the_study_and_in_series_of_their_own() -> None:
    source = source_of([dicoms.dx_image()])
    made = {kind: parse(data) for kind, data in built(two_segments(source), source).items()}
    assert {ds.StudyInstanceUID for ds in made.values()} == {source.first.StudyInstanceUID}
    assert (
        len({ds.SeriesInstanceUID for ds in made.values()} | {source.first.SeriesInstanceUID}) == 3
    )
    assert [made[kind].Modality for kind in ("seg", "sr")] == ["SEG", "SR"]


def test_only_the_jobs_time_is_stamped() -> None:
    source = source_of([dicoms.dx_image(TimezoneOffsetFromUTC="-0500")])
    for data in built(two_segments(source), source).values():
        made = parse(data)
        assert (made.InstanceCreationDate, made.InstanceCreationTime) == (
            "20260301",
            "173005.000000",
        )
        assert (made.ContentDate, made.ContentTime) == ("20260301", "173005.000000")
        assert made.ContributingEquipmentSequence[0].ContributionDateTime.startswith(
            "20260301173005"
        )
        assert "SeriesDate" not in made


def test_the_institution_is_told_where_the_site_wants_it() -> None:
    source = source_of([dicoms.dx_image()])
    context = dataclasses.replace(CONTEXT, institution="Hospital A")
    assert (
        parse(built(two_segments(source), source, context=context)["sr"]).InstitutionName
        == "Hospital A"
    )
    assert "InstitutionName" not in parse(built(two_segments(source), source)["sr"])
