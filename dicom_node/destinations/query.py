"""Owns the C-FIND by which a PACS is asked whether it holds an instance; decides nothing on it.

IMAGE level, by SOP Instance UID, with the unique keys of the levels above it, which a PACS may
insist on (PS3.4 C.4.1.2.2.1).
"""

from __future__ import annotations

import time

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom.association import Association

from dicom_node.destinations.types import Item
from dicom_node.dimse.status import SOP_CLASS_NOT_SUPPORTED, SUCCESS
from dicom_node.errors import DeliveryFailed, DestinationClosed, Retry

STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
MODELS = (STUDY_ROOT, PATIENT_ROOT)

PENDING = (0xFF00, 0xFF01)
DOES_NOT_MATCH_CLASS = 0xA900  # PS3.4 table C.4-1
ENOUGH = 100
"""Matches after which a PACS does not understand the key: at most one has it."""


def is_held(association: Association, item: Item, timeout: float) -> bool:
    """Whether a query for the item finds it.

    Args:
        association: with one of `MODELS` accepted.
        item: its file names study and series.
        timeout: seconds for all answers.

    Raises:
        DestinationClosed: no answer, or the association was lost.
        DeliveryFailed: the query failed.
    """
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    model = next(model for model in MODELS if model in accepted)
    identifier = _identifier(item, model)
    until, found = time.monotonic() + timeout, False
    try:
        for number, (answer, match) in enumerate(association.send_c_find(identifier, model)):
            if "Status" not in answer:
                raise DestinationClosed("no answer to a query, or association lost", Retry.LATER)
            status = int(answer.Status)
            if status == SUCCESS:
                return found
            if status not in PENDING:
                never = status in (DOES_NOT_MATCH_CLASS, SOP_CLASS_NOT_SUPPORTED)
                retry = Retry.NEVER if never else Retry.LATER
                raise DeliveryFailed(f"query refused with status 0x{status:04X}", retry)
            if number > ENOUGH or time.monotonic() > until:
                raise DeliveryFailed("query answered without end", Retry.LATER)
            found = found or _names(match, item.sop_instance_uid)
    except RuntimeError as error:  # the association ended since
        raise DestinationClosed("association lost", Retry.LATER) from error
    return found


def _identifier(item: Item, model: str) -> Dataset:
    keys = ["PatientID"] if model == PATIENT_ROOT else []
    keys += ["StudyInstanceUID", "SeriesInstanceUID"]
    try:
        header = dcmread(item.path, stop_before_pixels=True, specific_tags=keys)
    except (OSError, InvalidDicomError) as error:
        raise DeliveryFailed("file cannot be read", Retry.LATER) from error
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    for key in keys:
        setattr(identifier, key, header.get(key, ""))
    identifier.SOPInstanceUID = item.sop_instance_uid
    return identifier


def _names(match: Dataset | None, uid: str) -> bool:
    """A PACS that does not know the key answers with others."""
    try:
        return match is not None and str(match.get("SOPInstanceUID", "")) == uid
    except Exception:  # whatever the bytes lead pydicom to
        return False
