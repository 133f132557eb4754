from __future__ import annotations

import pytest
from pydicom._uid_dict import UID_dictionary

from dicom_node.domain.loops import why_ignored


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("CT Image Storage", "CT"),
        ("Enhanced CT Image Storage", "CT"),
        ("Legacy Converted Enhanced CT Image Storage", "CT"),
        ("MR Image Storage", "MR"),
        ("Enhanced MR Image Storage", "MR"),
        ("Computed Radiography Image Storage", "CR"),
        ("Digital X-Ray Image Storage - For Presentation", "DX"),
        ("Digital X-Ray Image Storage - For Processing", "DX"),
        ("Digital Mammography X-Ray Image Storage - For Presentation", "MG"),
        ("Breast Tomosynthesis Image Storage", "MG"),
        ("Ultrasound Image Storage", "US"),
        ("Ultrasound Multi-frame Image Storage", "US"),
        ("Positron Emission Tomography Image Storage", "PT"),
        ("X-Ray Angiographic Image Storage", "XA"),
    ],
)
def test_images_of_modalities_open_a_revision(sop_class: str, modality: str) -> None:
    assert sop_class in {entry[0] for entry in UID_dictionary.values()}
    assert why_ignored(sop_class, modality, False) == ""


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("Segmentation Storage", "SEG"),
        ("Comprehensive SR Storage", "SR"),
        ("Comprehensive 3D SR Storage", "SR"),
        ("Enhanced SR Storage", "SR"),
        ("X-Ray Radiation Dose SR Storage", "SR"),
        ("Secondary Capture Image Storage", "OT"),
        ("Multi-frame True Color Secondary Capture Image Storage", "OT"),
        ("Encapsulated PDF Storage", "DOC"),
        ("Key Object Selection Document Storage", "KO"),
        ("Grayscale Softcopy Presentation State Storage", "PR"),
        ("Spatial Registration Storage", "REG"),
        ("Parametric Map Storage", "OT"),
        ("RT Image Storage", "RTIMAGE"),
        ("RT Structure Set Storage", "RTSTRUCT"),
        ("12-lead ECG Waveform Storage", "ECG"),
        ("Raw Data Storage", "CT"),
    ],
)
def test_what_systems_derive_opens_none(sop_class: str, modality: str) -> None:
    assert sop_class in {entry[0] for entry in UID_dictionary.values()}
    assert why_ignored(sop_class, modality, False) == f"{sop_class} is no image of a modality"


def test_the_modality_may_tell_where_the_class_does_not() -> None:
    assert "modality SEG" in why_ignored("CT Image Storage", "SEG", False)


def test_an_unknown_class_opens_none() -> None:
    assert why_ignored("", "CT", False) == "an unknown SOP class is no image of a modality"


def test_our_own_result_opens_none_whatever_it_is() -> None:
    told = why_ignored("CT Image Storage", "CT", True)
    assert told == "a result of this node that came back"
