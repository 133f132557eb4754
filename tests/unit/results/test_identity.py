import dataclasses
import uuid
from collections.abc import Callable

import pytest
from pydicom.uid import UID

from dicom_node import IMPLEMENTATION_CLASS_UID
from dicom_node.domain.profile import Document, Encoding, ScForm, SegForm, SrForm
from dicom_node.errors import ResultError
from dicom_node.results.identity import Identity, make_uid
from dicom_node.results.types import BuildContext, ModelIdentity, ReferencedSOP, Source
from tests import dicoms
from tests.results import CONTEXT, MODEL, source_of

SEG, SR = SegForm(), SrForm()
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
    assert one.instance(SEG) == other.instance(SEG)
    assert one.series(SR) == other.series(SR)


def digest(source: Source) -> Source:
    return dataclasses.replace(source, digests=("0" * 64, *source.digests[1:]))


def fewer(source: Source) -> Source:
    return source_of(source.datasets[:2])


@pytest.mark.parametrize("change", [digest, fewer])
def test_other_content_is_another_result(change: Callable[[Source], Source]) -> None:
    other = Identity(change(SOURCE), MODEL, CONTEXT)
    assert other.instance(SR) != Identity(SOURCE, MODEL, CONTEXT).instance(SR)


OTHER_MODELS = [
    dataclasses.replace(MODEL, bundle_digest="f" * 64),
    dataclasses.replace(MODEL, parameters={"right lung": "0.6", "left lung": "0.4"}),
]
OTHER_CONTEXTS = [
    dataclasses.replace(CONTEXT, node_salt="another node"),
    dataclasses.replace(CONTEXT, generation=2),
    dataclasses.replace(CONTEXT, predecessors={str(SR): ReferencedSOP("1.2", "1.3", "1.4", "1.5")}),
]


@pytest.mark.parametrize(
    ("model", "context"),
    [*((m, CONTEXT) for m in OTHER_MODELS), *((MODEL, c) for c in OTHER_CONTEXTS)],
)
def test_another_model_node_or_generation_is_another_result(
    model: ModelIdentity, context: BuildContext
) -> None:
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(SOURCE, model, context)
    assert one.instance(SEG) != other.instance(SEG)
    assert one.tracking("segment", 0) != other.tracking("segment", 0)


def test_all_uids_of_one_job_differ() -> None:
    job = Identity(SOURCE, MODEL, CONTEXT)
    uids = [
        job.instance(SEG),
        job.instance(SR),
        job.series(SEG),
        job.series(SR),
        job.instance(SegForm(Encoding.LABELMAP)),
        job.instance(SrForm(Document.ENHANCED)),
        job.instance(SrForm(cites=None)),
        *(job.instance(ScForm(), page) for page in (1, 2)),
        job.dimensions(SEG),
        job.dimensions(SegForm(Encoding.LABELMAP)),
        job.device(),
        *(job.tracking(kind, i) for kind in ("segment", "finding") for i in range(3)),
    ]
    assert len(set(uids)) == len(uids)


def test_a_rerun_joins_the_series_and_has_another_number() -> None:
    again = dataclasses.replace(CONTEXT, generation=2)
    one, other = Identity(SOURCE, MODEL, CONTEXT), Identity(SOURCE, MODEL, again)
    assert one.series(SR) == other.series(SR)
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
    assert one.series_number(SEG) == other.series_number(SEG)
    assert one.series_number(SEG) != one.series_number(SR)
    assert one.device() != other.device()


def test_pages_have_numbers_of_their_own_for_every_image_and_generation() -> None:
    jobs = [
        Identity(source_of([dicoms.dx_image(number=n)]), MODEL, context)
        for n in (1, 2)
        for context in (CONTEXT, dataclasses.replace(CONTEXT, generation=2))
    ]
    numbers = [job.instance_number(page) for job in jobs for page in range(1, 7)]
    assert len(set(numbers)) == len(numbers)


def test_a_later_builder_keeps_the_uids_of_what_an_earlier_one_sent() -> None:
    earlier = dataclasses.replace(CONTEXT, builder="1")
    assert Identity(SOURCE, MODEL, earlier).instance(SEG) != Identity(
        SOURCE, MODEL, CONTEXT
    ).instance(SEG)


def test_a_report_supersedes_its_own_form_where_there_was_one() -> None:
    plain, other = ReferencedSOP("1", "2", "3", "4"), ReferencedSOP("5", "6", "7", "8")
    enhanced = SrForm(Document.ENHANCED)
    context = dataclasses.replace(CONTEXT, predecessors={str(SR): plain, str(enhanced): other})
    assert context.predecessor(SR) == plain
    assert context.predecessor(enhanced) == other
    assert context.predecessor(SrForm(cites=None)) in (plain, other)
    assert CONTEXT.predecessor(SR) is None


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
