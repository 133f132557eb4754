"""Owns the demo's two patients: a chest radiograph (DX) and a chest CT, drawn and made DICOM.

The pixels come from ``inference.phantoms``; what the report says changes when they are drawn
otherwise. Refuses to know the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from inference import phantoms

SLICE_MM = 5.0


@dataclass(frozen=True)
class Drawing:
    """How the patients are drawn.

    Attributes:
        seed: draws the bodies; other seeds are other patients.
        lungs: size of the radiograph's (right, left) lung, 0.5 to 1.1.
        air: size of the CT's lungs, 0.3 to 1.1.
        slices: of the CT.
        size: rows and columns of the CT.
    """

    seed: int = 3
    lungs: tuple[float, float] = (1.0, 1.0)
    air: float = 1.0
    slices: int = 48
    size: int = 512


def radiograph(drawing: Drawing, at: datetime) -> Dataset:
    """A PA chest radiograph as a DX image for presentation, 0.2 mm a pixel at the detector."""
    brightness, _ = phantoms.chest_radiograph(drawing.seed, (1760, 1760), lung_scale=drawing.lungs)
    ds = _patient("DEMO-DX", "Radiograph^Generated", at)
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.Modality, ds.PresentationIntentType = "DX", "FOR PRESENTATION"
    ds.StudyDescription, ds.SeriesDescription = "Chest PA", "Chest PA"
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "PA", ["L", "F"]
    ds.ImageLaterality, ds.Laterality = "U", None
    ds.ImagerPixelSpacing = [0.2, 0.2]
    ds.DetectorType, ds.PositionerType = "DIRECT", ""
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape, ds.BurnedInAnnotation = "IDENTITY", "NO"
    ds.LossyImageCompression = "00"
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.AcquisitionContextSequence = []
    ds.AnatomicRegionSequence = [_code("51185008", "SCT", "Chest")]
    ds.ViewCodeSequence = [_code("399348003", "SCT", "postero-anterior")]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    _pixels(ds, np.round(brightness * 4095).astype(np.uint16), bits=12)
    return _named(ds, generate_uid())


def ct(drawing: Drawing, at: datetime) -> Iterator[Dataset]:
    """A chest CT of axial slices, in the order in which a scanner sends them: head first."""
    volume, _ = phantoms.ct_volume(
        drawing.seed, drawing.slices, drawing.size, "chest", air_scale=drawing.air
    )
    spacing = phantoms.CT_FIELD_MM["chest"] / drawing.size
    half = phantoms.CT_FIELD_MM["chest"] / 2
    frame_of_reference, series = generate_uid(), generate_uid()
    template = _patient("DEMO-CT", "Tomogram^Generated", at)
    for number, index in enumerate(reversed(range(drawing.slices)), 1):
        ds = Dataset()
        ds.update(template)
        ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
        ds.StudyDescription, ds.SeriesDescription = "CT chest", "Chest 5 mm"
        ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 2, number, 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.BodyPartExamined, ds.Laterality, ds.PatientPosition = "CHEST", None, "HFS"
        ds.KVP, ds.ConvolutionKernel = 120, "STANDARD"
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = frame_of_reference, ""
        ds.PixelSpacing, ds.SliceThickness = [spacing, spacing], SLICE_MM
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-half, -half, index * SLICE_MM]
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
        ds.WindowCenter, ds.WindowWidth = 40, 400
        stored = np.clip(volume[index].astype(np.int32) + 1024, 0, 4095).astype(np.uint16)
        _pixels(ds, stored, bits=12)
        yield _named(ds, series)


def _patient(patient_id: str, name: str, at: datetime) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = name, patient_id, "DICOM-NODE-DEMO"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "O"
    ds.StudyInstanceUID = generate_uid()
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    date, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = time
    ds.Manufacturer, ds.StationName = "dicom-node demo", "PHANTOM"
    return ds


def _pixels(
    ds: Dataset, stored: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], bits: int
) -> None:
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, 0
    ds.PixelData = stored.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"


def _named(ds: Dataset, series: UID) -> Dataset:
    ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), series
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
