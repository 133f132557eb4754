"""What an object is: its kind, its series, its identity and what made it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.attributes.case import Case, as_list, plain, tracking_uids
from tests.judges.types import SECONDARY_CAPTURE, kind_of
from tests.tid1500 import children

RESEARCH = "Research use"


def modality(case: Case) -> Iterator[str]:
    wanted = {"seg": "SEG", "sr": "SR", "sc": "OT"}[kind_of(case.data)]
    if case.data.Modality != wanted:
        yield f"{case.data.Modality} instead of {wanted}"


def series_description(case: Case) -> Iterator[str]:
    text, model = str(case.data.SeriesDescription), case.origin.model
    if len(text) > 64:
        yield f"{len(text)} characters"
    if model.version not in text or (model.title not in text and model.name not in text):
        yield f"{text!r} does not name model and version"
    if model.research_only != (RESEARCH in text):
        yield f"{text!r} and research_only={model.research_only}"


def series(case: Case) -> Iterator[str]:
    uid = case.data.SeriesInstanceUID
    if uid in {str(ds.SeriesInstanceUID) for ds in case.source.datasets}:
        yield "in the source's series"
    for other in case.origin.instances.values():
        if other.SeriesInstanceUID == uid and other.SOPClassUID != case.data.SOPClassUID:
            yield f"a series with {other.Modality}"
    if not case.data.get("SeriesNumber"):
        yield "no SeriesNumber"


def uids(case: Case) -> Iterator[str]:
    """2.25. with a UUID of version 8 and the variant of RFC 9562."""
    ours = {"instance": case.data.SOPInstanceUID, "series": case.data.SeriesInstanceUID}
    ours["device"] = case.data.ContributingEquipmentSequence[0].DeviceUID
    for item in case.data.get("DimensionOrganizationSequence") or []:
        ours["dimensions"] = item.DimensionOrganizationUID
    for uid in tracking_uids(case.data):
        ours[f"tracking {uid}"] = uid
    for what, uid in ours.items():
        match = re.fullmatch(r"2\.25\.(\d{1,39})", str(uid))
        number = int(match[1]) if match else 0
        if not match or number >> 76 & 0xF != 8 or number >> 62 & 3 != 2:
            yield f"{what}: {uid}"


def file_meta(case: Case) -> Iterator[str]:
    meta = case.data.file_meta
    if meta.MediaStorageSOPClassUID != case.data.SOPClassUID:
        yield "another SOP class in the file meta"
    if meta.MediaStorageSOPInstanceUID != case.data.SOPInstanceUID:
        yield "another SOP instance in the file meta"
    if not meta.get("ImplementationVersionName"):
        yield "no ImplementationVersionName"


def equipment(case: Case) -> Iterator[str]:
    model = case.origin.model
    wanted = {"Manufacturer": model.manufacturer, "ManufacturerModelName": model.title}
    for keyword, value in wanted.items():
        if case.data.get(keyword) != value:
            yield f"{keyword} {case.data.get(keyword)!r}"
    if not case.data.get("DeviceSerialNumber"):
        yield "no DeviceSerialNumber"
    if model.version not in as_list(case.data.get("SoftwareVersions")):
        yield f"SoftwareVersions {case.data.get('SoftwareVersions')} without the model's"
    if case.data.get("InstitutionName") != case.origin.context.institution:
        yield f"InstitutionName {case.data.get('InstitutionName')!r}"


def contributing(case: Case) -> Iterator[str]:
    model, items = case.origin.model, case.data.ContributingEquipmentSequence
    if len(items) != 1:
        yield f"{len(items)} items for one algorithm"
    item = items[0]
    if item.PurposeOfReferenceCodeSequence[0].CodeValue != "109102":
        yield "its purpose is not Processing Equipment (109102, DCM)"
    told = item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions
    if told != (model.manufacturer, model.title, model.version):
        yield f"it tells {told}"


def one_device(case: Case) -> Iterator[str]:
    ours = case.data.ContributingEquipmentSequence[0].DeviceUID
    for other in case.origin.instances.values():
        if other.ContributingEquipmentSequence[0].DeviceUID != ours:
            yield f"{other.Modality} has another Device UID"
    if kind_of(case.data) == "sr":
        told = [item.UID for item in children(case.data, "UIDREF", "121012 DCM")]
        if told != [ours]:
            yield f"the observer's is {told}"


def lossy(case: Case) -> Iterator[str]:
    """Once lossy, always lossy."""
    was = any(plain(ds, "LossyImageCompression") == "01" for ds in case.source.datasets)
    if was and case.data.get("LossyImageCompression") != "01":
        yield f"{case.data.get('LossyImageCompression')!r} of a lossy source"


def capture(case: Case) -> Iterator[str]:
    data = case.data
    if data.SOPClassUID != SECONDARY_CAPTURE:
        yield f"SOP class {data.SOPClassUID}"
    if not data.get("ConversionType"):
        yield "no ConversionType"
    if as_list(data.get("ImageType"))[:1] != ["DERIVED"]:
        yield f"ImageType {data.get('ImageType')}"
    if data.get("BurnedInAnnotation") != "YES":
        yield f"BurnedInAnnotation {data.get('BurnedInAnnotation')!r}, and there are words on it"


def no_millimetres(case: Case) -> Iterator[str]:
    if "FrameOfReferenceUID" in case.data or "ImagePositionPatient" in case.data:
        yield "it claims a place in the patient"
