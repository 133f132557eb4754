from __future__ import annotations

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node.destinations.query import _names

UID = "1.2.3"


def match(vr: str, value: bytes) -> Dataset:
    """An answer as pynetdicom hands it over: read when it is looked at."""
    answer, tag = Dataset(), Tag("SOPInstanceUID")
    answer[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return answer


def test_a_match_names_the_instance_or_none() -> None:
    assert _names(match("UI", b"1.2.3\0"), UID)
    assert not _names(match("UI", b"1.2.4\0"), UID)
    assert not _names(Dataset(), UID)
    assert not _names(None, UID)


@pytest.mark.parametrize("vr", ["SQ", "ZZ", "FD"])
def test_a_match_that_cannot_be_read_is_none(vr: str) -> None:
    assert not _names(match(vr, b"1.2.3\0"), UID)
