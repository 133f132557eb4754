"""Owns the question whether two encodings hold the same instance; decodes to answer it.

A PACS that forwards may recompress losslessly. Refuses to know rows; says no when in doubt.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ImplicitVRLittleEndian

from dicom_node.services.headers import MAXIMUM_PIXEL_BYTES

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


def same_content(held: Path, dataset: bytes, transfer_syntax: str) -> bool:
    """True when header and decoded pixels agree and only the transfer syntax differs.

    Args:
        held: the Part 10 file that we have.
        dataset: the newcomer, encoded, without file meta information.
        transfer_syntax: the newcomer's.
    """
    try:
        ours = dcmread(held)
        syntax = UID(transfer_syntax)
        if ours.file_meta.TransferSyntaxUID == syntax or syntax.is_deflated:
            return False
        theirs = read_dataset(BytesIO(dataset), syntax == ImplicitVRLittleEndian, True)
        theirs.file_meta = ours.file_meta.__class__()
        theirs.file_meta.TransferSyntaxUID = syntax
        return _header(ours) == _header(theirs) and _same_pixels(ours, theirs)
    except Exception:  # whatever a decoder raises: what cannot be compared is not the same
        return False


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
