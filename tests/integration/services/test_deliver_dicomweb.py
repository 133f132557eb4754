"""Results on their way to a DICOMweb service: the whole way to Orthanc, and what T5 makes of it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import ConfigurationError
from dicom_node.services import peers, registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.infer import run_jobs
from dicom_node.store.tables import Delivery, Destination, Result
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from tests.arrivals import all_of, arrive
from tests.dicoms import dx_image
from tests.judges.archive import dicomweb
from tests.nodes import Clock, add_bundle
from tests.servers import orthanc
from tests.web import Answer, Web, stored


def results(node: Node, bundle: Bundle, url: str, **config: object) -> None:
    """A SEG and a report, waiting to be sent to a service."""
    registry.add_destination(node, "web", "dicomweb", {"url": url, **config})
    add_bundle(node, bundle)
    rule = {"name": "all", "models": ["tiny"], "destinations": ["web"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    arrive(node, dx_image())
    assert close_studies(node) == 1
    assert run_jobs(node, WarmEngines(node), ("any",)) == 1


def states(node: Node) -> list[str]:
    return [row.state for row in all_of(node, Delivery)]


def test_orthanc_gets_seg_and_report_with_the_bytes_that_are_on_disk(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with orthanc(tmp_path, **dicomweb()) as archive:
        results(sqlite_node, tiny_bundle, f"{archive.url}/dicom-web")
        assert deliver(sqlite_node) == 2
        assert states(sqlite_node) == ["sent", "sent"]
        rows = all_of(sqlite_node, Result)
        for row in rows:
            on_disk = sqlite_node.results.path(row.path).read_bytes()
            assert by_wado(archive.url, row.sop_instance_uid) == on_disk
        assert {row.kind for row in rows} == {"seg", "sr"}
        assert peers.echo(peers.named(sqlite_node, "web")) > 0
        assert peers.takes(peers.named(sqlite_node, "web")) is None


def test_the_report_waits_for_its_seg_and_both_go_in_order(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock
) -> None:
    with Web([Answer(500)]) as web:
        results(sqlite_node, tiny_bundle, web.url)
        deliver(sqlite_node)
        assert states(sqlite_node) == ["pending", "pending"]
        assert len(web.requests) == 1
        clock.pass_(100)
        deliver(sqlite_node)
        assert states(sqlite_node) == ["sent", "sent"]
        seg, again, _report = (request.file for request in web.requests)
        assert seg == again


def test_a_retry_after_is_kept_to_where_it_is_longer_than_our_wait(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock
) -> None:
    with Web([Answer(503, b"", {"Retry-After": "500"})]) as web:
        results(sqlite_node, tiny_bundle, web.url)
        deliver(sqlite_node)
        clock.pass_(499)
        assert deliver(sqlite_node) == 0
        clock.pass_(1)
        deliver(sqlite_node)
        assert states(sqlite_node) == ["sent", "sent"]


def test_a_form_whose_class_the_service_does_not_take_is_replaced(
    sqlite_node: Node, tiny_bundle: Bundle
) -> None:
    with Web() as web:
        results(sqlite_node, tiny_bundle, web.url)
        seg = all_of(sqlite_node, Result)[0].sop_instance_uid
        web.answers[:] = [stored(failed={seg: 0xC122}, status=409)]
        deliver(sqlite_node)
    assert states(sqlite_node)[0] == "replaced"
    assert "sent" in states(sqlite_node)[1:]


def test_a_locked_door_is_an_alert_until_it_opens(
    sqlite_node: Node, tiny_bundle: Bundle, clock: Clock
) -> None:
    with Web([Answer(401), Answer(403)]) as web:
        results(sqlite_node, tiny_bundle, web.url)
        for _ in range(2):
            deliver(sqlite_node)
            assert states(sqlite_node) == ["pending", "pending"]
            (alert,) = list_alerts(sqlite_node)
            assert (alert["kind"], alert["subject"]) == ("access denied", "web")
            clock.pass_(100)
        deliver(sqlite_node)
    assert states(sqlite_node) == ["sent", "sent"]
    assert list_alerts(sqlite_node) == []


def test_an_entry_that_cannot_be_used_holds_up_no_other(
    sqlite_node: Node, tiny_bundle: Bundle
) -> None:
    results(sqlite_node, tiny_bundle, "http://127.0.0.1:1/")
    with sqlite_node.database.transaction() as session:
        (row,) = session.query(Destination).all()
        row.config = {"url": "gopher://x"}
    deliver(sqlite_node)
    assert states(sqlite_node) == ["pending", "pending"]
    assert "its entry cannot be used" in str(all_of(sqlite_node, Delivery)[0].last_answer)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({}, "dicomweb needs"),
        ({"url": "https://pacs/", "colour": "red"}, "dicomweb needs"),
        ({"url": "pacs/dicom-web"}, "no root of a service"),
        ({"url": "ftp://pacs/dicom-web"}, "no root of a service"),
        ({"url": "https:///dicom-web"}, "no root of a service"),
        ({"url": "https://pacs:99999/"}, "no root of a service"),
        ({"url": "https://pacs/a b"}, "no root of a service"),
        ({"url": "https://pacs/?a=b"}, "no root of a service"),
        ({"url": "https://pacs/\n"}, "no root of a service"),
        ({"url": "https://node:s3cret@pacs/"}, "names a user"),
        ({"url": "https://pacs", "user": "node"}, "a secret's file or variable"),
        ({"url": "https://pacs", "user": "a:b", "secret_file": "/s"}, "no colon"),
        ({"url": "https://pacs", "secret_file": "/s", "secret_variable": "S"}, "not from both"),
        ({"url": "https://pacs", "secret_variable": "DICOM_NODE_S"}, "are settings"),
        ({"url": "https://pacs", "key": "/k"}, "a key needs its certificate"),
        ({"url": "http://127.0.0.1", "ca_file": "/c"}, "certificates are for https"),
        ({"url": "http://pacs", "secret_file": "/s"}, "by https only"),
        ({"url": "https://pacs", "timeout": 0.0}, "a timeout has"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused_and_shows_no_secret(
    sqlite_node: Node, config: dict[str, object], fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=fault) as refused:
        registry.add_destination(sqlite_node, "web", "dicomweb", config)
    assert "s3cret" not in str(refused.value)
    assert registry.list_destinations(sqlite_node) == []


def by_wado(url: str, uid: str) -> bytes:
    """The Part 10 file as WADO-RS gives it back (PS3.18 10.4), without conversion."""

    def get(address: str, accept: str) -> bytes:
        request = urllib.request.Request(address, headers={"Accept": accept})  # noqa: S310 - http, to ourselves
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return bytes(response.read())

    root = f"{url}/dicom-web"
    (found,) = json.loads(get(f"{root}/instances?SOPInstanceUID={uid}", "application/dicom+json"))
    place = found["00081190"]["Value"][0].removeprefix("http://localhost")
    kind = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    body = get(f"{root}/{place.partition('/dicom-web/')[2]}", kind)
    return body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
