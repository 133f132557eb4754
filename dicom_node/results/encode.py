"""Owns the bytes of a result: a Part 10 file in Explicit VR Little Endian, always the same.

Refuses to know what is in it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO

from pydicom import dcmwrite
from pydicom.charset import convert_encodings, default_encoding
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

ITEM = b"\xfe\xff\x00\xe0"


def encode(dataset: Dataset) -> bytes:
    """A Part 10 file (PS3.10 7) with the data set's own file meta information."""
    buffer = BytesIO()
    # Values copied from a source may break their VR, and warnings about them would quote them.
    with disable_value_validation():
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def fragment(dataset: Dataset) -> bytes:
    """The elements of ``dataset`` in Explicit VR Little Endian, ASCII text only."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def encoded_sequence(tag_number: int, *items: bytes) -> bytes:
    """A sequence element whose items are made of `fragment` s in the order of their tags."""
    value = _items(items)
    tag = Tag(tag_number)
    return struct.pack("<HH2sHI", tag.group, tag.element, b"SQ", 0, len(value)) + value


def put_encoded_items(dataset: Dataset, tag_number: int, items: Sequence[bytes]) -> None:
    """Adds a sequence whose items are `fragment` s already, and which pydicom decodes when asked.

    Hundreds of per-frame functional groups that differ in a few bytes are an order of magnitude
    faster put together than built as data sets. Only possible because `encode` writes the syntax
    of `fragment`; call `ready_to_write` when the data set is complete.
    """
    value = _items(items)
    tag = Tag(tag_number)
    dataset[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True)


def ready_to_write(dataset: Dataset) -> None:
    """Tells pydicom that encoded elements are in the syntax and character set of the data set."""
    declared = dataset.get("SpecificCharacterSet")
    character_set = convert_encodings(declared) if declared else default_encoding
    dataset.set_original_encoding(False, True, character_set)


def _items(items: Sequence[bytes]) -> bytes:
    return b"".join(ITEM + len(item).to_bytes(4, "little") + item for item in items)
