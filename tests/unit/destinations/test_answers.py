from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.destinations.answers import data_sets, fate, held, refused, retry_after
from dicom_node.destinations.types import Item, Refused, Sent
from dicom_node.errors import AccessDenied, DeliveryFailed, DestinationClosed, Retry
from tests.web import stored

UID = "1.2.3"
ITEM = Item(Path("x"), "1.2.840.10008.5.1.4.1.1.66.4", UID, "1.2.840.10008.1.2.1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)

NATIVE = """<?xml version="1.0" encoding="UTF-8"?>
<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
  <DicomAttribute tag="00081198" vr="SQ" keyword="FailedSOPSequence">{failed}</DicomAttribute>
  <DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence">{taken}</DicomAttribute>
</NativeDicomModel>"""
XML_ITEM = """<Item number="1">
  <DicomAttribute tag="00081155" vr="UI"><Value number="1">{uid}</Value></DicomAttribute>
  <DicomAttribute tag="{tag}" vr="US"><Value number="1">{reason}</Value></DicomAttribute>
</Item>"""


def told(status: int, body: bytes | str, wait: float = 0.0) -> Sent | DeliveryFailed:
    try:
        return fate(status, body.encode() if isinstance(body, str) else body, ITEM, wait)
    except DeliveryFailed as failure:
        return failure


def of(**sequences: Any) -> str:
    names = {"failed": "00081198", "taken": "00081199", "other": "0008119A"}
    return json.dumps({names[k]: {"vr": "SQ", "Value": v} for k, v in sequences.items()})


def named(uid: Any, **more: Any) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [uid]}, **more}


def failure(status: int, body: bytes | str = b"") -> DeliveryFailed:
    fate = told(status, body)
    assert isinstance(fate, DeliveryFailed)
    return fate


def test_an_instance_that_the_answer_names_as_taken_is_sent() -> None:
    syntax = ITEM.transfer_syntax
    assert told(200, stored({UID: None}).body) == Sent(0, syntax)
    assert told(202, stored({UID: 0xB000}).body) == Sent(0xB000, syntax)
    assert told(200, b"\xef\xbb\xbf" + stored({UID + "\0": None}).body) == Sent(0, syntax)
    assert told(200, b"[" + stored({UID: None}).body + b"]") == Sent(0, syntax)


@pytest.mark.parametrize("status", [200, 202, 204, 299])
@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", "<html>welcome</html>", of(taken=[named("1.2.4")]), of(taken=[]), "null", "7"],
)
def test_a_success_that_does_not_name_the_instance_is_none(status: int, body: str) -> None:
    fate = failure(status, body)
    assert (fate.retry, fate.status) == (Retry.LATER, None)
    assert "nothing says that it was stored" in fate.reason


@pytest.mark.parametrize(
    ("reason", "retry"),
    [
        (0xA700, Retry.LATER),
        (0xA7FF, Retry.LATER),
        (0x0110, Retry.LATER),
        (0x0213, Retry.LATER),
        (0x0000, Retry.LATER),
        (0xB000, Retry.LATER),
        (0x9999, Retry.LATER),
        (0xA900, Retry.NEVER),
        (0xC000, Retry.NEVER),
        (0x0122, Retry.NEVER),
    ],
)
@pytest.mark.parametrize("status", [200, 202, 409, 400, 500])
def test_a_failure_reason_decides_whatever_the_http_status(
    status: int, reason: int, retry: Retry
) -> None:
    fate = failure(status, stored(failed={UID: reason}).body)
    assert isinstance(fate, Refused)
    assert (fate.status, fate.retry) == (reason, retry)


def test_a_transfer_syntax_that_is_not_supported_is_told_as_c_store_tells_it() -> None:
    fate = failure(409, stored(failed={UID: 0xC122}).body)
    assert (fate.status, fate.retry) == (0x0122, Retry.NEVER)
    assert "0xC122" in fate.reason


def test_what_stands_under_both_failed_and_taken_failed() -> None:
    assert isinstance(told(202, stored({UID: None}, {UID: 0xA700}).body), Refused)


def test_the_only_instance_of_a_request_failed_however_it_is_named() -> None:
    for body in (
        of(failed=[named("1.2.4")]),
        of(failed=[{}]),
        of(other=[{"00081197": {"vr": "US", "Value": [0xC000]}}]),
    ):
        assert isinstance(told(200, body), DeliveryFailed)
    assert failure(200, of(other=[{"00081197": {"Value": [0xC000]}}])).retry is Retry.NEVER


def test_a_failure_without_a_readable_reason_is_tried_later() -> None:
    for reason in ([], [None], ["A700"], [True], [-1], [1e3], [65536], {"a": 1}, ["9" * 5000]):
        fate = failure(409, of(failed=[named(UID, **{"00081197": {"Value": reason}})]))
        assert (fate.retry, fate.status) == (Retry.LATER, None)


def test_a_reason_written_as_text_is_read() -> None:
    fate = failure(202, of(failed=[named(UID, **{"00081197": {"Value": [str(0xA900)]}})]))
    assert fate.status == 0xA900


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (100, Retry.LATER),
        (400, Retry.LATER),
        (404, Retry.LATER),
        (405, Retry.LATER),
        (409, Retry.LATER),
        (413, Retry.NEVER),
        (415, Retry.NEVER),
        (500, Retry.LATER),
        (501, Retry.LATER),
        (507, Retry.LATER),
        (999, Retry.LATER),
    ],
)
def test_a_status_without_more_concerns_the_one_instance(status: int, retry: Retry) -> None:
    fate = failure(status)
    assert (fate.retry, fate.status) == (retry, None)
    assert not isinstance(fate, DestinationClosed)


def test_bad_syntax_is_for_good_only_where_a_dicom_service_says_it() -> None:
    assert failure(400, of(failed=[], taken=[])).retry is Retry.NEVER
    assert failure(400, "<html>plain HTTP request sent to HTTPS port</html>").retry is Retry.LATER


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_locked_door_is_the_administrators_and_later(status: int) -> None:
    assert isinstance(refused(status), AccessDenied)
    assert refused(status).retry is Retry.LATER


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 429, 502, 503, 504])
def test_a_destination_that_is_busy_or_elsewhere_takes_nothing_else_either(status: int) -> None:
    fate = told(status, b"", 30)
    assert isinstance(fate, DestinationClosed) and not isinstance(fate, AccessDenied)
    assert (fate.retry, fate.wait) == (Retry.LATER, 30 if status > 400 else 0)


def test_xml_says_the_same_as_json() -> None:
    taken = XML_ITEM.format(uid=UID, tag="00081196", reason=0xB007)
    failed = XML_ITEM.format(uid=UID, tag="00081197", reason=0xA900)
    assert told(200, NATIVE.format(failed="", taken=taken)) == Sent(0xB007, ITEM.transfer_syntax)
    for body in (
        NATIVE.format(failed=failed, taken=""),
        NATIVE.format(failed=failed, taken="").partition("?>")[2].replace(" xmlns=", " other="),
    ):
        assert failure(409, body).status == 0xA900


def test_what_lies_deeper_in_xml_is_not_taken_for_the_answer() -> None:
    taken = XML_ITEM.format(uid=UID, tag="00081196", reason=0)
    inner = f'<Item><DicomAttribute tag="00081199">{taken}</DicomAttribute></Item>'
    body = NATIVE.format(failed="", taken="").replace("</Nat", f"<X>{inner}</X></Nat")
    assert "nothing says" in failure(200, body).reason


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe\x00",
        b"{",
        b"[1]",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b"<a>" * 100_000,
        b"<NativeDicomModel>",
        b"<other/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel>&b;</NativeDicomModel>',
    ],
)
def test_what_is_no_answer_is_refused_and_never_more_than_that(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        data_sets(body)
    assert failure(200, body).retry is Retry.LATER
    with pytest.raises(DeliveryFailed, match="neither DICOM JSON nor XML"):
        held(body)


def test_no_word_of_the_server_is_repeated() -> None:
    bodies = ["Doe^John", of(failed=[named("Doe^John")]), '{"Doe^John": 1}', "<Doe-John/>"]
    for body in bodies:
        for status in (200, 400, 409, 500):
            assert "Doe" not in failure(status, body).reason


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["00081198", "00081199", "0008119A", "00081155", "00081197", "00081196", "Value"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.integers(100, 999), VALUES)
def test_odd_json_is_never_an_arrival_and_never_an_error_of_ours(status: int, value: Any) -> None:
    assert isinstance(told(status, json.dumps(value)), DeliveryFailed)


@given(st.integers(100, 999), st.binary(max_size=200))
def test_odd_bytes_are_never_an_arrival_and_never_an_error_of_ours(
    status: int, body: bytes
) -> None:
    assert isinstance(told(status, body), DeliveryFailed)


def test_a_query_tells_what_is_held() -> None:
    body = json.dumps([{"00080018": {"Value": [UID]}}, {"00080018": {"vr": "UI"}}, {}]).encode()
    assert held(body) == {UID}
    assert held(b"") == set()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 90 ", 90),
        ("999999999999999999", 3600),
        ("-5", 0),
        ("²", 0),
        ("1e9", 0),
        ("soon", 0),
        (format_datetime(NOW + timedelta(seconds=60), usegmt=True), 60),
        (format_datetime(NOW - timedelta(seconds=60), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), 3600),
        ("Thu, 01 Jan 2026 00:00:60", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_for_ever(
    value: str | None, seconds: float
) -> None:
    assert retry_after(value, NOW) == seconds
