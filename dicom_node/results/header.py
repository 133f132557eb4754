"""Owns what every result object has in common: whose it is, what made it, when, and its file meta.

Refuses to know what the object says; segmentation and report add that.
"""

from __future__ import annotations

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.domain.profile import Form
from dicom_node.results.codes import PROCESSING_EQUIPMENT
from dicom_node.results.content import LONG_STRING, coded, long_string
from dicom_node.results.identity import Identity
from dicom_node.results.normalise import local_time, study_header
from dicom_node.results.types import ModelIdentity

RESEARCH_USE = "Research use, not for diagnosis"


def common(
    form: Form, sop_class_uid: str, modality: str, identity: Identity, page: int | None = None
) -> Dataset:
    """Patient, study, series, equipment and SOP Common attributes, with file meta information.

    Series Date and Time are left out on purpose: a series collects the results of many jobs, and
    all of its instances must agree on them.

    Args:
        form: of the object.
        sop_class_uid: of the object.
        modality: of the object.
        identity: of the job.
        page: from 1 where a form has several instances.
    """
    source, model, context = identity.source.first, identity.model, identity.context
    dataset = study_header(source)
    date, time = local_time(context.job_created_at, source)

    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, identity.instance(form, page or 1)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.ContentDate, dataset.ContentTime = date, time
    dataset.InstanceNumber = identity.instance_number(page)

    dataset.Modality = modality
    dataset.SeriesInstanceUID = identity.series(form)
    dataset.SeriesNumber = identity.series_number(form)
    dataset.SeriesDescription = long_string(series_description(model))

    dataset.Manufacturer = long_string(model.manufacturer)
    dataset.ManufacturerModelName = long_string(model.title)
    dataset.DeviceSerialNumber = model.bundle_digest[:16]
    dataset.SoftwareVersions = [long_string(model.version), f"dicom-node results {context.builder}"]
    if context.institution:
        dataset.InstitutionName = long_string(context.institution)

    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [coded(PROCESSING_EQUIPMENT)]
    equipment.Manufacturer = dataset.Manufacturer
    equipment.ManufacturerModelName = dataset.ManufacturerModelName
    equipment.SoftwareVersions = long_string(model.version)
    equipment.DeviceSerialNumber = model.bundle_digest[:16]
    equipment.DeviceUID = identity.device()
    equipment.ContributionDateTime = date + time
    equipment.ContributionDescription = "Algorithm"
    dataset.ContributingEquipmentSequence = [equipment]

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    dataset.file_meta = meta
    return dataset


def series_description(model: ModelIdentity) -> str:
    """Model, version and, unless the manifest says otherwise, the warning; 64 characters at most.

    What does not fit gives way in this order: "not for diagnosis", the title for the short name,
    the end of the version.
    """
    full = f"{model.title} {model.version}"
    if not model.research_only:
        return full if len(full) <= LONG_STRING else f"{model.name} {model.version}"[:LONG_STRING]
    short = "Research use"
    for text in (f"{full} - {RESEARCH_USE}", f"{full} - {short}"):
        if len(text) <= LONG_STRING:
            return text
    ending = f" - {short}"
    return f"{model.name} {model.version}"[: LONG_STRING - len(ending)] + ending
