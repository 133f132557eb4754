"""Owns the reading of what a DICOMweb server answers; refuses to know sockets.

Every byte of it is untrusted: nothing of it but numbers reaches a message. As one request carries
one instance, whatever an answer lists as failed is that instance, however it is named.

Sources: PS3.18 10.5.3 (status codes), annex I (Store Instances Response Module), annex F (JSON);
PS3.19 annex A (XML).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from xml.etree import ElementTree

from dicom_node.destinations.types import Item, Refused, Sent
from dicom_node.dimse.status import SOP_CLASS_NOT_SUPPORTED, Meaning, meaning_of
from dicom_node.errors import AccessDenied, DeliveryFailed, DestinationClosed, Retry

FAILED: Final = "00081198"
TAKEN: Final = "00081199"
OTHER_FAILURES: Final = "0008119A"
FAILURE_REASON: Final = "00081197"
WARNING_REASON: Final = "00081196"
REFERENCED_INSTANCE: Final = "00081155"
SOP_INSTANCE: Final = "00080018"

SYNTAX_NOT_SUPPORTED: Final = 0xC122
LONGEST_WAIT: Final = 3600.0
"""Seconds of a Retry-After that are heeded: a server whose clock is wrong may ask for years."""

_DENIED: Final = frozenset({401, 403, 407})
_BUSY: Final = frozenset({429, 502, 503, 504})
_NEVER: Final = frozenset({413, 415})

Told = Mapping[str, Any]
"""A data set in the JSON model: tag as eight hexadecimal digits -> {"vr": ..., "Value": [...]}."""


def fate(status: int, body: bytes, item: Item, wait: float = 0.0) -> Sent:
    """What the answer to the storing of one instance says.

    Args:
        status: of HTTP.
        body: as it came.
        item: what was sent, alone.
        wait: seconds that the server asked for.

    Raises:
        DeliveryFailed: it was not stored, or nothing says that it was.
    """
    try:
        told = data_sets(body)
    except ValueError:
        told = []
    if failed := _items(told, FAILED, OTHER_FAILURES):
        raise _refusal(_number(failed[0], FAILURE_REASON))
    if 200 <= status < 300:
        for taken in _items(told, TAKEN):
            if _text(taken, REFERENCED_INSTANCE) == item.sop_instance_uid:
                return Sent(_number(taken, WARNING_REASON) or 0, item.transfer_syntax)
    raise _failure(status, any(FAILED in one or TAKEN in one for one in told), wait)


def held(body: bytes) -> set[str]:
    """The SOP Instance UIDs that an answer to a query names.

    Raises:
        DeliveryFailed: it is no such answer.
    """
    try:
        return {_text(one, SOP_INSTANCE) for one in data_sets(body)} - {""}
    except ValueError as error:
        raise DeliveryFailed("the answer is neither DICOM JSON nor XML", Retry.LATER) from error


def refused(status: int, wait: float = 0.0) -> DeliveryFailed:
    """The failure that an HTTP status says where no body explains it."""
    return _failure(status, False, wait)


def data_sets(body: bytes) -> list[Told]:
    """The data sets of an answer in JSON or XML; none of an empty one.

    Raises:
        ValueError: it is neither.
    """
    text = body.decode("utf-8-sig").strip()
    if not text:
        return []
    if text.startswith("<"):
        return [_native(text)]
    try:
        told = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    found = told if isinstance(told, list) else [told]
    if not all(isinstance(one, dict) for one in found):
        raise ValueError("no data set")
    return found


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110 10.2.3); 0 where it says nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_WAIT)
    try:
        seconds = (parsedate_to_datetime(text) - now).total_seconds()
    except (TypeError, ValueError, OverflowError):  # no date, or one without a zone
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _refusal(reason: int | None) -> DeliveryFailed:
    """By Failure Reason, whose values are those of C-STORE (PS3.18 table I.2-2)."""
    if reason is None:
        return DeliveryFailed("refused without a reason", Retry.LATER)
    if reason == SYNTAX_NOT_SUPPORTED:  # told as C-STORE does, so that another form goes instead
        words = f"refused with status 0x{reason:04X}: transfer syntax not supported"
        return DeliveryFailed(words, Retry.NEVER, SOP_CLASS_NOT_SUPPORTED)
    never = meaning_of(reason) is Meaning.NEVER
    return Refused(reason, Retry.NEVER if never else Retry.LATER)


def _failure(status: int, judged: bool, wait: float) -> DeliveryFailed:
    """By HTTP status.

    Args:
        judged: the body is a DICOM service's, not a proxy's in between.
    """
    said = f"HTTP status {status}"
    if 200 <= status < 300:
        return DeliveryFailed(f"{said}, but nothing says that it was stored", Retry.LATER)
    if 300 <= status < 400:
        words = f"{said}: redirected; redirects are not followed, enter the URL that it leads to"
        return DestinationClosed(words, Retry.LATER)
    if status in _DENIED:
        return AccessDenied(f"{said}: it does not let us in; see to the credentials", Retry.LATER)
    if status in _BUSY:
        return DestinationClosed(f"{said}: it cannot take it now", Retry.LATER, wait=wait)
    # Bad syntax (PS3.18 table 10.5.3-1); a proxy's 400 has nothing to do with the object.
    never = status in _NEVER or (status == 400 and judged)
    return DeliveryFailed(said, Retry.NEVER if never else Retry.LATER)


def _items(told: Iterable[Told], *tags: str) -> list[Told]:
    found = (value for one in told for tag in tags for value in _values(one, tag))
    return [item for item in found if isinstance(item, dict)]


def _values(told: Told, tag: str) -> list[Any]:
    attribute = told.get(tag)
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return values if isinstance(values, list) else []


def _text(told: Told, tag: str) -> str:
    first = next(iter(_values(told, tag)), "")
    return first.strip(" \0") if isinstance(first, str) else ""


def _number(told: Told, tag: str) -> int | None:
    """A 16 bit number, which some servers write as text."""
    first = next(iter(_values(told, tag)), None)
    if isinstance(first, str) and first.isascii() and first.strip().isdigit() and len(first) < 10:
        first = int(first)
    right = isinstance(first, int) and not isinstance(first, bool) and 0 <= first <= 0xFFFF
    return first if right else None


def _native(text: str) -> Told:
    """A data set in XML (Native DICOM Model) in the JSON model.

    Raises:
        ValueError: it is none.
    """
    if "<!DOCTYPE" in text:  # no such document has one, and entities may grow without bound
        raise ValueError("document type declaration")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without a DOCTYPE, of bounded length
    except ElementTree.ParseError as error:
        raise ValueError("no XML") from error
    if not root.tag.endswith("NativeDicomModel"):
        raise ValueError("not the Native DICOM Model")
    return _data_set(root, deep=True)


def _data_set(element: ElementTree.Element, deep: bool) -> Told:
    """Attributes below an element; their items too, where wanted, and not what lies in those."""
    told = {}
    for attribute in element.findall("{*}DicomAttribute"):
        values: list[Any] = [value.text or "" for value in attribute.findall("{*}Value")]
        if deep:
            values += [_data_set(item, deep=False) for item in attribute.findall("{*}Item")]
        told[attribute.get("tag", "").upper()] = {"Value": values}
    return told
