import dataclasses
import uuid
from collections.abc import Callable

import pytest
from pydicom.uid import UID

from dicom_node import IMPLEMENTATION_CLASS_UID
from dicom_node.errors import ResultError
from dicom_node.results.identity import Identity, make_uid
from dicom_node.results.types import BuildContext, ModelIdentity, ReferencedSOP, Source
from tests import dicoms
from tests.results import CONTEXT, MODEL, source_of

SERIES = dicoms.ct_series(3)
SOURCE = source_of(SERIES)


def test_a_uid_is_a_version_8_uuid_in_decimal() -> None:
    made = make_uid("kind", 1)
    number = uuid.UUID(int=int(made.removeprefix("2.25.")))
    assert number.version == 8
    assert number.variant == uuid.RFC_4122
    assert UID(made).is_valid
    assert len(made) <= 64


def test_our_implementation_class_uid_is_valid() -> None:
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid


def test_parts_do_not_run_into_each_other() -> None:
    assert make_uid("ab", "c") != make_uid("a", "bc")


def test_the_order_of_the_sources_does_not_matter() -> None:
    shuffled = source_of([SERIES[2], SERIES[0], SERIES[1]])
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(shuffled, MODEL, CONTEXT)
    assert one.instance("seg") == other.instance("seg")
    assert one.series("sr") == other.series("sr")


def digest(source: Source) -> Source:
    return dataclasses.replace(source, digests=("0" * 64, *source.digests[1:]))


def fewer(source: Source) -> Source:
    return source_of(source.datasets[:2])


@pytest.mark.parametrize("change", [digest, fewer])
def test_other_content_is_another_result(change: Callable[[Source], Source]) -> None:
    other = Identity(change(SOURCE), MODEL, CONTEXT)
    assert other.instance("sr") != Identity(SOURCE, MODEL, CONTEXT).instance("sr")


OTHER_MODELS = [
    dataclasses.replace(MODEL, bundle_digest="f" * 64),
    dataclasses.replace(MODEL, parameters={"right lung": "0.6", "left lung": "0.4"}),
]
OTHER_CONTEXTS = [
    dataclasses.replace(CONTEXT, node_salt="another node"),
    dataclasses.replace(CONTEXT, generation=2),
    dataclasses.replace(CONTEXT, predecessor=ReferencedSOP("1.2", "1.3", "1.4", "1.5")),
]


@pytest.mark.parametrize(
    ("model", "context"),
    [*((m, CONTEXT) for m in OTHER_MODELS), *((MODEL, c) for c in OTHER_CONTEXTS)],
)
def test_another_model_node_or_generation_is_another_result(
    model: ModelIdentity, context: BuildContext
) -> None:
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(SOURCE, model, context)
    assert one.instance("seg") != other.instance("seg")
    assert one.tracking("segment", 0) != other.tracking("segment", 0)


def test_all_uids_of_one_job_differ() -> None:
    job = Identity(SOURCE, MODEL, CONTEXT)
    uids = [
        job.instance("seg"),
        job.instance("sr"),
        job.series("seg"),
        job.series("sr"),
        job.dimensions(),
        job.device(),
        *(job.tracking(kind, i) for kind in ("segment", "finding") for i in range(3)),
    ]
    assert len(set(uids)) == len(uids)


def test_a_rerun_joins_the_series_and_has_another_number() -> None:
    again = dataclasses.replace(CONTEXT, generation=2)
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(SOURCE, MODEL, again)
    assert one.series("sr") == other.series("sr")
    assert one.instance_number() != other.instance_number()


def test_two_images_of_a_series_have_numbers_of_their_own() -> None:
    images = [dicoms.dx_image(number=n) for n in (1, 2)]
    numbers = {Identity(source_of([i]), MODEL, CONTEXT).instance_number() for i in images}
    assert len(numbers) == 2


def test_a_source_without_a_number_gets_one() -> None:
    image = dicoms.dx_image(InstanceNumber=None)
    assert Identity(source_of([image]), MODEL, CONTEXT).instance_number() == 1


def test_the_series_number_is_the_models_whatever_its_version() -> None:
    new = dataclasses.replace(MODEL, version="2.0.0", bundle_digest="e" * 64)
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(SOURCE, new, CONTEXT)
    assert one.series_number("seg") == other.series_number("seg")
    assert one.series_number("seg") != one.series_number("sr")
    assert one.device() != other.device()


def test_sources_of_two_studies_are_refused() -> None:
    with pytest.raises(ResultError, match="more than one study"):
        source_of([dicoms.ct_slice(), dicoms.ct_slice(study_uid="1.2.3", number=2)])


def test_a_source_given_twice_is_refused() -> None:
    with pytest.raises(ResultError, match="twice"):
        source_of([SERIES[0], SERIES[0]])


def test_frames_of_strangers_are_refused() -> None:
    with pytest.raises(ResultError, match="not sources"):
        dataclasses.replace(SOURCE, datasets=SOURCE.datasets[:2], digests=SOURCE.digests[:2])


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ResultError, match="time zone"):
        dataclasses.replace(CONTEXT, job_created_at=CONTEXT.job_created_at.replace(tzinfo=None))
