from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from lxml import etree

from dicom_node.audit import messages
from dicom_node.audit.messages import Action, Message, Origin, Outcome, Participant, Study, to_xml
from dicom_node.audit.report import told
from dicom_node.audit.trail import Record
from dicom_node.domain.study import Patient
from tests.audit import check, event

AT = datetime(2026, 3, 1, 12, 30, 5, 250000, tzinfo=UTC)
CT = "1.2.840.10008.5.1.4.1.1.2"
SR = "1.2.840.10008.5.1.4.1.1.88.34"
SENDER = Participant("CT1", ae_title="CT1", address="10.1.2.3", requestor=True)
PROCESS = Participant("12@node", "dicom-node listener", "DICOMNODE", address="node")
PERSON = Participant("ada@node", "ada", account="dicom-node", address="node", requestor=True)
STUDY = Study("1.2.3", Patient("P-77", "HOSPITAL"), {SR: 1, CT: 120})


def every_message() -> Iterator[Message]:
    """One of each that a function here makes."""
    for outcome in Outcome:
        yield messages.activity(True, AT, PROCESS, PERSON, outcome, "why")
        yield messages.transferred(AT, SENDER, PROCESS, STUDY, outcome=outcome, why="full")
    yield messages.activity(False, AT, PROCESS)
    yield messages.begin_transfer(AT, SENDER, PROCESS, STUDY)
    for action in (Action.CREATE, Action.READ, Action.UPDATE, Action.DELETE):
        yield messages.transferred(AT, SENDER, PROCESS, STUDY, action=action)
        yield messages.accessed(AT, action, (PERSON, PROCESS), STUDY)
    yield messages.study_deleted(AT, (PROCESS,), STUDY)
    yield messages.log_used(AT, (PERSON, PROCESS), "file:///var/audit")
    for kind in (
        messages.NODE_AUTHENTICATION,
        messages.NETWORK_CONFIGURATION,
        messages.SECURITY_CONFIGURATION,
        messages.SOFTWARE_CONFIGURATION,
        messages.RESTRICTED_FUNCTION,
        messages.RECORDING_STOPPED,
    ):
        yield messages.security_alert(AT, kind, (PERSON, PROCESS), "text", subject="file:///x")
    peer = Participant("EVIL", ae_title="EVIL", address="fd00::1")
    yield messages.security_alert(
        AT,
        messages.NODE_AUTHENTICATION,
        (PROCESS,),
        "rejected",
        subject="fd00::1",
        subject_kind=messages.NODE_ID,
        performer=peer,
        outcome=Outcome.MINOR,
    )


ALL = [
    (to_xml(m, Origin("NODE", site), salt))
    for m in every_message()
    for site, salt in (("", None), ("Site 1", "salt"))
]


@pytest.mark.parametrize("xml", ALL, ids=range(len(ALL)))
def test_every_message_is_valid_by_the_schema_of_ps3_15(xml: bytes) -> None:
    root = check(xml)
    assert b"\n" not in xml
    codes = root.xpath("//@csd-code[../@codeSystemName='DCM']")
    assert all(len(code) == 6 and code.startswith("110") for code in codes)


def test_the_schema_refuses_what_is_no_audit_message() -> None:
    good = to_xml(next(every_message()), Origin("NODE"))
    for old, new in (
        (b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
        (b'UserIsRequestor="true"', b'UserIsRequestor="perhaps"'),
        (b' AuditSourceID="NODE"', b""),
        (b"<EventID ", b"<EventId "),
        (b'originalText="Application Start"', b""),
    ):
        assert old in good
        with pytest.raises((etree.DocumentInvalid, etree.XMLSyntaxError)):
            check(good.replace(old, new))


def test_a_transfer_names_source_destination_study_and_patient() -> None:
    root = check(to_xml(messages.transferred(AT, SENDER, PROCESS, STUDY), Origin("NODE")))
    assert event(root) == "DICOM Instances Transferred C 0"
    assert root[0].get("EventDateTime") == "2026-03-01T12:30:05.250000+00:00"
    source, destination = root.findall("ActiveParticipant")
    assert source.attrib == {
        "UserID": "CT1",
        "AlternativeUserID": "AETITLES=CT1",
        "UserIsRequestor": "true",
        "NetworkAccessPointID": "10.1.2.3",
        "NetworkAccessPointTypeCode": "2",
    }
    assert source[0].get("csd-code") == "110153" and destination[0].get("csd-code") == "110152"
    assert destination.get("NetworkAccessPointTypeCode") == "1"
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3"
    counts = {c.get("UID"): c.get("NumberOfInstances") for c in study.iter("SOPClass")}
    assert counts == {CT: "120", SR: "1"}
    assert patient.get("ParticipantObjectID") == "P-77"
    assert patient.find("ParticipantObjectIDTypeCode").get("csd-code") == "2"
    detail = patient.find("ParticipantObjectDetail")
    assert b64decode(detail.get("value")) == b"HOSPITAL"


def test_a_hashed_patient_id_cannot_be_taken_for_one() -> None:
    message = messages.transferred(AT, SENDER, PROCESS, STUDY)
    xml = to_xml(message, Origin("NODE"), "salt")
    assert b"P-77" not in xml and b"HOSPITAL" not in xml
    kind = check(xml).find("ParticipantObjectIdentification[2]/ParticipantObjectIDTypeCode")
    assert kind.get("codeSystemName") == "99DICOMNODE"
    assert messages.hashed("P-77", "salt").encode() in xml
    assert messages.hashed("P-77", "salt") != messages.hashed("P-77", "other")


@pytest.mark.parametrize("text", ["a\nb", "\x00\x1b[31m", "\ud800", "\"><&'", "ä日本", "x" * 5000])
def test_what_a_peer_sends_cannot_break_the_message_or_the_line(text: str) -> None:
    study = Study("1.2.3", Patient(text, text), {CT: 1})
    sender = Participant(text, text, text, address=text)
    message = messages.transferred(AT, sender, PROCESS, study, outcome=Outcome.MINOR, why=text)
    xml = to_xml(message, Origin(text, text))
    check(xml)
    assert b"\n" not in xml and len(xml) < 32768


def test_a_record_is_read_back_as_it_was_meant() -> None:
    xml = to_xml(messages.transferred(AT, SENDER, PROCESS, STUDY), Origin("NODE"))
    row = told(Record(7, "", "", b"<85>1 \xef\xbb\xbf" + xml, "", 0))
    assert row["sequence"] == 7 and row["at"] == AT and row["event"] == messages.TRANSFERRED.meaning
    assert row["who"] == ["CT1 from 10.1.2.3", "12@node"]
    assert (row["study"], row["patient"], row["instances"]) == ("1.2.3", "P-77", 121)
    assert (row["action"], row["outcome"]) == ("create", "success")
    assert told(Record(8, "", "", b"<85>1 nothing", "", 0))["event"] == "unreadable"


def test_an_alert_is_read_back_with_its_text() -> None:
    alert = messages.security_alert(
        AT, messages.SECURITY_CONFIGURATION, (PERSON, PROCESS), "added", subject="dicom-node:x"
    )
    row = told(Record(1, "", "", to_xml(alert, Origin("NODE")), "", 0))
    assert row["about"] == ["dicom-node:x"] and row["text"] == "added"
    assert alert.urgent
