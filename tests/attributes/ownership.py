"""Whose an object is and when it was made, and that no letter of it is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

from pydicom.charset import python_encoding
from pydicom.dataset import Dataset

from tests.attributes.case import Case, plain

PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "PatientBirthDate",
    "OtherPatientNames",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
)
STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)


def same(*keywords: str) -> Callable[[Case], Iterator[str]]:
    """Each is what the source has, absent where it is absent there."""

    def check(case: Case) -> Iterator[str]:
        for keyword in keywords:
            ours, theirs = plain(case.data, keyword), plain(case.first, keyword)
            if ours != theirs:
                yield f"{keyword} is {ours!r}, of the source {theirs!r}"

    return check


def type_2(case: Case) -> Iterator[str]:
    yield from (f"no {keyword}" for keyword in TYPE_2 if keyword not in case.data)


def sex(case: Case) -> Iterator[str]:
    theirs = plain(case.first, "PatientSex")
    wanted = theirs if theirs in ("M", "F", "O") else ""
    if plain(case.data, "PatientSex") != wanted:
        yield f"{plain(case.data, 'PatientSex')!r} instead of {wanted!r}"


def time_zone(case: Case) -> Iterator[str]:
    theirs = plain(case.first, "TimezoneOffsetFromUTC")
    wanted = theirs if offset(theirs) is not None else ""
    if plain(case.data, "TimezoneOffsetFromUTC") != wanted:
        yield f"{plain(case.data, 'TimezoneOffsetFromUTC')!r} instead of {wanted!r}"


def offset(text: str) -> timedelta | None:
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", text)
    if not match:
        return None
    away = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return -away if match[1] == "-" else away


def content_time(case: Case) -> Iterator[str]:
    zone = timezone(offset(plain(case.first, "TimezoneOffsetFromUTC")) or timedelta(0))
    wanted: datetime = case.origin.context.job_created_at.astimezone(zone)
    for stem in ("Content", "InstanceCreation"):
        told = f"{case.data.get(stem + 'Date')}{case.data.get(stem + 'Time')}"
        if not told.startswith(wanted.strftime("%Y%m%d%H%M%S")):
            yield f"{stem} {told} instead of {wanted}"


def character_set(case: Case) -> Iterator[str]:
    declared = case.data.get("SpecificCharacterSet") or ""
    if not isinstance(declared, str):
        yield f"code extensions {list(declared)}"
        return
    encoding = python_encoding.get(declared) if declared else "ascii"
    texts = list(all_text(case.data))
    for text in texts:
        try:
            text.encode(encoding or "ascii")
        except UnicodeError:
            yield f"{text!r} does not fit {declared or 'ASCII'}"
        if "�" in text or "??" in text:
            yield f"{text!r} was lost on the way"
    theirs = case.first.get("SpecificCharacterSet") or ""
    if declared not in ("", "ISO_IR 192", theirs):
        yield f"{declared} is neither the source's nor UTF-8"


def all_text(dataset: Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.VR in ("LO", "LT", "PN", "SH", "ST", "UC", "UT") and element.value:
            values = [element.value] if element.VM == 1 else element.value
            yield from map(str, values)
