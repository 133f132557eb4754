"""Rows 12, 26 and 31 of the matrix, of whole studies; and 30: all of it at random."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_node.domain.job import JobState
from dicom_node.services import registry
from dicom_node.store.tables import Instance, Job, Result, Revision, Study
from inference.bundle import Bundle
from tests import dicoms
from tests.dicoms import uid
from tests.faults.invariants import (
    Sent,
    i2,
    i3,
    i4,
    i5,
    over,
    push,
    radiograph,
    sent,
    slice_of,
)
from tests.faults.soak import soak
from tests.faults.wire import EXPLICIT, JPEG, Gone, Wire, encoded
from tests.node import Running, dimse, rule, running
from tests.pacs import Pacs
from tests.servers import eventually

QUIET = 1.5


@dataclass
class Clinic:
    node: Running
    pacs: Pacs

    def came(self, *studies: str) -> list[tuple[str, str]]:
        """What the PACS has of these studies' results."""
        of = {r.sop_instance_uid for r in self.node.results(*studies)}
        return [
            (r.sop_instance_uid, r.sha256)
            for r in self.pacs.received
            if r.path and (r.sop_instance_uid in of)
        ]


@pytest.fixture(scope="module")
def clinic(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, tiny_ct_bundle: Bundle
) -> Iterator[Clinic]:
    folder = tmp_path_factory.mktemp("clinic")
    with (
        Pacs(folder / "pacs") as pacs,
        running(
            folder / "node",
            models=[tiny_bundle.path, tiny_ct_bundle.path],
            destinations={"pacs": dimse(pacs)},
            rules=[
                rule("radiographs", ["tiny"], ["pacs"], when={"modality": ["DX"]}),
                rule("tomograms", ["tiny-ct"], ["pacs"], when={"modality": ["CT"]}),
            ],
            modalities=("STORESCU", "PACS"),
            completion={"quiet": [], "default_quiet": QUIET, "single_image_modalities": []},
            worker={"device": "cpu", "lease": 10},
        ) as node,
    ):
        yield Clinic(node, pacs)


# 12


@pytest.mark.slow
def test_row_12_pixels_that_decode_without_end_fail_their_job_by_name(clinic: Clinic) -> None:
    """A JPEG of 30000 x 30000 that says it is 96 x 80; others go through meanwhile."""
    node = clinic.node
    frame = _endless_jpeg()
    ds = dicoms.dx_image(bits=8, study_uid=uid("row 12 jpeg"), sop_uid=uid("row 12 jpeg image"))
    bomb = sent(ds)
    at = bomb.data.rindex(struct.pack("<HH", 0x7FE0, 0x10))
    bomb.data = (
        bomb.data[:at]
        + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
        + struct.pack("<HHL", 0xFFFE, 0xE000, 0)
        + struct.pack("<HHL", 0xFFFE, 0xE000, len(frame) + len(frame) % 2)
        + frame
        + b"\0" * (len(frame) % 2)
        + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    )
    with Wire(node.port, contexts=((bomb.sop_class, (JPEG,)),)) as wire:
        assert wire.associate()
        assert wire.store(bomb.sop_class, bomb.uid, bomb.data) == 0
        wire.release()
    other = radiograph("row 12 beside the bomb")
    assert push(node, other) == [0]
    over(node, bomb.study, other.study)
    assert not i2(node, other.study)
    (job,) = node.jobs(bomb.study)
    summary: dict[str, Any] = job.summary or {}
    told = job.error if job.state == JobState.DEAD else summary.get("not_analysed")
    assert told, f"nobody is told that nothing was analysed: {job.state}, {summary}"


def _endless_jpeg() -> bytes:
    """Baseline, every block two zero bits: two kilobytes that decode to 900 MB (ITU-T T.81)."""
    quantisation = b"\xff\xdb\0\x43\0" + b"\1" * 64
    frame = bytes.fromhex("ffc0000b087530753001011100")
    one_code = b"\1" + b"\0" * 15 + b"\0"
    tables = b"".join(b"\xff\xc4\0\x14" + kind + one_code for kind in (b"\x00", b"\x10"))
    scan = bytes.fromhex("ffda0008010100003f00") + b"\0" * 2000
    return b"\xff\xd8" + quantisation + frame + tables + scan + b"\xff\xd9"


# 26


def test_row_26_a_late_image_makes_a_new_revision_and_a_report_that_supersedes(
    clinic: Clinic,
) -> None:
    """A series that grows by a slice after its job has run."""
    node, study = clinic.node, uid("row 26")
    series = [_slice(study, n) for n in range(1, 5)]
    assert push(node, *series[:3]) == [0] * 3
    over(node, study)
    (first,) = node.jobs(study)
    before = {r.sop_instance_uid: r.sha256 for r in node.results(study)}
    assert push(node, series[3]) == [0]
    eventually(lambda: len(_revisions(node, study)) == 2, 60, "a second revision")
    over(node, study)
    old, new = node.jobs(study)
    assert (old.id, new.predecessor_id) == (first.id, first.id)
    assert [r.instances for r in _revisions(node, study)] == [3, 4]
    after = {r.sop_instance_uid: r.sha256 for r in node.results(study)}
    assert before.items() <= after.items(), "a finished revision was altered"
    report = next(r for r in node.results(study) if r.job_id == new.id and r.kind == "sr")
    document = dcmread(node.node.results.path(report.path))
    named = {
        item.ReferencedSOPInstanceUID
        for evidence in document.PredecessorDocumentsSequence
        for of_series in evidence.ReferencedSeriesSequence
        for item in of_series.ReferencedSOPSequence
    }
    assert named == {r.sop_instance_uid for r in node.results(study) if _is_report(r, first.id)}
    assert not i2(node, study)
    assert not i3(node, clinic.came(study), study)


def test_row_26_a_study_split_over_associations_is_one_revision_and_one_job(
    clinic: Clinic,
) -> None:
    """Two that overlap, and a third that comes before the study has been quiet."""
    node, study = clinic.node, uid("row 26 split")
    one, two, three = (_slice(study, n) for n in (1, 2, 3))
    with Wire(node.port) as first, Wire(node.port) as second:
        assert first.associate()
        assert second.associate()
        assert first.store(one.sop_class, one.uid, one.data) == 0
        assert second.store(two.sop_class, two.uid, two.data) == 0
        first.release()
        time.sleep(QUIET + 1)
        assert node.jobs(study) == [], "the second association is still open"
        second.release()
    assert push(node, three) == [0]
    over(node, study)
    assert [r.instances for r in _revisions(node, study)] == [3]
    assert len(node.jobs(study)) == 1
    assert not i2(node, study)


def _slice(study: str, number: int) -> Sent:
    position = (-32.0, -32.0, 5.0 * number)
    pixels = dicoms.phantom((64, 64), seed=number)
    return slice_of(study, number, study_uid=study, number=number, position=position, pixels=pixels)


def _revisions(node: Running, study: str) -> list[Revision]:
    (row,) = node.rows(Study, Study.study_instance_uid == study)
    return node.rows(Revision, Revision.study_id == row.id)


def _is_report(result: Result, job: int) -> bool:
    return result.job_id == job and result.kind == "sr"


# 31


def test_row_31_a_pacs_that_forwards_everything_back_makes_no_new_job(clinic: Clinic) -> None:
    """Images and our own results, by the PACS's title, as long as anything new arrives there."""
    node = clinic.node
    image = radiograph("row 31")
    answers: dict[str, list[int]] = {}
    stop, start = threading.Event(), len(clinic.pacs.received)

    def forward() -> None:
        seen = start
        while not stop.wait(0.05):
            for came in clinic.pacs.received[seen:]:
                seen += 1
                if came.path:
                    answers.setdefault(came.sop_instance_uid, []).append(_back(node, came.path))

    forwarder = threading.Thread(target=forward)
    forwarder.start()
    try:
        assert push(node, image) == [0]
        over(node, image.study)
        ours = {r.sop_instance_uid for r in node.results(image.study)}
        eventually(lambda: answers.keys() >= ours, 60, "all results are forwarded back")
        assert _store(node, image) == 0, "the image too"
        time.sleep(2 * QUIET + 1)
        over(node, image.study)
    finally:
        stop.set()
        forwarder.join()
    assert len(ours) == 2
    assert len(node.jobs(image.study)) == 1
    assert len(_revisions(node, image.study)) == 1
    assert answers == {instance: [0] for instance in ours}, "each went back once, and was taken"
    for row in node.rows(Instance, Instance.sop_instance_uid.in_(ours)):
        assert not row.counts
        assert row.note
    assert not i3(node, clinic.came(image.study), image.study)


def _back(node: Running, path: Path) -> int:
    """A stored object is pushed by the PACS, as it came."""
    ds = dcmread(path)
    syntax = str(ds.file_meta.TransferSyntaxUID)
    data = encoded(ds, syntax)
    instance = Sent(str(ds.SOPClassUID), str(ds.SOPInstanceUID), "", data)
    return _store(node, instance, syntax)


def _store(node: Running, instance: Sent, syntax: str = EXPLICIT) -> int:
    contexts = ((instance.sop_class, (syntax,)),)
    with suppress(Gone), Wire(node.port, contexts=contexts, calling=b"PACS") as wire:
        assert wire.associate()
        status = wire.store(instance.sop_class, instance.uid, instance.data)
        wire.release()
        return status
    return -1


def test_the_rows_above_left_nothing_and_named_no_patient(clinic: Clinic) -> None:
    """I2, I4 and I5 over all of them; runs after them."""
    assert registry.list_modalities(clinic.node.node)
    keys = [(j.model_id, j.inputs_digest, j.generation) for j in clinic.node.rows(Job)]
    assert len(set(keys)) == len(keys)
    assert not i4(clinic.node)
    assert not i5(clinic.node)


# 30


@pytest.mark.slow
@pytest.mark.timeout(900)  # what is under way is waited for, and judged after that
def test_row_30_a_minute_of_everything_at_random(tmp_path: Path) -> None:
    """The same command runs for hours: ``make soak``."""
    report = soak(tmp_path, minutes=1, seed=30, pause=0.5)
    assert report.holds, report.as_markdown()
    assert report.studies > 10
    assert report.faults.total() > 10
