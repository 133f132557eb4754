"""Owns the reading of a record: the XML of PS3.15 A.5 back into what a person asks of it."""

from __future__ import annotations

from base64 import b64decode
from datetime import datetime
from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring

from dicom_node.audit.messages import ALERT, STUDY_UID
from dicom_node.audit.trail import Record

_OUTCOMES = {"0": "success", "4": "held off", "8": "failed", "12": "severe"}
_ACTIONS = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "execute"}


def told(record: Record) -> dict[str, Any]:
    """A record by its fields; one that is no audit message is told as such."""
    try:
        xml = record.message[record.message.index(b"<AuditMessage") :]
        root = fromstring(xml)  # noqa: S314 - begins with the element: no DTD, so no entities
        return {"sequence": record.sequence, **_fields(root)}
    except (ValueError, ParseError, KeyError, AttributeError):
        return {"sequence": record.sequence, "event": "unreadable"}


def _fields(root: Element) -> dict[str, Any]:
    (event,) = root.findall("EventIdentification")
    kind, detail = event.find("EventID"), event.find("EventTypeCode")
    objects = root.findall("ParticipantObjectIdentification")
    studies = [o for o in objects if _code(o) == STUDY_UID.value]
    patients = [o for o in objects if o.get("ParticipantObjectTypeCodeRole") == "1"]
    return {
        "at": datetime.fromisoformat(event.attrib["EventDateTime"]),
        "event": kind.attrib["originalText"] if kind is not None else "",
        "type": detail.attrib["originalText"] if detail is not None else "",
        "action": _ACTIONS.get(event.attrib["EventActionCode"], ""),
        "outcome": _OUTCOMES.get(event.attrib["EventOutcomeIndicator"], ""),
        "who": [_who(p) for p in root.findall("ActiveParticipant")],
        "study": studies[0].attrib["ParticipantObjectID"] if studies else "",
        "instances": sum(int(s.attrib["NumberOfInstances"]) for s in root.iter("SOPClass")),
        "patient": patients[0].attrib["ParticipantObjectID"] if patients else "",
        "about": [o.attrib["ParticipantObjectID"] for o in objects if o not in studies + patients],
        "text": event.findtext("EventOutcomeDescription", "") or _alert_text(objects, kind),
    }


def _who(participant: Element) -> str:
    """As `CT1 from 10.1.2.3`; where the user tells the address itself, without it."""
    user = participant.attrib["UserID"]
    address = participant.get("NetworkAccessPointID", "")
    return user if not address or address in user else f"{user} from {address}"


def _code(told: Element) -> str:
    code = told.find("ParticipantObjectIDTypeCode")
    return code.attrib["csd-code"] if code is not None else ""


def _alert_text(objects: list[Element], kind: Element | None) -> str:
    if kind is None or kind.get("csd-code") != ALERT.value:
        return ""
    values = (d.get("value", "") for o in objects for d in o.findall("ParticipantObjectDetail"))
    return "; ".join(b64decode(value).decode(errors="replace") for value in values)
