"""Owns what an audit message says: the events of PS3.15 A.5.3 as the XML of A.5.1; pure functions.

Refuses to know where messages go, who is who on this machine, and the clock. Every value is
cleaned of what XML 1.0 cannot hold; no message lists single instances, so none outgrows the
32 KiB that receivers must take (PS3.15 A.6).
"""

from __future__ import annotations

import hmac
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from ipaddress import ip_address
from xml.etree.ElementTree import Element, SubElement, tostring

from dicom_node.domain.study import Patient

_NOT_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST = 1000
"""Characters of a value; what is longer was sent by nobody in good faith."""


@dataclass(frozen=True)
class Code:
    """A coded value; of DCM where nothing else is said."""

    value: str
    meaning: str
    system: str = "DCM"


# PS3.16 CID 400, 401, 402 and PS3.15 A.5.1.2.4
ACTIVITY = Code("110100", "Application Activity")
LOG_USED = Code("110101", "Audit Log Used")
BEGIN = Code("110102", "Begin Transferring DICOM Instances")
ACCESSED = Code("110103", "DICOM Instances Accessed")
TRANSFERRED = Code("110104", "DICOM Instances Transferred")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
ALERT = Code("110113", "Security Alert")
START, STOP = Code("110120", "Application Start"), Code("110121", "Application Stop")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
NETWORK_CONFIGURATION = Code("110128", "Network Configuration")
SECURITY_CONFIGURATION = Code("110129", "Security Configuration")
SOFTWARE_CONFIGURATION = Code("110131", "Software Configuration")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
RECORDING_STOPPED = Code("110133", "Audit Recording Stopped")
APPLICATION, LAUNCHER = Code("110150", "Application"), Code("110151", "Application Launcher")
DESTINATION, SOURCE = Code("110152", "Destination Role ID"), Code("110153", "Source Role ID")
STUDY_UID, NODE_ID = Code("110180", "Study Instance UID"), Code("110182", "Node ID")
PATIENT_NUMBER, URI = Code("2", "Patient Number", "RFC-3881"), Code("12", "URI", "RFC-3881")
HASHED_NUMBER = Code("hashed", "Patient ID, HMAC-SHA256 under node_salt", "99DICOMNODE")


class Action(StrEnum):
    """EventActionCode."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(StrEnum):
    """EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR = "4"  # it failed, and was held off or will be tried again
    SERIOUS = "8"  # it failed for good
    MAJOR = "12"  # it may have done harm


@dataclass(frozen=True)
class Origin:
    """AuditSourceIdentification: who reports."""

    id: str
    site: str = ""


@dataclass(frozen=True)
class Participant:
    """An ActiveParticipant.

    Attributes:
        user: UserID by A.5.2.1: login@host of a person, pid@host of a process of ours, the AE
            title of a peer, of whose processes nothing is known.
        name: of a person or process.
        ae_title: goes into AlternativeUserID by A.5.2.2.
        account: of a person who acts as another; AlternativeUserID.
        address: IP address, host name or URI.
        requestor: at most one of a message.
    """

    user: str
    name: str = ""
    ae_title: str = ""
    account: str = ""
    address: str = ""
    requestor: bool = False
    role: Code | None = None


@dataclass(frozen=True)
class Study:
    """What of a study an event is about: one patient, and instances counted by SOP class."""

    uid: str
    patient: Patient
    sop_classes: Mapping[str, int]


@dataclass(frozen=True)
class Subject:
    """What a security alert or the reading of the log is about."""

    id: str
    kind: Code
    role: str = "13"  # security resource
    name: str = ""
    alert: str = ""


@dataclass(frozen=True)
class Message:
    """An event before it is written; ``to_xml`` writes it."""

    event: Code
    action: Action
    outcome: Outcome
    at: datetime
    participants: tuple[Participant, ...]
    type: Code | None = None
    why: str = ""
    study: Study | None = None
    subjects: tuple[Subject, ...] = ()

    @property
    def urgent(self) -> bool:
        """Whether it must be on disk before anything goes on."""
        return self.event == ALERT


def activity(
    begins: bool,
    at: datetime,
    process: Participant,
    launcher: Participant | None = None,
    outcome: Outcome = Outcome.SUCCESS,
    why: str = "",
) -> Message:
    """A role starts or stops (A.5.3.1)."""
    told = [_as(process, APPLICATION)]
    if launcher is not None:
        told.append(_as(launcher, LAUNCHER))
    kind = START if begins else STOP
    return Message(ACTIVITY, Action.EXECUTE, outcome, at, tuple(told), kind, why)


def begin_transfer(at: datetime, source: Participant, to: Participant, study: Study) -> Message:
    """Instances of one study begin to move (A.5.3.3)."""
    told = (_as(source, SOURCE), _as(to, DESTINATION))
    return Message(BEGIN, Action.EXECUTE, Outcome.SUCCESS, at, told, study=study)


def transferred(
    at: datetime,
    source: Participant,
    to: Participant,
    study: Study,
    *,
    action: Action = Action.CREATE,
    outcome: Outcome = Outcome.SUCCESS,
    why: str = "",
) -> Message:
    """Instances of one study have moved, or were not taken (A.5.3.7).

    Args:
        action: CREATE where the receiver did not hold them, READ where it did or may have.
    """
    told = (_as(source, SOURCE), _as(to, DESTINATION))
    return Message(TRANSFERRED, action, outcome, at, told, why=why, study=study)


def accessed(at: datetime, action: Action, who: Sequence[Participant], study: Study) -> Message:
    """Instances were looked at, altered, or some of a study deleted (A.5.3.6)."""
    return Message(ACCESSED, action, Outcome.SUCCESS, at, tuple(who), study=study)


def study_deleted(at: datetime, who: Sequence[Participant], study: Study) -> Message:
    """All instances of a study were deleted (A.5.3.8)."""
    return Message(STUDY_DELETED, Action.DELETE, Outcome.SUCCESS, at, tuple(who), study=study)


def security_alert(
    at: datetime,
    kind: Code,
    reporters: Sequence[Participant],
    text: str,
    *,
    subject: str = "",
    subject_kind: Code = URI,
    performer: Participant | None = None,
    outcome: Outcome = Outcome.SUCCESS,
) -> Message:
    """Something that bears on security (A.5.3.11).

    Args:
        kind: of CID 401.
        reporters: one or two, a person and a process.
        text: of the alert, in words; names no patient.
        subject: what it is about: a URI, or the IP address of a node.
        performer: who did it, where that is not a reporter.
        outcome: SUCCESS informs; MINOR and SERIOUS were held off; MAJOR was not.
    """
    told = (*reporters, *((performer,) if performer else ()))
    about = (Subject(subject, subject_kind, alert=text),) if subject else ()
    return Message(ALERT, Action.EXECUTE, outcome, at, told, kind, text, subjects=about)


def log_used(at: datetime, who: Sequence[Participant], uri: str) -> Message:
    """Somebody read the audit trail (A.5.3.2)."""
    about = (Subject(uri, URI, name="Security Audit Log"),)
    return Message(LOG_USED, Action.READ, Outcome.SUCCESS, at, tuple(who), subjects=about)


def to_xml(message: Message, origin: Origin, salt: str | None = None) -> bytes:
    """The message as UTF-8 XML on one line, valid by the schema of PS3.15 A.5.1.

    Args:
        origin: who reports.
        salt: where given, the Patient ID is told as its HMAC under this key.
    """
    root = Element("AuditMessage")
    event = SubElement(
        root,
        "EventIdentification",
        EventActionCode=message.action,
        EventDateTime=message.at.isoformat(),
        EventOutcomeIndicator=message.outcome,
    )
    _code(event, "EventID", message.event)
    if message.type is not None:
        _code(event, "EventTypeCode", message.type)
    if message.why:
        SubElement(event, "EventOutcomeDescription").text = clean(message.why)
    for participant in message.participants:
        _participant(root, participant)
    source = SubElement(root, "AuditSourceIdentification", AuditSourceID=clean(origin.id))
    if origin.site:
        source.set("AuditEnterpriseSiteID", clean(origin.site))
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server
    if message.study is not None:
        _study(root, message.study)
        _patient(root, message.study.patient, salt)
    for subject in message.subjects:
        made = _object(root, subject.kind, subject.id, "2", subject.role, subject.name)
        if subject.alert:
            _detail(made, "Alert Description", subject.alert)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=False))


def clean(text: str) -> str:
    """What XML can hold and one line shows, and not more of it than anybody needs."""
    return _NOT_XML.sub("\ufffd", text[:_LONGEST])


def hashed(patient_id: str, salt: str) -> str:
    """The Patient ID as the trail tells it under ``audit.patient_id = "hashed"``."""
    return hmac.new(salt.encode(), patient_id.encode(), sha256).hexdigest()


def _as(participant: Participant, role: Code) -> Participant:
    return replace(participant, role=role)


def _code(parent: Element, name: str, code: Code) -> None:
    SubElement(
        parent,
        name,
        {
            "csd-code": code.value,
            "codeSystemName": code.system,
            "displayName": code.meaning,
            "originalText": code.meaning,
        },
    )


def _participant(root: Element, told: Participant) -> None:
    made = SubElement(root, "ActiveParticipant", UserID=clean(told.user))
    other = f"AETITLES={told.ae_title}" if told.ae_title else told.account
    if other:
        made.set("AlternativeUserID", clean(other))
    if told.name:
        made.set("UserName", clean(told.name))
    made.set("UserIsRequestor", str(told.requestor).lower())
    if told.address:
        made.set("NetworkAccessPointID", clean(told.address))
        made.set("NetworkAccessPointTypeCode", _access_point(told.address))
    if told.role is not None:
        _code(made, "RoleIDCode", told.role)


def _access_point(address: str) -> str:
    """A.5.1: 1 a name, 2 an IP address, 5 a URI."""
    if "://" in address:
        return "5"
    try:
        ip_address(address)
    except ValueError:
        return "1"
    return "2"


def _study(root: Element, study: Study) -> None:
    made = _object(root, STUDY_UID, study.uid, "2", "3")
    described = SubElement(made, "ParticipantObjectDescription")
    for uid, count in sorted(study.sop_classes.items()):
        SubElement(described, "SOPClass", UID=clean(uid), NumberOfInstances=str(count))


def _patient(root: Element, patient: Patient, salt: str | None) -> None:
    if salt is None:
        number, kind = patient.patient_id or "<none>", PATIENT_NUMBER
    else:
        number, kind = hashed(patient.patient_id, salt), HASHED_NUMBER
    made = _object(root, kind, number, "1", "1")
    if patient.issuer and salt is None:
        _detail(made, "Issuer of Patient ID", patient.issuer)


def _object(
    root: Element, kind: Code, key: str, type_code: str, role: str, name: str = ""
) -> Element:
    made = SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=clean(key),
        ParticipantObjectTypeCode=type_code,
        ParticipantObjectTypeCodeRole=role,
    )
    _code(made, "ParticipantObjectIDTypeCode", kind)
    # The schema wants a name or a query of every object; a patient's name is not kept here.
    SubElement(made, "ParticipantObjectName").text = clean(name)
    return made


def _detail(parent: Element, kind: str, value: str) -> None:
    encoded = b64encode(value[:_LONGEST].encode(errors="replace")).decode()
    SubElement(parent, "ParticipantObjectDetail", type=kind, value=encoded)
