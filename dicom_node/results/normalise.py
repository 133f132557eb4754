"""Owns what a result copies from its source, and the repair of sources that are careless.

Refuses to invent: an attribute that the source lacks stays empty where the standard wants it
present (type 2), and absent elsewhere. The source is never modified.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

REQUIRED = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
)
"""Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): always written."""

OPTIONAL = (
    # Patient
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "PatientBirthTime",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "QualityControlSubject",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientSexNeutered",
    # Study
    "IssuerOfAccessionNumberSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "ReferringPhysicianIdentificationSequence",
    "PhysiciansOfRecord",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    # Clinical trial
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
"""Copied where the source has them, be they empty."""

SEXES = ("M", "F", "O")
_OFFSET = re.compile(r"([+-])(\d{2})([0-5]\d)")
_TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
_UNREADABLE = (ValueError, TypeError, KeyError, NotImplementedError, OverflowError, struct.error)

_SINGLE_BYTE = {f"ISO_IR {n}" for n in (100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 203)}
_KEPT = _SINGLE_BYTE | {"ISO_IR 192"}
"""Character sets of one byte a character, and UTF-8. Text of the others, which readers get wrong
most (code extensions, bytes that look like a backslash), is rewritten in UTF-8."""


def study_header(source: Dataset) -> Dataset:
    """Patient and study attributes of ``source``, with ``TimezoneOffsetFromUTC`` where valid.

    Text is decoded; `fit_character_set` must choose the character set once all text is there.

    Returns:
        a new data set that shares nothing with ``source``.
    """
    header = Dataset()
    header.StudyInstanceUID = str(source.StudyInstanceUID)
    for keyword in REQUIRED:
        value = _value(source, keyword)
        if keyword == "PatientSex" and value not in SEXES:
            value = None
        _put(header, keyword, value)
    for keyword in OPTIONAL:
        if keyword in source:
            _put(header, keyword, _value(source, keyword))
    if utc_offset(source) is not None:
        _put(header, "TimezoneOffsetFromUTC", str(_value(source, "TimezoneOffsetFromUTC")).strip())
    return header


def utc_offset(source: Dataset) -> timedelta | None:
    """The source's ``TimezoneOffsetFromUTC`` (PS3.3 C.12.1.1.8), None where absent or no offset."""
    match = _OFFSET.fullmatch(str(_value(source, "TimezoneOffsetFromUTC") or "").strip())
    if not match:
        return None
    sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    if offset > timedelta(hours=14):
        return None
    return -offset if sign == "-" else offset


def local_time(when: datetime, source: Dataset) -> tuple[str, str]:
    """``when`` as DA and TM on the source's clock; in UTC where the source does not tell its own.

    The offset is never added to an object whose source has none: it would also move the study
    times that are copied, which are in a time zone that nobody told.
    """
    there = when.astimezone(timezone(utc_offset(source) or timedelta(0)))
    return there.strftime("%Y%m%d"), there.strftime("%H%M%S.%f")


def fit_character_set(dataset: Dataset, source: Dataset) -> None:
    """Sets ``SpecificCharacterSet``: the source's where all text fits it, else ISO_IR 192."""
    declared = _value(source, "SpecificCharacterSet")
    one = declared[0] if isinstance(declared, list) and len(declared) == 1 else declared
    kept = one if isinstance(one, str) and one in _KEPT else None
    unusual = [text for text in _texts(dataset) if not text.isascii()]
    if unusual:
        dataset.SpecificCharacterSet = (
            kept if kept and all(_fits(text, kept) for text in unusual) else "ISO_IR 192"
        )
    elif kept:
        dataset.SpecificCharacterSet = kept
    elif "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet


def _fits(text: str, character_set: str) -> bool:
    try:
        text.encode(python_encoding[character_set])
    except UnicodeError:
        return False
    return True


def _texts(dataset: Dataset) -> Iterator[str]:
    """All text that the character set governs, but not that of elements still encoded."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset decodes its elements
        element = dataset.get_item(tag)
        if not isinstance(element, DataElement):
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in _TEXT and element.value:
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            yield from (str(value) for value in values)


def _value(dataset: Dataset, keyword: str) -> object:
    """A plain value that shares nothing with ``dataset``; None where absent or undecodable."""
    try:
        element = dataset[keyword]
    except _UNREADABLE:
        return None
    return _plain(element)


def _plain(element: DataElement) -> object:
    if element.VR == "SQ":
        return [_copy(item) for item in element.value]
    if isinstance(element.value, MultiValue):
        return [_plain_one(value) for value in element.value]
    return None if element.value is None else _plain_one(element.value)


def _plain_one(value: object) -> object:
    # PersonName keeps bytes of the source's character set, DSfloat the source's own digits.
    return value if isinstance(value, int | float | bytes) and type(value) in _EXACT else str(value)


_EXACT = {int, float, bytes}


def _copy(item: Dataset) -> Dataset:
    """A deep copy with text decoded; elements that cannot be read, and private ones, are left."""
    copied = Dataset()
    for tag in item.keys():  # noqa: SIM118 - iterating a Dataset decodes its elements
        if tag.is_private or tag == 0x00080005:  # the root's character set governs now
            continue
        try:
            element = item[tag]
        except _UNREADABLE:
            continue
        copied.add(DataElement(tag, element.VR, _plain(element)))
    return copied


def _put(dataset: Dataset, keyword: str, value: object) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword  # noqa: S101 - the tables above hold DICOM keywords only
    dataset.add(DataElement(tag, dictionary_VR(tag), value))
