"""Images of real scanners and real patients in over DCMTK, results out to DCMTK and to Orthanc."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from dicom_node.domain.delivery import ARRIVED
from dicom_node.domain.job import JobState
from dicom_node.store.tables import Delivery, Model, Result
from tests.acceptance.conftest import DESTINATIONS, Hospital
from tests.data import shared
from tests.dicoms import dx_image, save, uid
from tests.results import errors
from tests.tid1500 import complaints

RADIOGRAPHS = 20
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


@dataclass(frozen=True)
class Sent:
    """A study that was pushed.

    Attributes:
        files: its instances.
        options: of storescu, so that it proposes the files' own syntax.
        model: what should have run on it.
    """

    files: Sequence[Path]
    options: tuple[str, ...]
    model: str

    @property
    def sources(self) -> dict[str, Dataset]:
        read = [pydicom.dcmread(path, stop_before_pixels=True) for path in self.files]
        return {str(ds.SOPInstanceUID): ds for ds in read}

    @property
    def studies(self) -> set[str]:
        return {str(ds.StudyInstanceUID) for ds in self.sources.values()}


def head_ct(_: Path) -> Sent:
    folder = shared("dicom", "dcm_qa_ct", "In", "GE")
    return Sent(sorted(folder.glob("*.dcm")), ("-xe",), "ct-body")


def liver_ct(_: Path) -> Sent:
    folder = shared("dicom", "dcmqi", "data", "segmentations", "ct-3slice")
    return Sent(sorted(folder.glob("*.dcm")), ("-xe",), "ct-body")


def jpeg_2000(folder: Path) -> Sent:
    return Sent([rg1(folder, "J2KI", 1)], ("-xw",), "cxr-lungs")


def jpeg_ls(folder: Path) -> Sent:
    return Sent([rg1(folder, "JLSN", 2)], ("-xu",), "cxr-lungs")


def rg1(folder: Path, syntax: str, number: int) -> Path:
    """A full-size chest PA, as a study of its own, its compressed pixels as they are."""
    file = shared("dicom", "dicom-test-files", "data", "WG04", syntax, f"RG1_{syntax}")
    ds = pydicom.dcmread(file)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("rg1", number), uid("rg1", number, "series")
    ds.save_as(folder / file.name)
    return folder / file.name


def photographs(folder: Path) -> Sent:
    """Chest radiographs of a public collection, each a study, in the JPEG that they came in."""
    collection = shared("images", "cxr")
    frontal = [
        entry
        for entry in json.loads((collection / "labels.json").read_text())["images"]
        if entry["view"] in ("PA", "AP")
    ]
    files = [
        save(
            radiograph((collection / "images" / f"{e['id']}.jpg").read_bytes(), e["id"], e["view"]),
            folder / f"{e['id']}.dcm",
        )
        for e in frontal[:RADIOGRAPHS]
    ]
    assert len(files) == RADIOGRAPHS
    return Sent(files, ("-xy",), "cxr-lungs")


def radiograph(jpeg: bytes, name: str, view: str) -> Dataset:
    with Image.open(BytesIO(jpeg)) as image:
        assert (image.format, image.mode) == ("JPEG", "L")
        columns, rows = image.size
    ds = dx_image(
        np.zeros((rows, columns), np.uint8),
        bits=8,
        spacing=None,
        view=view,
        patient_id=f"CXR-{name}",
        study_uid=uid("cxr", name),
        LossyImageCompression="01",
        LossyImageCompressionMethod="ISO_10918_1",
        LossyImageCompressionRatio=f"{rows * columns / len(jpeg):.2f}",
    )
    ds.PixelData = encapsulate([jpeg])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


INPUTS: tuple[Callable[[Path], Sent], ...] = (head_ct, liver_ct, jpeg_2000, jpeg_ls, photographs)


@pytest.fixture(scope="module", params=INPUTS, ids=lambda make: make.__name__)
def sent(
    request: pytest.FixtureRequest, hospital: Hospital, tmp_path_factory: pytest.TempPathFactory
) -> Sent:
    """One of the inputs, pushed, run and delivered."""
    study: Sent = request.param(tmp_path_factory.mktemp(request.param.__name__))
    answered = hospital.node.send(study.files, *study.options)
    assert answered == [0x0000] * len(study.files)
    hospital.node.settled(*study.studies)
    return study


def results(hospital: Hospital, sent: Sent, kind: str) -> list[Dataset]:
    """What was built, as it lies on disk."""
    return [
        pydicom.dcmread(hospital.node.node.results.path(row.path))
        for row in hospital.node.results(*sent.studies)
        if row.kind == kind
    ]


def test_each_input_gets_one_segmentation_and_one_report(hospital: Hospital, sent: Sent) -> None:
    jobs = hospital.node.jobs(*sent.studies)
    assert [job.state for job in jobs] == [JobState.DONE] * len(sent.studies)
    for job in jobs:
        kinds = [r.kind for r in hospital.node.rows(Result, Result.job_id == job.id)]
        assert sorted(kinds) == ["seg", "sr"], (job.summary, kinds)
    ran = hospital.node.rows(Model, Model.id.in_([job.model_id for job in jobs]))
    assert [model.name for model in ran] == [sent.model]
    assert all(job.summary and job.summary["not_analysed"] is None for job in jobs)


def test_every_frame_of_a_segmentation_lies_where_its_source_does(
    hospital: Hospital, sent: Sent
) -> None:
    sources = sent.sources
    used = set()
    for seg in results(hospital, sent, "seg"):
        shared_groups = seg.SharedFunctionalGroupsSequence[0]
        for groups in seg.PerFrameFunctionalGroupsSequence:
            derivation = groups.DerivationImageSequence[0].SourceImageSequence[0]
            source = sources[derivation.ReferencedSOPInstanceUID]
            used.add(str(source.SOPInstanceUID))
            assert (seg.Rows, seg.Columns) == (source.Rows, source.Columns)
            assert seg.StudyInstanceUID == source.StudyInstanceUID
            assert seg.PatientID == source.PatientID
            if "ImagePositionPatient" not in source:
                assert "FrameOfReferenceUID" not in seg
                assert seg.get("PatientOrientation") == source.get("PatientOrientation")
                continue
            assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            assert near(position, source.ImagePositionPatient)
            orientation = plane(groups, shared_groups, "PlaneOrientationSequence")
            assert near(orientation.ImageOrientationPatient, source.ImageOrientationPatient)
            measures = plane(groups, shared_groups, "PixelMeasuresSequence")
            assert near(measures.PixelSpacing, source.PixelSpacing)
    assert used == set(sources), "an image has no frame in any segmentation"


def plane(frame: Dataset, all_frames: Dataset, macro: str) -> Dataset:
    item: Dataset = (frame.get(macro) or all_frames.get(macro))[0]
    return item


def near(found: Any, wanted: Any) -> bool:
    return bool(np.allclose([float(v) for v in found], [float(v) for v in wanted], atol=1e-4))


def test_the_judges_find_no_error_that_the_source_lacks(
    hospital: Hospital, sent: Sent, tmp_path: Path
) -> None:
    for source in sent.files[:3]:
        ds = pydicom.dcmread(source)
        theirs = errors(ds, tmp_path)
        for kind in ("seg", "sr"):
            for result in results(hospital, sent, kind):
                if result.StudyInstanceUID == ds.StudyInstanceUID:
                    assert errors(result, tmp_path) - theirs == set()
    for report in results(hospital, sent, "sr"):
        assert complaints(report) == []


def test_the_report_is_about_just_the_images_that_were_sent(hospital: Hospital, sent: Sent) -> None:
    evidence = set()
    for report in results(hospital, sent, "sr"):
        assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
        for study in report.CurrentRequestedProcedureEvidenceSequence:
            for series in study.ReferencedSeriesSequence:
                evidence |= {str(i.ReferencedSOPInstanceUID) for i in series.ReferencedSOPSequence}
    segmentations = {str(seg.SOPInstanceUID) for seg in results(hospital, sent, "seg")}
    assert evidence - segmentations == set(sent.sources)


def test_both_pacs_hold_the_bytes_that_were_built(hospital: Hospital, sent: Sent) -> None:
    rows = hospital.node.results(*sent.studies)
    held = {}
    for path in hospital.scp.files():
        ds = pydicom.dcmread(path)
        assert str(ds.SOPInstanceUID) not in held, "storescp got it twice"
        held[str(ds.SOPInstanceUID)] = ds
    for row in rows:
        built = pydicom.dcmread(hospital.node.node.results.path(row.path))
        assert held[row.sop_instance_uid] == built
        archived = hospital.orthanc.file(row.sop_instance_uid)
        assert pydicom.dcmread(BytesIO(archived)) == built
    deliveries = hospital.node.rows(Delivery, Delivery.result_id.in_([r.id for r in rows]))
    assert len(deliveries) == len(rows) * len(DESTINATIONS)
    assert {d.state for d in deliveries} <= ARRIVED


def test_orthanc_holds_exactly_what_the_node_made(hospital: Hospital, sent: Sent) -> None:
    made = {row.sop_instance_uid for row in hospital.node.rows(Result)}
    held = [tags["SOPInstanceUID"] for tags in hospital.orthanc.instances()]
    assert sorted(held) == sorted(made)
    classes = {row.sop_class_uid for row in hospital.node.results(*sent.studies)}
    assert classes == {SEG, SR}
