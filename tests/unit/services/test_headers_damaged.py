"""Damaged data sets in front of the header reader: a named refusal or a header, nothing else."""

from __future__ import annotations

import random
import time
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dicom_node.errors import RefusedInstance
from dicom_node.services.headers import check_identity, facts_of, patient_of, read_header
from tests import dicoms
from tests.faults.fuzz import mutated
from tests.faults.wire import DEFLATED, EXPLICIT, IMPLICIT, encoded

_IMAGES = (
    dicoms.ct_slice(pixels=dicoms.phantom((8, 8))),
    dicoms.dx_image(pixels=dicoms.phantom((8, 8))),
    dicoms.enhanced_ct(2, shape=(8, 8)),
)
WHOLE = {
    (n, syntax): encoded(image, syntax)
    for n, image in enumerate(_IMAGES)
    for syntax in (EXPLICIT, IMPLICIT)
}
PATIENCE = 5.0
"""Seconds for one header, on a busy machine."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of each damage


def read(data: bytes, syntax: str) -> bool:
    """All that the listener asks of a header; whether it was one."""
    started = time.monotonic()
    try:
        header = read_header(data, syntax)
        check_identity(header, dicoms.CT, "1.2.3")
        facts_of(header, "0" * 64, "A", "B")
        patient_of(header)
        return True
    except RefusedInstance as refusal:
        assert "ZEBRA" not in refusal.reason
        return False
    finally:
        assert time.monotonic() - started < PATIENCE


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 2**32))
def test_a_damaged_data_set_is_refused_by_name_or_read(which: tuple[int, str], seed: int) -> None:
    data = mutated(WHOLE[which], random.Random(seed))
    header_or_refusal = read(data, which[1])
    assert header_or_refusal in (True, False)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.sampled_from((EXPLICIT, IMPLICIT, DEFLATED)))
@example(b"", EXPLICIT)
@example(zlib.compress(b"\0" * 1000)[2:-4], DEFLATED)
def test_any_bytes_at_all_are_refused_by_name_or_read(data: bytes, syntax: str) -> None:
    assert read(data, syntax) in (True, False)
