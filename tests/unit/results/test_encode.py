import subprocess
import sys
from hashlib import sha256

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.results.encode import encode, encoded_sequence, fragment
from dicom_node.results.types import Source
from tests import dicoms
from tests.results import built, parse, source_of, two_segments

DIGESTS = """
from hashlib import sha256
from tests import dicoms
from tests.results import built, source_of, two_segments
source = source_of(dicoms.ct_series(3))
print([sha256(data).hexdigest() for data in built(two_segments(source), source).values()])
"""


def shuffled(source: Source) -> Source:
    order = [2, 0, 1]
    return Source(
        tuple(source.datasets[i] for i in order),
        tuple(source.digests[i] for i in order),
        source.frames,
    )


def test_the_same_inputs_give_the_same_bytes_in_whatever_order_they_come() -> None:
    source = source_of(dicoms.ct_series(3))
    prediction = two_segments(source)
    assert built(prediction, source) == built(prediction, source)
    assert built(prediction, source) == built(prediction, shuffled(source))


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_same_inputs_give_the_same_bytes_in_another_process(seed: str) -> None:
    source = source_of(dicoms.ct_series(3))
    here = [sha256(data).hexdigest() for data in built(two_segments(source), source).values()]
    there = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert there.stdout.strip() == str(here)


def test_the_file_is_part_10_of_ours() -> None:
    source = source_of([dicoms.dx_image()])
    for data in built(two_segments(source), source).values():
        assert data[128:132] == b"DICM"
        meta = parse(data).file_meta
        assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
        assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
        assert len(data) % 2 == 0


def test_an_encoded_sequence_is_what_pydicom_writes() -> None:
    inner = Dataset()
    inner.ReferencedSegmentNumber = 3
    outer = Dataset()
    outer.SegmentIdentificationSequence = [inner]
    assert encoded_sequence(0x0062000A, fragment(inner)) == fragment(outer)


def test_what_is_read_back_encodes_to_the_same_bytes() -> None:
    source = source_of(dicoms.ct_series(3))
    for data in built(two_segments(source), source).values():
        assert encode(parse(data)) == data
