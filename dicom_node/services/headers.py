"""Owns reading a received data set's header: is it whole, what does it say of itself.

Its elements are stepped over and counted; what is asked of them is cut out before it is parsed.
Refuses to decode pixels and to know rows. Everything here comes from the network: sizes are
checked before memory is given, and messages quote UIDs and numbers only.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from operator import length_hint
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from dicom_node.domain.study import InstanceFacts, Patient
from dicom_node.errors import IdentifierProblem, OverLimit, UnreadableDataSet
from dicom_node.services.plain import (
    GROUPS,
    REGION,
    VALUES,
    Bytes,
    PlainHeader,
    key_of,
    plain_header,
)

UID_FORM = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")  # PS3.5 section 9
MAXIMUM_INFLATED = 1 << 28
MAXIMUM_PIXEL_BYTES = 8 << 30
MAXIMUM_DEPTH = 64
"""Sequences within sequences; a structured report needs about twenty."""
MAXIMUM_ELEMENTS = 500_000
"""Elements and items that are stepped over; an enhanced CT of 4,000 frames has half as many."""
MAXIMUM_VALUE = 0xFFFF
"""Bytes of a value that is asked for: as many as two bytes of length can say (PS3.5 7.1.2)."""

_PIXELS = frozenset(map(key_of, ("PixelData", "FloatPixelData", "DoubleFloatPixelData")))
_UNDEFINED = 0xFFFFFFFF
_OPEN = sys.maxsize  # where a data set ends that a delimiter ends
_ITEM, _ITEM_END, _SEQUENCE_END = (
    0xE000FFFE,
    0xE00DFFFE,
    0xE0DDFFFE,
)  # read as one little-endian long
_element = struct.Struct("<L2sH").unpack_from
_tag_and_length = struct.Struct("<LL").unpack_from
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

_Asked = Mapping[int, "_Asked"]
"""By tag: nothing below a value, and what is asked of a sequence's first item."""
_NO_MORE: _Asked = {}


def _asked(*values: str, **sequences: _Asked) -> _Asked:
    below = dict.fromkeys(values, _NO_MORE) | sequences
    return {key_of(keyword): asked for keyword, asked in below.items()}


_GROUP = _asked(
    PixelMeasuresSequence=_asked("SliceThickness"),
    PlaneOrientationSequence=_asked("ImageOrientationPatient"),
)
_HEADER: _Asked = {
    **dict.fromkeys(VALUES, _NO_MORE),
    **dict.fromkeys(GROUPS, _GROUP),
    REGION: _asked("SpecificCharacterSet", "CodeMeaning"),
}


Header = Dataset | PlainHeader
"""What answers ``get(keyword)``."""


def scan_header(data: Bytes, transfer_syntax: str) -> Header:
    """What `read_header` would read, of the usual image in a tenth of the time."""
    with _walked(data, transfer_syntax) as (walk, top):
        header = plain_header(walk.data, top.elements, top.told, walk.implicit)
        if header is None:
            return _parsed(walk, top)
    _check_declared(header)
    return header


def read_header(data: Bytes, transfer_syntax: str) -> Dataset:
    """Read what is asked of a data set before its pixels, and see that every element is all there.

    Args:
        data: an encoded data set without file meta information.
        transfer_syntax: that it is encoded in.

    Raises:
        UnreadableDataSet: truncated, not DICOM, or nested beyond reason.
        OverLimit: it inflates, declares pixels, or has elements beyond what the node takes.
    """
    with _walked(data, transfer_syntax) as (walk, top):
        return _parsed(walk, top)


def measure(data: bytes, transfer_syntax: str) -> int:
    """How many elements and items pydicom can come to make of a whole data set, not deflated.

    Raises:
        UnreadableDataSet: truncated, not DICOM, or nested beyond reason.
        OverLimit: there are more of them, or of single values, than the node takes.
    """
    walk = _Walk(data, transfer_syntax == ImplicitVRLittleEndian, deep=True)
    with _whole():
        walk.elements(0, len(data), 0)
    if data.count(b"\\") > MAXIMUM_ELEMENTS:  # they part values (PS3.5 6.4)
        raise OverLimit(f"more than {MAXIMUM_ELEMENTS} values")
    return MAXIMUM_ELEMENTS - length_hint(walk.budget)


_inflating = threading.Lock()
"""Senders of bombs get the memory for one between them."""


@contextmanager
def _walked(data: Bytes, transfer_syntax: str) -> Iterator[tuple[_Walk, _Level]]:
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        with _inflating, _walked(_inflate(data), ExplicitVRLittleEndian) as found:
            yield found
        return
    walk, top = _Walk(data, transfer_syntax == ImplicitVRLittleEndian), _Level(_HEADER)
    with _whole():
        walk.elements(0, len(data), 0, top)
    yield walk, top


@contextmanager
def _whole() -> Iterator[None]:
    try:
        yield
    except struct.error:
        raise UnreadableDataSet("the data set is truncated") from None


def _parsed(walk: _Walk, top: _Level) -> Dataset:
    """By pydicom, which makes a hundred times its bytes of an item: it gets what is asked for."""
    try:
        header = read_dataset(BytesIO(_only(walk, top)), walk.implicit, True)
        for name in _IDENTITY:  # pydicom parses a value when it is asked for
            header.get(name)
    except OverLimit:
        raise
    except Exception as error:  # pydicom raises whatever the damaged value happens to cause
        raise UnreadableDataSet(f"the data set cannot be parsed ({type(error).__name__})") from None
    _check_declared(header)
    return header


def _only(walk: _Walk, level: _Level) -> bytes:
    """The elements of a level that are asked for, as a data set of the same encoding."""
    pieces = []
    for tag in sorted(level.elements, key=lambda tag: (tag & 0xFFFF, tag)):
        vr, at, length = level.elements[tag]
        if inner := level.asked[tag]:
            value = _first_item(walk, at, length, inner)
            head = struct.pack("<L", tag) if walk.implicit else struct.pack("<L4s", tag, b"SQ")
            pieces += [head, struct.pack("<L", len(value)), value]
            continue
        end = level.ends.get(tag, at + length)
        if end - at > MAXIMUM_VALUE:
            raise OverLimit(f"{end - at} bytes in a value of the header")
        begin = at - (12 if vr in _LONG and not walk.implicit else 8)
        pieces.append(bytes(walk.data[begin:end]))
    return b"".join(pieces)


def _first_item(walk: _Walk, at: int, length: int, asked: _Asked) -> bytes:
    """What is asked of a sequence's first item; nothing where there is none that can be read."""
    level = _Level(asked)
    try:
        tag, inside = _tag_and_length(walk.data, at)
        if tag != _ITEM or not length:
            return b""
        walk.elements(at + 8, _OPEN if inside == _UNDEFINED else at + 8 + inside, 1, level)
    except (struct.error, UnreadableDataSet):
        return b""
    content = _only(walk, level)
    return struct.pack("<LL", _ITEM, len(content)) + content


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


class _Level:
    """What a walk notes of one data set or item, before its pixels.

    Attributes:
        asked: which elements.
        elements: those of them that are there.
        ends: where those of undefined length end.
        told: the VRs of all elements, in the order in which each is met first.
    """

    def __init__(self, asked: _Asked) -> None:
        self.asked = asked
        self.elements: dict[int, tuple[bytes, int, int]] = {}
        self.ends: dict[int, int] = {}
        self.told: dict[bytes, None] = {}

    def note(self, tag: int, vr: bytes, at: int, length: int) -> bool:
        """Take note of an element whose value begins at ``at``; False at the pixels."""
        if tag in _PIXELS:
            return False
        self.told[vr] = None
        if tag in self.asked:
            self.elements[tag] = vr, at, length
        return True


class _Walk:
    """Steps over elements without reading values; whatever is declared must be there.

    pydicom takes what is there of a value, and ends in silence at a broken element.

    Args:
        implicit: whether the transfer syntax tells no VRs.
        deep: look into sequences of defined length too.

    Attributes:
        budget: gives as many steps as are left.
    """

    def __init__(self, data: Bytes, implicit: bool, deep: bool = False) -> None:
        self.data, self.implicit, self._deep = data, implicit, deep
        self.budget = iter(range(MAXIMUM_ELEMENTS))

    def elements(self, at: int, end: int, depth: int, level: _Level | None = None) -> int:
        """Of a data set or an item, which begins at ``at``; where it ends.

        Args:
            end: where it should; `_OPEN` where its delimiter ends it.
            depth: 0 for the data set.
            level: takes note.
        """
        if depth > MAXIMUM_DEPTH:
            raise UnreadableDataSet("sequences are nested beyond reason")
        data, implicit = self.data, self.implicit
        for _ in self.budget:
            if at >= end:
                return at
            tag, vr, length = _element(data, at)
            if tag == _ITEM_END and end == _OPEN:
                return at + 8
            if implicit or not b"AA" <= vr <= b"ZZ":  # some writers change to implicit inside
                length = _tag_and_length(data, at)[1]
                at += 8
            elif vr in _LONG:
                length = _tag_and_length(data, at + 4)[1]
                at += 12
            else:
                at += 8
            if level is not None and not level.note(tag, vr, at, length):
                level = None
            if length == _UNDEFINED:
                at = self._items(at, _OPEN, depth + 1)
                if level is not None and tag in level.asked:
                    level.ends[tag] = at
            elif self._deep and self._is_sequence(tag, vr, at, length):
                at = self._items(at, self._step(at, length), depth + 1)
            else:
                at = self._step(at, length)
        raise OverLimit(f"more than {MAXIMUM_ELEMENTS} elements and items")

    def _items(self, at: int, end: int, depth: int) -> int:
        """The same over the items of a sequence, or the fragments of pixel data."""
        for _ in self.budget:
            if at >= end:
                return at
            tag, length = _tag_and_length(self.data, at)
            at += 8
            if tag == _SEQUENCE_END:
                return at
            if tag != _ITEM:
                raise UnreadableDataSet("a sequence holds something else than items")
            if length == _UNDEFINED:
                at = self.elements(at, _OPEN, depth)
            elif self._deep:
                at = self.elements(at, self._step(at, length), depth)
            else:
                at = self._step(at, length)
        raise OverLimit(f"more than {MAXIMUM_ELEMENTS} elements and items")

    def _is_sequence(self, tag: int, vr: bytes, at: int, length: int) -> bool:
        """Whether pydicom may take a value of defined length for one."""
        if length < 8:
            return False
        number = (tag & 0xFFFF) << 16 | tag >> 16
        named = dictionary_has_tag(number) and dictionary_VR(number) == "SQ"
        return named or vr == b"SQ" or _tag_and_length(self.data, at)[0] == _ITEM

    def _step(self, at: int, length: int) -> int:
        if at + length > len(self.data):
            missing = at + length - len(self.data)
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
