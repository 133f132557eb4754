"""What the services audit, of real rows on both databases; every message valid by the schema."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from sqlalchemy import select, update

from dicom_node.audit.messages import Action, Participant
from dicom_node.audit.report import told
from dicom_node.services import audit, receive, registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.context import Node
from dicom_node.services.processes import bury, register
from dicom_node.store.tables import Association, Delivery, Instance, Process
from inference.bundle import Bundle
from tests.audit import audited, event
from tests.dicoms import ct_series, dx_image, uid
from tests.nodes import Clock, add_bundle, route, settle, store
from tests.pacs import Pacs
from tests.servers import eventually

STUDY = uid("audited")
BEGIN = "Begin Transferring DICOM Instances E 0"
MOVED = "DICOM Instances Transferred C 0"


def events(node: Node) -> list[str]:
    """What was told since the node was made, whose own start comes first."""
    return [event(root) for root in audited(node.audit)][1:]


def rows(node: Node) -> list[dict[str, Any]]:
    return [told(record) for record in node.audit.trail.read()][1:]


def study_of(root: etree._Element) -> str:
    found = root.xpath("string(ParticipantObjectIdentification[1]/@ParticipantObjectID)")
    return str(found)


def test_an_association_is_told_once_for_each_study_with_its_instances_counted(
    node: Node, clock: Clock
) -> None:
    other = uid("other")
    images = ct_series(5, study_uid=STUDY, patient_id="ADA", IssuerOfPatientID="H")
    store(
        node, [*images, dx_image(study_uid=other, patient_id="GRACE")], calling="CT1", close=False
    )
    assert events(node) == [], "nothing is written while images come"
    came = clock()
    clock.pass_(30)
    with node.database.reading() as session:
        (row,) = session.scalars(select(Association.id)).all()
    receive.close_association(node, row, aborted=False)
    assert events(node) == [BEGIN, MOVED, BEGIN, MOVED]
    begin, moved, _, second = rows(node)
    assert (begin["at"], moved["at"]) == (came, clock())
    assert moved["who"][0] == "CT1 from 127.0.0.1"
    assert (moved["study"], moved["patient"], moved["instances"]) == (STUDY, "ADA", 5)
    assert (second["study"], second["patient"], second["instances"]) == (other, "GRACE", 1)


def test_two_patients_of_one_study_are_told_apart(node: Node) -> None:
    images = [dx_image(study_uid=STUDY, sop_uid=uid(p), patient_id=p) for p in ("ADA", "GRACE")]
    store(node, images)
    assert events(node) == [BEGIN, MOVED, BEGIN, MOVED]
    assert {row["patient"] for row in rows(node)} == {"ADA", "GRACE"}


def test_an_echo_or_a_repetition_transfers_nothing(node: Node) -> None:
    store(node, [])
    image = dx_image(study_uid=STUDY)
    store(node, [image])
    before = events(node)
    store(node, [image])
    assert events(node) == before == [BEGIN, MOVED]


def test_what_goes_to_quarantine_is_told_as_held_off(node: Node) -> None:
    store(node, [dx_image(study_uid=STUDY, sop_uid=uid("a"))])
    store(node, [dx_image(study_uid=STUDY, sop_uid=uid("a"), seed=9)], calling="CT2")
    assert events(node)[2:] == ["DICOM Instances Transferred U 4"]
    assert rows(node)[-1]["who"][0].startswith("CT2 ")


def test_what_a_killed_listener_took_is_told_by_who_buries_it(node: Node) -> None:
    store(node, [dx_image(study_uid=STUDY)], close=False)
    bury(node, [node.id])
    assert events(node) == [BEGIN, MOVED, "Application Activity, Application Stop E 0"]
    bury(node, [node.id])
    assert len(events(node)) == 3, "once"


def test_a_process_that_died_is_told_with_its_own_number(node: Node) -> None:
    with node.database.transaction() as session:
        session.add(
            Process(
                id="gone",
                role="worker",
                host="elsewhere pid:[1] 77",
                pid=4711,
                started_at=node.now(),
                beat_at=node.now(),
            )
        )
    bury(node, ["gone"])
    assert events(node) == ["Application Activity, Application Stop E 8"]
    assert rows(node)[0]["who"] == ["4711@elsewhere"]


def test_an_object_is_told_once_when_it_has_arrived(
    node: Node, clock: Clock, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    from dicom_node.worker.engines import WarmEngines

    add_bundle(node, tiny_bundle)
    with Pacs(tmp_path / "pacs", answers=[0xA700]) as pacs:
        config = {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(node, "out", "dimse", config)
        route(node)
        store(node, [dx_image(study_uid=STUDY, patient_id="ADA")])
        clock.pass_(60)
        engines = WarmEngines(node)
        settle(node, engines)
        assert events(node) == [BEGIN, MOVED], "an attempt that will be repeated is not told"
        began = clock.time
        clock.pass_(600)
        settle(node, engines)
    sent = events(node)[2:]
    assert sent == [BEGIN, MOVED] * 2
    out = [row for row in rows(node)[2:] if row["event"].endswith("Transferred")]
    assert sum(row["instances"] for row in out) == 2, "the segmentation and its report"
    for row in out:
        assert row["who"][1] == "PACS from 127.0.0.1" and row["who"][0] == node.audit.process.user
        assert (row["study"], row["patient"]) == (STUDY, "ADA") and row["at"] > began


def test_a_delivery_that_is_given_up_is_told_with_the_reason(
    node: Node, clock: Clock, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    from dicom_node.worker.engines import WarmEngines

    add_bundle(node, tiny_bundle)
    with Pacs(tmp_path / "pacs", answers=[0xA900] * 9) as pacs:
        config = {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(node, "out", "dimse", config)
        route(node)
        store(node, [dx_image(study_uid=STUDY)])
        clock.pass_(60)
        settle(node, WarmEngines(node))
    with node.database.reading() as session:
        assert {d.state for d in session.scalars(select(Delivery))} == {"dead"}
    lost = events(node)[2:]
    assert set(lost) == {"DICOM Instances Transferred C 8"}
    assert "A900" in rows(node)[-1]["text"].upper()


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


def test_who_is_killed_before_or_after_an_answer_is_recorded_has_told_it(
    node: Node, clock: Clock, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicom_node.worker.engines import WarmEngines

    def step(name: str, room: str) -> None:
        if room == "delivery" and name == where:
            raise Killed

    add_bundle(node, tiny_bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    route(node)
    monkeypatch.setattr("dicom_node.faults.step", step)
    for where in ("commit", "recorded"):
        study = uid("killed at", where)
        store(node, [dx_image(study_uid=study, sop_uid=uid(where), patient_id="ADA")])
        clock.pass_(60)
        with pytest.raises(Killed):
            settle(node, WarmEngines(node))
        assert [row["event"] for row in rows(node) if row["study"] == study][2:] == [
            "Begin Transferring DICOM Instances",
            "DICOM Instances Transferred",
        ]


def marked(node: Node, count: int) -> list[Instance]:
    """Some images, as a purge marks them."""
    with node.database.transaction() as session:
        rows = list(session.scalars(select(Instance).order_by(Instance.id).limit(count)))
        for row in rows:
            row.purging_at = node.now()
    return rows


def test_deletion_tells_a_whole_study_from_a_part(node: Node) -> None:
    store(node, ct_series(3, study_uid=STUDY, patient_id="ADA"))
    audit.deleted(node, marked(node, 2))
    audit.deleted(node, marked(node, 3))
    assert events(node)[2:] == ["DICOM Instances Accessed D 0", "DICOM Study Deleted D 0"]
    assert [row["instances"] for row in rows(node)[2:]] == [2, 3]
    assert rows(node)[-1]["who"] == [node.audit.process.user], "by rule"


def test_the_rest_of_a_study_is_its_end(node: Node) -> None:
    store(node, ct_series(3, study_uid=STUDY))
    with node.database.transaction() as session:
        for row in session.scalars(select(Instance).limit(1)):
            row.purging_at = row.purged_at = node.now()
    audit.deleted(node, marked(node, 3)[1:])
    assert events(node)[2:] == ["DICOM Study Deleted D 0"]
    assert rows(node)[-1]["instances"] == 2


def test_who_looked_at_a_study_is_told_with_the_patient(node: Node) -> None:
    store(node, [dx_image(study_uid=STUDY, patient_id="ADA")])
    ada = Participant("ada@ward", "ada", requestor=True)
    audit.accessed(node, Action.READ, STUDY, (ada, node.audit.process))
    assert events(node)[-1] == "DICOM Instances Accessed R 0"
    row = rows(node)[-1]
    assert row["who"][0] == "ada@ward" and (row["study"], row["patient"]) == (STUDY, "ADA")


def test_a_peer_that_is_refused_again_and_again_is_told_once_a_minute(node: Node) -> None:
    for number in range(50):
        audit.refused(node, "10.9.9.9", "association rejected (1, 1, 3)", f"GUESS{number}")
    audit.refused(node, "10.9.9.8", "association rejected (1, 1, 3)", "EVIL")
    audit.refused(node, "10.9.9.8", "TLS handshake failed: no certificate")
    alert = "Security Alert, Node Authentication E 4"
    assert events(node) == [alert] * 3
    assert rows(node)[0]["about"] == ["10.9.9.9"]
    assert "GUESS0 from 10.9.9.9" in rows(node)[0]["who"]
    bury(node, [node.id])
    assert events(node)[3:] == [alert, "Application Activity, Application Stop E 0"]
    assert "49 more" in rows(node)[3]["text"]


@pytest.mark.parametrize("wanted", [True, False])
def test_accepted_associations_are_told_where_that_is_wanted(node: Node, wanted: bool) -> None:
    node.audit.accepted_too = wanted
    audit.accepted(node, "CT1", "127.0.0.1")
    assert events(node) == ["Security Alert, Node Authentication E 0"] * wanted


def test_a_trail_that_cannot_be_written_holds_up_nothing_and_calls_somebody(
    node: Node, clock: Clock
) -> None:
    folder = node.audit.trail.folder
    folder.rename(folder.with_suffix(".away"))
    folder.write_text("in the way")
    store(node, [dx_image(study_uid=STUDY)])
    with node.database.reading() as session:
        assert session.scalars(select(Association)).one().closed_at is not None
    (alert,) = list_alerts(node)
    assert alert["kind"] == "audit trail" and "File exists" in alert["text"]
    folder.unlink()
    folder.with_suffix(".away").rename(folder)
    assert node.audit.flush() == "", "and what waited is there"
    assert Counter(events(node)) == Counter(
        ["Security Alert, Audit Recording Stopped E 8", BEGIN, MOVED]
    )
    register_again(node)
    assert list_alerts(node) == []


def register_again(node: Node) -> None:
    with node.database.transaction() as session:
        session.execute(update(Association).values(process_id=None))
        session.execute(update(Process).values(id="before"))
    register(node)


def test_a_receiver_that_is_away_for_long_calls_somebody_however_long_its_name(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LONG", -1.0)
    away = {"receiver": f"{'r' * 60}.hospital.invalid", "timeout": 1, "backoff_max": 1}
    chosen = node.settings.audit.model_copy(update=away)
    here = replace(node, settings=node.settings.model_copy(update={"audit": chosen}))
    audit.record(here, audit.messages.activity(True, node.now(), node.audit.process))
    with audit.shipping(here):
        (alert,) = eventually(lambda: list_alerts(node), 20, "an alert")
    assert alert["kind"] == "audit not shipped" and alert["subject"].startswith("rrr")


def test_a_fault_in_auditing_stays_inside(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(audit.messages, "transferred", broken)
    store(node, [dx_image(study_uid=STUDY)])
    with node.database.reading() as session:
        assert session.scalars(select(Association)).one().closed_at is not None
