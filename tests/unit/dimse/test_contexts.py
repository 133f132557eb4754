from __future__ import annotations

import pytest
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
)
from pynetdicom.presentation import build_context

from dicom_node.dimse.contexts import (
    MPPS,
    STORAGE_COMMITMENT,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    accepted,
    is_uid,
    keep_first_choice,
    proposed,
    storage_classes,
)
from tests import dicoms

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
RETIRED_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
HANGING_PROTOCOL = "1.2.840.10008.5.1.4.38.1"


def test_storage_is_old_and_new_and_of_patients_only() -> None:
    classes = storage_classes()
    assert {dicoms.CT, LABEL_MAP_SEGMENTATION, RETIRED_ULTRASOUND} <= classes
    assert not {MEDIA_DIRECTORY, HANGING_PROTOCOL, STORAGE_COMMITMENT, VERIFICATION} & classes


def test_what_is_decodable_is_accepted_for_storage_only() -> None:
    syntaxes = {str(c.abstract_syntax): c.transfer_syntax for c in accepted()}
    assert set(syntaxes[dicoms.CT]) == set(TRANSFER_SYNTAXES)
    assert len(TRANSFER_SYNTAXES) == 15
    assert JPEGExtended12Bit in TRANSFER_SYNTAXES
    assert ExplicitVRBigEndian not in TRANSFER_SYNTAXES
    for service in (VERIFICATION, MPPS, STORAGE_COMMITMENT):
        assert DeflatedExplicitVRLittleEndian not in syntaxes[service]


def test_the_requestors_first_acceptable_syntax_is_kept() -> None:
    offered: list[str | UID] = [ExplicitVRBigEndian, JPEG2000Lossless, ImplicitVRLittleEndian]
    contexts = [
        build_context(dicoms.CT, offered),
        build_context(dicoms.CT, [ExplicitVRBigEndian]),
        build_context("1.2.3", offered),
        build_context(VERIFICATION, [JPEG2000Lossless, ImplicitVRLittleEndian]),
    ]
    keep_first_choice(contexts)
    assert [c.transfer_syntax for c in contexts] == [
        [JPEG2000Lossless],
        [ExplicitVRBigEndian],
        offered,
        [ImplicitVRLittleEndian],
    ]


def test_each_proposed_context_has_one_syntax_and_none_comes_twice() -> None:
    kinds = [
        (dicoms.CT, ImplicitVRLittleEndian),
        (dicoms.CT, ImplicitVRLittleEndian),
        (dicoms.MR, JPEG2000Lossless),
    ]
    offered = [(c.abstract_syntax, c.transfer_syntax) for c in proposed(kinds)]
    assert offered == [
        (dicoms.CT, [ImplicitVRLittleEndian]),
        (dicoms.CT, [ExplicitVRLittleEndian]),
        (dicoms.MR, [JPEG2000Lossless]),
    ]


@pytest.mark.parametrize("value", ["1.2.3", "2.25." + "1" * 59, "1.02.3"])
def test_a_uid_is_digits_and_dots(value: str) -> None:
    assert is_uid(value)


@pytest.mark.parametrize(
    "value", ["", "1.2/../3", "Doe^John", "1.2\n", "1" * 65, "1.2.٣", None, 12]
)
def test_anything_else_is_no_uid(value: object) -> None:
    assert not is_uid(value)
