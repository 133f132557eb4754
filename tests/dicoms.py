"""Makes small, valid DICOM data sets for all tests; knows nothing of what the project does to them.

Every maker returns a pydicom ``Dataset`` with ``file_meta`` that passes ``dciodvfy -new`` without
an error, and takes ``**attributes``: DICOM keywords set last (``None`` removes the attribute), so
that a test says only what is odd about its data. The same arguments give the same bytes. UIDs
come from names: ``uid("study", 1)``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
DX_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"
DX_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
MG_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"
MG_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
US = "1.2.840.10008.5.1.4.1.1.6.1"
US_CLIP = "1.2.840.10008.5.1.4.1.1.3.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()[:16]
    return f"2.25.{int.from_bytes(digest, 'big')}"


def save(ds: Dataset, path: Path) -> Path:
    """Writes a Part 10 file and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def item(**attributes: Any) -> Dataset:
    """A sequence item, or any data set, from keywords."""
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def ct_slice(
    pixels: ArrayLike | None = None,
    position: Sequence[float] = (-32.0, -32.0, 0.0),
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    thickness: float = 5.0,
    slope: float = 1.0,
    intercept: float = -1024.0,
    bits: int = 16,
    signed: bool = True,
    number: int = 1,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """A CT slice; ``pixels`` are stored values (rows, columns), a 64x64 phantom by default."""
    stored = phantom(seed=seed + number) if pixels is None else np.asarray(pixels)
    ds = _image(
        CT,
        "CT",
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=number,
        seed=seed,
    )
    _set_grey(ds, stored, bits, signed)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.AcquisitionNumber = 1
    ds.FrameOfReferenceUID = uid("frame of reference", ds.SeriesInstanceUID)
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = [_ds(v) for v in position]
    ds.ImageOrientationPatient = [_ds(v) for v in orientation]
    ds.PixelSpacing = [_ds(v) for v in spacing]
    ds.SliceThickness = _ds(thickness)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = _ds(slope), _ds(intercept), "HU"
    ds.KVP = "120"
    ds.PatientPosition = "HFS"
    ds.BodyPartExamined = "CHEST"
    ds.ConvolutionKernel = "STANDARD"
    return _with(ds, attributes)


def ct_series(
    n: int = 5,
    *,
    shape: tuple[int, int] = (64, 64),
    step: float = 5.0,
    tilt: float = 0.0,
    origin: Sequence[float] = (-32.0, -32.0, 0.0),
    study_uid: str | None = None,
    series_uid: str | None = None,
    patient_id: str = "TEST-1",
    seed: int = 0,
    **options: Any,
) -> list[Dataset]:
    """``n`` CT slices, feet to head, table steps of ``step`` mm along z.

    With ``tilt`` (degrees) the gantry leans about the x axis while the table moves along z as
    before, so the slices are sheared against each other. Other options go to `ct_slice`.
    """
    angle = math.radians(tilt)
    orientation = (1.0, 0.0, 0.0, 0.0, math.cos(angle), math.sin(angle))
    if tilt:
        options["GantryDetectorTilt"] = _ds(tilt)
    return [
        ct_slice(
            phantom(shape, seed=seed + i),
            (origin[0], origin[1], origin[2] + i * step),
            orientation=orientation,
            number=i + 1,
            study_uid=study_uid,
            series_uid=series_uid,
            patient_id=patient_id,
            seed=seed,
            **options,
        )
        for i in range(n)
    ]


def mr_slice(
    pixels: ArrayLike | None = None,
    position: Sequence[float] = (-32.0, -32.0, 0.0),
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.0, 1.0),
    bits: int = 12,
    number: int = 1,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """An MR slice without a rescale."""
    stored = phantom(seed=seed + number) if pixels is None else np.asarray(pixels)
    ds = _image(
        MR,
        "MR",
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=number,
        seed=seed,
    )
    _set_grey(ds, stored, bits, signed=False)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.FrameOfReferenceUID = uid("frame of reference", ds.SeriesInstanceUID)
    ds.PositionReferenceIndicator = ""
    ds.ImagePositionPatient = [_ds(v) for v in position]
    ds.ImageOrientationPatient = [_ds(v) for v in orientation]
    ds.PixelSpacing = [_ds(v) for v in spacing]
    ds.SliceThickness = "5"
    ds.PatientPosition = "HFS"
    ds.BodyPartExamined = "HEAD"
    ds.ScanningSequence, ds.SequenceVariant = "SE", "NONE"
    ds.ScanOptions, ds.MRAcquisitionType = "", "2D"
    ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "500", "10", "1"
    return _with(ds, attributes)


def dx_image(
    pixels: ArrayLike | None = None,
    *,
    modality: str = "DX",
    bits: int = 12,
    photometric: str = "MONOCHROME2",
    intent: str = "FOR PRESENTATION",
    spacing: Sequence[float] | None = (0.2, 0.2),
    view: str = "PA",
    patient_orientation: Sequence[str] = ("L", "F"),
    number: int = 1,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """A radiograph, DX, CR or MG; ``spacing`` is Imager Pixel Spacing, at the detector."""
    stored = phantom((96, 80), seed=seed + number) if pixels is None else np.asarray(pixels)
    sop_class = {
        ("DX", "FOR PRESENTATION"): DX_PRESENTATION,
        ("DX", "FOR PROCESSING"): DX_PROCESSING,
        ("MG", "FOR PRESENTATION"): MG_PRESENTATION,
        ("MG", "FOR PROCESSING"): MG_PROCESSING,
    }.get((modality, intent), CR)
    ds = _image(
        sop_class,
        modality,
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=number,
        seed=seed,
    )
    _set_grey(ds, stored, bits, signed=False)
    ds.PhotometricInterpretation = photometric
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientOrientation = list(patient_orientation)
    ds.BodyPartExamined = "CHEST"
    ds.ViewPosition = view
    ds.BurnedInAnnotation = "NO"
    if spacing is not None:
        ds.ImagerPixelSpacing = [_ds(v) for v in spacing]
    if modality in ("DX", "MG"):
        _add_dx(ds, intent, photometric)
    return _with(ds, attributes)


def _add_dx(ds: Dataset, intent: str, photometric: str) -> None:
    """What the DX and MG information objects ask for beyond CR (PS3.3 A.26.3, A.27.3)."""
    ds.PresentationIntentType = intent
    inverse = photometric == "MONOCHROME1"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.PixelIntensityRelationship = "LOG" if intent == "FOR PRESENTATION" else "LIN"
    # Dense tissue lets few photons through; where it is shown bright by high values the sign is -1.
    ds.PixelIntensityRelationshipSign = 1 if inverse else -1
    if intent == "FOR PRESENTATION":
        middle = 2 ** (ds.BitsStored - 1)
        ds.WindowCenter, ds.WindowWidth = str(middle), str(2 * middle)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "0", "US"
    ds.LossyImageCompression = "00"
    ds.DetectorType = "DIRECT"
    ds.AcquisitionContextSequence = []
    if ds.Modality == "MG":
        ds.ImageLaterality, ds.BodyPartExamined, ds.OrganExposed = "L", "BREAST", "BREAST"
        ds.AnatomicRegionSequence = [code("76752008", "SCT", "Breast")]
        ds.ViewCodeSequence = [code("399162004", "SCT", "cranio-caudal")]
        ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
        ds.PositionerType, ds.BreastImplantPresent, ds.PartialView = "MAMMOGRAPHIC", "NO", "NO"
        ds.PatientOrientation = ["A", "R"]
    else:
        ds.ImageLaterality = "U"
        ds.AnatomicRegionSequence = [code("43799004", "SCT", "Thoracic cavity structure")]
        ds.PositionerType = "COLUMN"


def us_image(
    pixels: ArrayLike | None = None,
    *,
    spacing_cm: Sequence[float] | None = (0.02, 0.03),
    number: int = 1,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """One ultrasound image, grey (rows, columns) or RGB (rows, columns, 3), 8 bits.

    ``spacing_cm`` is (between rows, between columns) of one 2D region over the whole image.
    """
    stored = (phantom(seed=seed) >> 4).astype(np.uint8) if pixels is None else np.asarray(pixels)
    ds = _ultrasound(
        US,
        stored,
        stored.ndim == 3,
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=number,
        seed=seed,
    )
    _add_region(ds, spacing_cm)
    return _with(ds, attributes)


def us_clip(
    frames: int = 3,
    *,
    pixels: ArrayLike | None = None,
    colour: bool = False,
    spacing_cm: Sequence[float] | None = (0.02, 0.03),
    number: int = 1,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """An ultrasound clip, (frames, rows, columns[, 3]) uint8, without a frame of reference."""
    if pixels is None:
        grey = np.stack([phantom(seed=seed + i) >> 4 for i in range(frames)]).astype(np.uint8)
        stored = np.repeat(grey[..., None], 3, axis=-1) if colour else grey
    else:
        stored = np.asarray(pixels)
    ds = _ultrasound(
        US_CLIP,
        stored,
        stored.ndim == 4,
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=number,
        seed=seed,
    )
    ds.NumberOfFrames = len(stored)
    ds.FrameTime = "40"
    ds.FrameIncrementPointer = 0x00181063
    _add_region(ds, spacing_cm)
    return _with(ds, attributes)


def _ultrasound(
    sop_class: str,
    stored: NDArray[Any],
    colour: bool,
    **identity: Any,
) -> Dataset:
    ds = _image(sop_class, "US", **identity)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    ds.BodyPartExamined = "ABDOMEN"
    ds.LossyImageCompression = "00"
    if colour:
        _set_pixels(
            ds, stored, rows=stored.shape[-3], columns=stored.shape[-2], bits=8, signed=False
        )
        ds.SamplesPerPixel = 3
        ds.PhotometricInterpretation = "RGB"
        ds.PlanarConfiguration = 0
        ds.UltrasoundColorDataPresent = 0
    else:
        _set_grey(ds, stored, 8, signed=False)
    return ds


def _add_region(ds: Dataset, spacing_cm: Sequence[float] | None) -> None:
    if spacing_cm is None:
        return
    ds.SequenceOfUltrasoundRegions = [
        item(
            RegionSpatialFormat=1,
            RegionDataType=1,
            RegionFlags=0,
            RegionLocationMinX0=0,
            RegionLocationMinY0=0,
            RegionLocationMaxX1=ds.Columns - 1,
            RegionLocationMaxY1=ds.Rows - 1,
            PhysicalUnitsXDirection=3,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=spacing_cm[1],
            PhysicalDeltaY=spacing_cm[0],
        )
    ]


def enhanced_ct(
    n: int = 4,
    *,
    shape: tuple[int, int] = (64, 64),
    step: float = 5.0,
    spacing: Sequence[float] = (1.0, 1.0),
    order: Sequence[int] | None = None,
    slopes: Sequence[float] | None = None,
    intercept: float = -1024.0,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """An Enhanced CT of ``n`` frames with shared and per-frame functional groups.

    Stored frame ``i`` lies at z = ``order[i] * step`` and has the pixels of
    ``phantom(shape, seed + order[i])`` and the rescale slope ``slopes[i]`` (1 by default).
    """
    order = list(range(n)) if order is None else list(order)
    slopes = [1.0] * n if slopes is None else list(slopes)
    stored = np.stack([phantom(shape, seed=seed + z) for z in order])
    ds = _image(
        ENHANCED_CT,
        "CT",
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=1,
        seed=seed,
    )
    _set_grey(ds, stored, 16, signed=True)
    _add_enhanced(ds, shape, step, spacing, order)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.SharedFunctionalGroupsSequence = [_shared_ct(spacing)]
    for frame, slope in zip(ds.PerFrameFunctionalGroupsSequence, slopes, strict=True):
        frame.PixelValueTransformationSequence = [
            item(RescaleIntercept=_ds(intercept), RescaleSlope=_ds(slope), RescaleType="HU")
        ]
    return _with(ds, attributes)


def enhanced_mr(
    n: int = 4,
    *,
    shape: tuple[int, int] = (64, 64),
    step: float = 5.0,
    spacing: Sequence[float] = (1.0, 1.0),
    order: Sequence[int] | None = None,
    patient_id: str = "TEST-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    sop_uid: str | None = None,
    seed: int = 0,
    **attributes: Any,
) -> Dataset:
    """An Enhanced MR of ``n`` frames, its values as stored; frames lie as in `enhanced_ct`."""
    order = list(range(n)) if order is None else list(order)
    stored = np.stack([phantom(shape, seed=seed + z) for z in order])
    ds = _image(
        ENHANCED_MR,
        "MR",
        patient_id=patient_id,
        study_uid=study_uid,
        series_uid=series_uid,
        sop_uid=sop_uid,
        number=1,
        seed=seed,
    )
    _set_grey(ds, stored, 12, signed=False)
    _add_enhanced(ds, shape, step, spacing, order)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "T1"
    ds.ResonantNucleus, ds.KSpaceFiltering = "1H", "NONE"
    ds.MagneticFieldStrength, ds.ApplicableSafetyStandardAgency = 1.5, "IEC"
    ds.PulseSequenceName, ds.MRAcquisitionType, ds.EchoPulseSequence = "se2d", "2D", "SPIN"
    ds.GeometryOfKSpaceTraversal, ds.SegmentedKSpaceTraversal = "RECTILINEAR", "SINGLE"
    ds.NumberOfKSpaceTrajectories, ds.SteadyStatePulseSequence = 1, "NONE"
    ds.SaturationRecovery, ds.SpectrallySelectedSuppression = "NO", "NONE"
    ds.MultipleSpinEcho = ds.MultiPlanarExcitation = ds.PhaseContrast = "NO"
    ds.TimeOfFlightContrast = ds.EchoPlanarPulseSequence = "NO"
    ds.OversamplingPhase, ds.RectilinearPhaseEncodeReordering = "NONE", "LINEAR"
    ds.SharedFunctionalGroupsSequence = [_shared_mr(spacing)]
    return _with(ds, attributes)


def _add_enhanced(
    ds: Dataset,
    shape: tuple[int, int],
    step: float,
    spacing: Sequence[float],
    order: Sequence[int],
) -> None:
    """What enhanced CT and MR have in common: dimensions, and a place for each frame."""
    ds.NumberOfFrames = len(order)
    ds.AcquisitionDateTime = "20240102030405"
    ds.ContentDate, ds.ContentTime = "20240102", "030405"
    ds.FrameOfReferenceUID = uid("frame of reference", ds.SeriesInstanceUID)
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    ds.AcquisitionDuration = 1.0
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    ds.ContentQualification = "PRODUCT"
    ds.LossyImageCompression, ds.BurnedInAnnotation = "00", "NO"
    ds.PresentationLUTShape = "IDENTITY"
    ds.AcquisitionNumber = 1
    ds.AcquisitionContextSequence = []
    dimension = uid("dimensions", ds.SOPInstanceUID)
    ds.DimensionOrganizationSequence = [item(DimensionOrganizationUID=dimension)]
    ds.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=dimension,
            DimensionIndexPointer=0x00209057,
            FunctionalGroupPointer=0x00209111,
            DimensionDescriptionLabel="In-Stack Position",
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(
                    FrameReferenceDateTime="20240102030405",
                    FrameAcquisitionDateTime="20240102030405",
                    FrameAcquisitionDuration=100.0,
                    FrameAcquisitionNumber=1,
                    StackID="1",
                    InStackPositionNumber=z + 1,
                    DimensionIndexValues=[z + 1],
                )
            ],
            PlanePositionSequence=[
                item(
                    ImagePositionPatient=[
                        _ds(-shape[1] / 2 * spacing[1]),
                        _ds(-shape[0] / 2 * spacing[0]),
                        _ds(z * step),
                    ]
                )
            ],
        )
        for z in order
    ]


def _shared_place(spacing: Sequence[float], region: Dataset) -> Dataset:
    """The functional groups that frames of any modality share (PS3.3 C.7.6.16.2)."""
    return item(
        PixelMeasuresSequence=[item(PixelSpacing=[_ds(v) for v in spacing], SliceThickness="5")],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[_ds(v) for v in AXIAL])],
        FrameVOILUTSequence=[item(WindowCenter="40", WindowWidth="400")],
        FrameAnatomySequence=[item(FrameLaterality="U", AnatomicRegionSequence=[region])],
    )


def _shared_mr(spacing: Sequence[float]) -> Dataset:
    """The functional groups that MR frames share (PS3.3 A.36.2.4)."""
    shared = _shared_place(spacing, code("69536005", "SCT", "Head"))
    shared.MRImageFrameTypeSequence = [
        item(
            FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"],
            PixelPresentation="MONOCHROME",
            VolumetricProperties="VOLUME",
            VolumeBasedCalculationTechnique="NONE",
            ComplexImageComponent="MAGNITUDE",
            AcquisitionContrast="T1",
        )
    ]
    shared.MRTimingAndRelatedParametersSequence = [
        item(
            RepetitionTime="500",
            FlipAngle="90",
            EchoTrainLength="1",
            RFEchoTrainLength=1,
            GradientEchoTrainLength=0,
            SpecificAbsorptionRateSequence=[
                item(
                    SpecificAbsorptionRateDefinition="IEC_WHOLE_BODY",
                    SpecificAbsorptionRateValue=1.0,
                )
            ],
            GradientOutputType="DB_DT",
            GradientOutput=10.0,
            OperatingModeSequence=[item(OperatingModeType="GRADIENT", OperatingMode="IEC_NORMAL")],
        )
    ]
    shared.MRFOVGeometrySequence = [
        item(
            InPlanePhaseEncodingDirection="ROW",
            MRAcquisitionFrequencyEncodingSteps=64,
            MRAcquisitionPhaseEncodingStepsInPlane=64,
            PercentSampling="100",
            PercentPhaseFieldOfView="100",
        )
    ]
    shared.MREchoSequence = [item(EffectiveEchoTime=10.0)]
    shared.MRModifierSequence = [
        item(
            InversionRecovery="NO",
            FlowCompensation="NONE",
            Spoiling="NONE",
            T2Preparation="NO",
            SpectrallySelectedExcitation="NONE",
            SpatialPresaturation="NONE",
            PartialFourier="NO",
            ParallelAcquisition="NO",
        )
    ]
    shared.MRImagingModifierSequence = [
        item(
            MagnetizationTransfer="NONE",
            BloodSignalNulling="NO",
            Tagging="NONE",
            TransmitterFrequency=63.87,
            PixelBandwidth="130",
        )
    ]
    shared.MRReceiveCoilSequence = [
        item(
            ReceiveCoilName="HEAD",
            ReceiveCoilManufacturerName="",
            ReceiveCoilType="VOLUME",
            QuadratureReceiveCoil="YES",
        )
    ]
    shared.MRTransmitCoilSequence = [
        item(TransmitCoilName="BODY", TransmitCoilManufacturerName="", TransmitCoilType="BODY")
    ]
    shared.MRAveragesSequence = [item(NumberOfAverages="1")]
    shared.PixelValueTransformationSequence = [
        item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
    ]
    return shared


def _shared_ct(spacing: Sequence[float]) -> Dataset:
    """The functional groups that CT frames share (PS3.3 A.38.1.4)."""
    shared = _shared_place(spacing, code("51185008", "SCT", "Chest"))
    shared.update(
        item(
            IrradiationEventIdentificationSequence=[item(IrradiationEventUID=uid("irradiation"))],
            CTImageFrameTypeSequence=[
                item(
                    FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
                    PixelPresentation="MONOCHROME",
                    VolumetricProperties="VOLUME",
                    VolumeBasedCalculationTechnique="NONE",
                )
            ],
            CTAcquisitionTypeSequence=[
                item(AcquisitionType="SEQUENCED", ConstantVolumeFlag="NO", FluoroscopyFlag="NO")
            ],
            CTAcquisitionDetailsSequence=[
                item(
                    RotationDirection="CW",
                    RevolutionTime=1.0,
                    SingleCollimationWidth=5.0,
                    TotalCollimationWidth=5.0,
                    TableHeight=0.0,
                    GantryDetectorTilt=0.0,
                    DataCollectionDiameter=500.0,
                )
            ],
            CTGeometrySequence=[
                item(DistanceSourceToDetector=1000.0, DistanceSourceToDataCollectionCenter=500.0)
            ],
            CTReconstructionSequence=[
                item(
                    ReconstructionAlgorithm="FILTER_BACK_PROJ",
                    ConvolutionKernel="STANDARD",
                    ConvolutionKernelGroup="SOFT_TISSUE",
                    ReconstructionDiameter=64.0,
                    ReconstructionPixelSpacing=list(spacing),
                    ReconstructionAngle=360.0,
                    ImageFilter="NONE",
                )
            ],
            CTExposureSequence=[
                item(
                    ExposureTimeInms=1000.0,
                    XRayTubeCurrentInmA=100.0,
                    ExposureInmAs=100.0,
                    ExposureModulationType="NONE",
                )
            ],
            CTXRayDetailsSequence=[
                item(
                    KVP=120.0,
                    FocalSpots=[1.0],
                    FilterType="FLAT",
                    FilterMaterial="ALUMINUM",
                    CalciumScoringMassFactorPatient=1.0,
                )
            ],
            CTPositionSequence=[
                item(
                    TablePosition=0.0,
                    DataCollectionCenterPatient=[0.0, 0.0, 0.0],
                    ReconstructionTargetCenterPatient=[0.0, 0.0, 0.0],
                )
            ],
            CTTableDynamicsSequence=[item(TableFeedPerRotation=5.0)],
        )
    )
    return shared


def legacy_enhanced_ct(series: Sequence[Dataset], *, sop_uid: str | None = None) -> Dataset:
    """One Legacy Converted Enhanced CT made of single-frame slices, as an archive would make it."""
    return LegacyConvertedEnhancedCTImage(
        legacy_datasets=series,
        series_instance_uid=uid("legacy", series[0].SeriesInstanceUID),
        series_number=2,
        sop_instance_uid=sop_uid or uid("legacy image", series[0].SOPInstanceUID),
        instance_number=1,
    )


def phantom(shape: tuple[int, int] = (64, 64), *, seed: int = 0) -> NDArray[np.int16]:
    """Stored values 0..2047, air 24 with intercept -1024 in mind: a body with two lungs, noise."""
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    image = np.full(shape, 24.0)
    image[rows**2 / 0.6 + columns**2 / 0.8 < 1] = 1064
    for side in (-0.4, 0.4):
        image[rows**2 / 0.25 + (columns - side) ** 2 / 0.06 < 1] = 200
    noise = np.random.default_rng(seed).normal(0, 8, shape)
    return np.clip(image + noise, 0, 2047).astype(np.int16)


def _image(
    sop_class: str,
    modality: str,
    *,
    patient_id: str,
    study_uid: str | None,
    series_uid: str | None,
    sop_uid: str | None,
    number: int,
    seed: int,
) -> Dataset:
    """Patient, study, series, equipment and SOP attributes."""
    study_uid = study_uid or uid("study", patient_id)
    series_uid = series_uid or uid("series", modality, study_uid)
    sop_uid = sop_uid or uid("instance", sop_class, series_uid, number, seed)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    ds.file_meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(uid("dicom-node tests"))
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, sop_uid
    ds.PatientName, ds.PatientID = "Test^Node", patient_id
    ds.PatientBirthDate, ds.PatientSex = "19700101", "O"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, series_uid
    ds.StudyDate, ds.StudyTime = "20240102", "030405"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "A1", ""
    ds.StudyDescription = "Synthetic"
    ds.Modality, ds.SeriesNumber, ds.SeriesDescription = modality, 1, f"{modality} phantom"
    ds.Manufacturer, ds.ManufacturerModelName = "dicom-node tests", "phantom"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "1", "1"
    ds.ContentDate, ds.ContentTime = "20240102", "030405"
    ds.AcquisitionDate, ds.AcquisitionTime = "20240102", "030405"
    ds.PatientOrientation = ""
    ds.InstanceNumber = number
    return ds


def _set_grey(ds: Dataset, stored: NDArray[Any], bits: int, signed: bool) -> None:
    _set_pixels(
        ds, stored, rows=stored.shape[-2], columns=stored.shape[-1], bits=bits, signed=signed
    )
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"


def _set_pixels(
    ds: Dataset, stored: NDArray[Any], *, rows: int, columns: int, bits: int, signed: bool
) -> None:
    """Pixel data in little endian, 8 bits allocated up to 8 stored, else 16."""
    allocated = 8 if bits <= 8 else 16
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = int(signed)
    dtype = f"<{'i' if signed else 'u'}{allocated // 8}"
    data = np.ascontiguousarray(stored).astype(dtype).tobytes()
    ds.add_new("PixelData", "OB" if allocated == 8 else "OW", data + b"\0" * (len(data) % 2))


def _with(ds: Dataset, attributes: dict[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        if value is None:
            if keyword in ds:
                del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return pydicom.valuerep.format_number_as_ds(float(value))
