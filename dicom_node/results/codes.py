"""Owns every code that we write ourselves, in one table; codes of a model come from its manifest.

Refuses codes from anywhere else: what is not here or in a manifest is not written. A test holds
code, scheme and meaning together against the dictionaries of pydicom.
"""

from __future__ import annotations

from inference.types import Code

# Document and groups (PS3.16 TID 1500, 1410, 1411, 1501, 1204)
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
CAD_SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = Code("en", "RFC5646", "English")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
FINDING_CATEGORY = Code("276214006", "SCT", "Finding category")
FINDING = Code("121071", "DCM", "Finding")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
COMMENT = Code("121106", "DCM", "Comment")

# Where (TID 320, 1410, 1411, 1600)
SOURCE = Code("260753009", "SCT", "Source")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")
REFERENCED_SEGMENT = Code("121191", "DCM", "Referenced Segment")
REFERENCED_SEGMENTATION_FRAME = Code("121214", "DCM", "Referenced Segmentation Frame")
SOURCE_IMAGE_FOR_SEGMENTATION = Code("121233", "DCM", "Source image for segmentation")
SOURCE_SERIES_FOR_SEGMENTATION = Code("121232", "DCM", "Source series for segmentation")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
MODALITY = Code("121139", "DCM", "Modality")
FRAME_OF_REFERENCE_UID = Code("112227", "DCM", "Frame of Reference UID")
SERIES_INSTANCE_UID = Code("112002", "DCM", "Series Instance UID")

# Who (TID 1002, 1004, 4019)
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
DEVICE = Code("121007", "DCM", "Device")
DEVICE_UID = Code("121012", "DCM", "Device Observer UID")
DEVICE_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_SERIAL = Code("121016", "DCM", "Device Observer Serial Number")
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_MANUFACTURER = Code("122405", "DCM", "Algorithm Manufacturer")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

# Verdicts and numbers
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("2667000", "SCT", "Absent")
PROBABILITY = Code("122157", "DCM", "Probability")
SEVERITY = Code("246112005", "SCT", "Severity")
MILD = Code("255604002", "SCT", "Mild")
MODERATE = Code("6736007", "SCT", "Moderate")
SEVERE = Code("24484000", "SCT", "Severe")
AREA = Code("42798000", "SCT", "Area")
IMAGE_QUALITY = Code("111101", "DCM", "Image Quality")
NON_DIAGNOSTIC_QUALITY = Code("RID14", "RADLEX", "Non-diagnostic quality")
NO_UNITS = Code("1", "UCUM", "no units")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
PIXELS = Code("{pixels}", "UCUM", "pixels")

# Derivation (PS3.3 C.7.6.16.2.6)
SEGMENTATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE_FOR_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")

# Procedures (CID 100)
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    **dict.fromkeys(
        ("CR", "DX", "RG", "RF", "PX", "IO"),
        Code("43468-8", "LN", "XR unspecified body region"),
    ),
}
"""Procedure Reported by the source's Modality, where its own procedure code is missing."""

MODALITIES = {
    value: Code(value, "DCM", meaning)
    for value, meaning in (
        ("CR", "Computed Radiography"),
        ("CT", "Computed Tomography"),
        ("DX", "Digital Radiography"),
        ("MG", "Mammography"),
        ("MR", "Magnetic Resonance"),
        ("NM", "Nuclear Medicine"),
        ("PT", "Positron emission tomography"),
        ("US", "Ultrasound"),
        ("XA", "X-Ray Angiography"),
        ("RF", "Radiofluoroscopy"),
    )
}
"""CID 33, those that we read; the image library leaves other modalities out."""

LATERALISED = {
    ("39607008", "24028007"): Code("3341006", "SCT", "Right lung"),
    ("39607008", "7771000"): Code("44029006", "SCT", "Left lung"),
    ("64033007", "24028007"): Code("9846003", "SCT", "Right kidney"),
    ("64033007", "7771000"): Code("18639004", "SCT", "Left kidney"),
}
"""(structure, side) in SCT to the one concept that is both."""
