"""Owns reading a received data set's header: is it whole, what does it say of itself.

Refuses to decode pixels and to know rows. Everything here comes from the network: sizes are
checked before memory is given, and messages quote UIDs and numbers only.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_node.domain.study import InstanceFacts, Patient
from dicom_node.errors import IdentifierProblem, OverLimit, UnreadableDataSet
from dicom_node.services.plain import Bytes, PlainHeader, plain_header

UID_FORM = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")  # PS3.5 section 9
MAXIMUM_INFLATED = 1 << 28
MAXIMUM_PIXEL_BYTES = 8 << 30
MAXIMUM_DEPTH = 64
"""Sequences within sequences; a structured report needs about twenty."""

_PIXELS = {Tag(0x7FE0, 0x0010), Tag(0x7FE0, 0x0008), Tag(0x7FE0, 0x0009)}
_PIXEL_KEYS = {tag.element << 16 | tag.group for tag in _PIXELS}  # as `_walk` reads them
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (
    0xE000FFFE,
    0xE00DFFFE,
    0xE0DDFFFE,
)  # read as one little-endian long
# What must be readable: a patient id that cannot be read is no absent one.
_IDENTITY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
)
_LONG = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}
_NOTHING = PlainHeader({})


Header = Dataset | PlainHeader
"""What answers ``get(keyword)``."""


def scan_header(data: Bytes, transfer_syntax: str) -> Header:
    """What `read_header` would read, of the usual image in a tenth of the time."""
    with _walked(data, transfer_syntax) as top:
        header = plain_header(top.data, top.elements, top.implicit)
        if header is None:
            return _parsed(top)
    _check_declared(header)
    return header


def read_header(data: Bytes, transfer_syntax: str) -> Dataset:
    """Parse everything before the pixel data, and see that every element is all there.

    Args:
        data: an encoded data set without file meta information.
        transfer_syntax: that it is encoded in.

    Raises:
        UnreadableDataSet: truncated, not DICOM, or nested beyond reason.
        OverLimit: it inflates, or declares pixels, beyond what the node takes.
    """
    with _walked(data, transfer_syntax) as top:
        return _parsed(top)


@dataclass
class _Top:
    """The top level of a data set, inflated.

    Attributes:
        elements: those before the pixels.
        pixels: where their element begins.
    """

    data: Bytes
    implicit: bool
    elements: dict[int, tuple[bytes, int, int]]
    pixels: int | None = None


_inflating = threading.Lock()
"""Senders of bombs get the memory for one between them."""


@contextmanager
def _walked(data: Bytes, transfer_syntax: str) -> Iterator[_Top]:
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        with _inflating, _walked(_inflate(data), ExplicitVRLittleEndian) as top:
            yield top
        return
    top = _Top(data, transfer_syntax == ImplicitVRLittleEndian, {})
    try:
        _walk(data, 0, top.implicit, 0, top)
    except struct.error:
        raise UnreadableDataSet("the data set is truncated") from None
    yield top


def _parsed(top: _Top) -> Dataset:
    # Of the pixels no more than the head that pydicom stops at
    end = len(top.data) if top.pixels is None else top.pixels + 12
    try:
        stream = BytesIO(bytes(memoryview(top.data)[:end]))
        header = read_dataset(stream, top.implicit, True, stop_when=_at_pixels)
        for name in _IDENTITY:  # pydicom parses a value when it is asked for
            header.get(name)
    except RecursionError:
        raise UnreadableDataSet("sequences are nested beyond reason") from None
    except Exception as error:  # pydicom raises whatever the damaged value happens to cause
        raise UnreadableDataSet(f"the data set cannot be parsed ({type(error).__name__})") from None
    _check_declared(header)
    return header


def check_identity(header: Header, sop_class_uid: str, sop_instance_uid: str) -> None:
    """See that the data set is what the request said, and has the UIDs that everything hangs on.

    Raises:
        IdentifierProblem: names the attribute.
    """
    for name, told in (("SOPClassUID", sop_class_uid), ("SOPInstanceUID", sop_instance_uid)):
        if _uid(header, name) != told:
            raise IdentifierProblem(f"{name} differs from the request's or is missing")
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        value = _uid(header, name)
        if len(value) > 64 or not UID_FORM.fullmatch(value):
            raise IdentifierProblem(f"{name} is missing or no UID")


def study_uid_of(header: Header) -> str:
    """Study Instance UID (0020,000D), as `check_identity` has seen it."""
    return _uid(header, "StudyInstanceUID")


def patient_of(header: Header) -> Patient:
    """Patient ID and issuer, for the check that a study names one patient."""
    return Patient(_text(header, "PatientID")[:64], _text(header, "IssuerOfPatientID")[:64])


def facts_of(header: Header, sha256: str, calling_ae: str, called_ae: str) -> InstanceFacts:
    """What rules and models ask of the instance; a value that makes no sense counts as absent."""
    body_part = _text(header, "BodyPartExamined") or _coded_region(header)
    return InstanceFacts(
        sop_instance_uid=_text(header, "SOPInstanceUID"),
        sop_class_uid=_text(header, "SOPClassUID"),
        series_instance_uid=_text(header, "SeriesInstanceUID"),
        sha256=sha256,
        modality=_text(header, "Modality"),
        sop_class=_sop_class_name(header),
        body_part=body_part,
        view=_text(header, "ViewPosition"),
        laterality=_text(header, "ImageLaterality") or _text(header, "Laterality"),
        image_type=_values(header, "ImageType"),
        series_description=_text(header, "SeriesDescription"),
        study_description=_text(header, "StudyDescription"),
        protocol=_text(header, "ProtocolName"),
        kernel="\\".join(_values(header, "ConvolutionKernel")),
        manufacturer=_text(header, "Manufacturer"),
        station=_text(header, "StationName"),
        calling_ae=calling_ae,
        called_ae=called_ae,
        rows=int(_number(header, "Rows") or 0),
        columns=int(_number(header, "Columns") or 0),
        frames=max(int(_number(header, "NumberOfFrames") or 1), 1),
        thickness_mm=_number(header, "SliceThickness") or _shared_thickness(header),
        orientation=_orientation(header),
        series_number=None if (n := _number(header, "SeriesNumber")) is None else int(n),
        acquired=(_text(header, "AcquisitionDate") + _text(header, "AcquisitionTime"))
        or _text(header, "AcquisitionDateTime"),
        is_image=bool(_number(header, "Rows")) and bool(_number(header, "Columns")),
        lossy=_text(header, "LossyImageCompression") == "01",
        priority=_text(header, "RequestedProcedurePriority"),
    )


def _sop_class_name(header: Header) -> str:
    return _name(_text(header, "SOPClassUID"))


@lru_cache(1024)
def _name(sop_class_uid: str) -> str:
    name = UID(sop_class_uid).name
    return name if name != sop_class_uid else ""


def _text(header: Header, name: str) -> str:
    value = _get(header, name)
    return "" if value is None else _plain(value)


def _plain(value: object) -> str:
    """Without the NULs that some pad with; PostgreSQL keeps none."""
    return str(value).replace("\0", "").strip(" ")


def _uid(header: Header, name: str) -> str:
    """Without its padding, and else as it is: what is inside must not be made to fit."""
    return str(header.get(name) or "").strip(" \0")


def _values(header: Header, name: str) -> tuple[str, ...]:
    value = _get(header, name)
    if value is None or value == "":
        return ()
    parts = [value] if isinstance(value, str) else list(value)
    return tuple(_plain(part) for part in parts)


def _number(header: Header, name: str) -> float | None:
    try:
        value = float(_get(header, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _shared(header: Header, macro: str, name: str) -> Any:
    """An attribute of a functional group that all frames share, or of the first frame."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(_get(header, groups) or ())[:1]:
            for item in list(_get(group, macro) or ())[:1]:
                if _get(item, name) is not None:
                    return item
    return _NOTHING


def _shared_thickness(header: Header) -> float | None:
    return _number(_shared(header, "PixelMeasuresSequence", "SliceThickness"), "SliceThickness")


def _orientation(header: Header) -> tuple[float, ...] | None:
    name = "ImageOrientationPatient"
    shared = _shared(header, "PlaneOrientationSequence", name)
    value = _get(header, name) or _get(shared, name)
    try:
        cosines = tuple(float(cosine) for cosine in value or ())
    except (TypeError, ValueError):
        return None
    return cosines if len(cosines) == 6 and all(map(math.isfinite, cosines)) else None


def _coded_region(header: Header) -> str:
    for item in list(_get(header, "AnatomicRegionSequence") or ())[:1]:
        return _text(item, "CodeMeaning")
    return ""


def _at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return tag in _PIXELS


def _get(header: Header, name: str) -> Any:
    """A value, or None where it makes no sense: one bad attribute must not lose an image."""
    try:
        return header.get(name)
    except Exception:  # pydicom raises whatever the damaged value happens to cause
        return None


def _check_declared(header: Header) -> None:
    sizes = [_number(header, n) or 1 for n in ("Rows", "Columns", "NumberOfFrames")]
    samples = _number(header, "SamplesPerPixel") or 1
    bits = _number(header, "BitsAllocated") or 8
    total = sizes[0] * sizes[1] * max(sizes[2], 1) * samples * bits / 8
    if total > MAXIMUM_PIXEL_BYTES:
        raise OverLimit(f"declares {total / 2**30:.0f} GiB of pixels")


def _walk(data: Bytes, at: int, implicit: bool, depth: int, top: _Top | None = None) -> int:
    """Step over elements without reading values; whatever is declared must be there.

    pydicom takes what is there of a value, and ends in silence at a broken element.

    Args:
        at: where the data set or the item begins.
        depth: 0 for the data set, which ends with the data; an item ends with its delimiter.
        top: takes note of the elements before the pixels.

    Returns:
        Where it ends.
    """
    if depth > MAXIMUM_DEPTH:
        raise UnreadableDataSet("sequences are nested beyond reason")
    size = len(data)
    while at < size or depth:
        begin = at
        tag, vr, length = struct.unpack_from("<L2sH", data, at)
        if tag == _ITEM_END and depth:
            return at + 8
        if implicit or not b"AA" <= vr <= b"ZZ":  # some writers change to implicit inside
            (length,) = struct.unpack_from("<L", data, at + 4)
            at += 8
        elif vr in _LONG:
            (length,) = struct.unpack_from("<L", data, at + 8)
            at += 12
        else:
            at += 8
        if top is not None:
            if tag in _PIXEL_KEYS:
                top.pixels, top = begin, None
            else:
                top.elements[tag] = vr, at, length
        if length == _UNDEFINED:
            at = _walk_items(data, at, implicit, depth + 1)
        else:
            at = _step(data, at, length)
    return at


def _walk_items(data: Bytes, at: int, implicit: bool, depth: int) -> int:
    """The same over the items of a sequence, or the fragments of pixel data, to their delimiter."""
    while True:
        tag, length = struct.unpack_from("<LL", data, at)
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise UnreadableDataSet("a sequence holds something else than items")
        at = _walk(data, at, implicit, depth) if length == _UNDEFINED else _step(data, at, length)


def _step(data: Bytes, at: int, length: int) -> int:
    if at + length > len(data):
        missing = at + length - len(data)
        raise UnreadableDataSet(f"the data set is truncated: {missing} bytes are missing")
    return at + length


def _inflate(data: Bytes) -> bytes:
    try:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5 A.5: raw deflate
        inflated = inflater.decompress(data, MAXIMUM_INFLATED)
    except zlib.error:
        raise UnreadableDataSet("the deflated data set cannot be inflated") from None
    if inflater.unconsumed_tail:
        raise OverLimit(f"inflates beyond {MAXIMUM_INFLATED >> 20} MiB")
    if not inflater.eof:
        raise UnreadableDataSet("the deflated data set is truncated")
    return inflated
