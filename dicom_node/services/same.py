"""Owns the question whether two encodings hold the same instance; decodes to answer it.

A PACS that forwards may recompress losslessly. Refuses to know rows; says no when in doubt. Both
are parsed and decoded in a child process, ``python -m dicom_node.services.same FILE SYNTAX`` with
the other data set on stdin: what a parser or decoder does not survive ends no listener.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import Unavailable
from dicom_node.services.children import confine
from dicom_node.services.headers import MAXIMUM_PIXEL_BYTES

_PATIENCE = 60.0
"""Seconds for the child, and for its turn; a sender waits for its answer as long."""

_MEMORY = 4 << 30
"""Bytes that the child may ask for."""

_SAME = 77
"""Its exit status for yes: none that an accident gives."""

_one_child = threading.Lock()
"""Senders of what is held already get the memory for one between them."""

# What an encoding, not the content, decides.
_OF_ENCODING = {
    "PixelData",
    "PlanarConfiguration",
    "PhotometricInterpretation",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "DataSetTrailingPadding",
    "SpecificCharacterSet",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
}


def same_content(
    held: Path, held_syntax: str, dataset: bytes | memoryview, transfer_syntax: str
) -> bool:
    """True when header and decoded pixels agree and only the transfer syntax differs.

    Args:
        held: the Part 10 file that we have.
        held_syntax: its transfer syntax.
        dataset: the newcomer, encoded, without file meta information.
        transfer_syntax: the newcomer's.

    Raises:
        Unavailable: others are compared, and it takes too long to wait for them.
    """
    if transfer_syntax in (held_syntax, DeflatedExplicitVRLittleEndian):
        return False
    if not _one_child.acquire(timeout=_PATIENCE):
        raise Unavailable("other instances that are held already are being compared")
    try:
        child = subprocess.run(
            [sys.executable, "-m", "dicom_node.services.same", str(held), transfer_syntax],
            input=dataset,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
        return child.returncode == _SAME
    except (OSError, subprocess.TimeoutExpired):  # what cannot be compared is not the same
        return False
    finally:
        _one_child.release()


def _parsed(dataset: bytes, syntax: UID) -> Dataset:
    parsed = read_dataset(BytesIO(dataset), syntax == ImplicitVRLittleEndian, True)
    parsed.file_meta = FileMetaDataset()
    parsed.file_meta.TransferSyntaxUID = syntax
    return parsed


def _header(dataset: Dataset) -> dict[str, str]:
    return {
        str(tag): _value(dataset, tag)
        for tag in dataset.keys()  # noqa: SIM118 - iteration gives elements, and parses them
        if keyword_for_tag(tag) not in _OF_ENCODING and tag.element != 0
    }


def _value(dataset: Dataset, tag: BaseTag) -> str:
    """Of private elements the bytes: implicit VR does not tell how they are to be parsed."""
    if tag.is_private:
        return str(dataset.get_item(tag).value or b"")
    return str(dataset[tag].value)


def _same_pixels(ours: Dataset, theirs: Dataset) -> bool:
    if "PixelData" not in ours:
        return "PixelData" not in theirs
    pixels = int(ours.Rows) * int(ours.Columns) * int(ours.get("NumberOfFrames") or 1)
    if pixels * int(ours.BitsAllocated) // 8 > MAXIMUM_PIXEL_BYTES // 16:
        return False
    return bool(np.array_equal(ours.pixel_array, theirs.pixel_array))


def main(held: str, transfer_syntax: str) -> int:
    """In the child: exit status of the answer."""
    confine(_MEMORY)
    ours = dcmread(held)
    theirs = _parsed(sys.stdin.buffer.read(), UID(transfer_syntax))
    return _SAME if _header(ours) == _header(theirs) and _same_pixels(ours, theirs) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
