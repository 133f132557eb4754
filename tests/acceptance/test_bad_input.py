"""What goes wrong is answered with its documented status, logged, explained, and names no patient.

The canary is a name that every instance here carries; it may stand in the received files and in
the results, and nowhere else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import redis
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.domain.job import JobState
from dicom_node.domain.study import StudyState
from dicom_node.store.tables import Instance, Study
from inference.bundle import Bundle
from tests import dicoms
from tests.acceptance.conftest import Hospital
from tests.dicoms import save, uid
from tests.node import Running, in_parallel, rule, running, statuses, store
from tests.servers import Redis, eventually, free_port, postgresql, redis_server

CANARY = "ZEBRA^CANARY"
CANARY_ID = "ZEBRA-4711"
CT, DX = dicoms.CT, dicoms.DX_PRESENTATION
EXPERIMENTAL_SYNTAX = "1.2.3.4.5.6.7"


def ct(name: str, **attributes: Any) -> Dataset:
    """A CT slice of the canary, alone in its study."""
    given = {"PatientName": CANARY, "patient_id": CANARY_ID, "study_uid": uid("bad", name)}
    return dicoms.ct_slice(**{**given, **attributes})


def encoded(ds: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.getvalue()


@contextmanager
def associated(
    node: Running, sop_class: str = CT, syntax: str = ExplicitVRLittleEndian, called: str = ""
) -> Iterator[Association]:
    ae = AE("STORESCU")
    ae.add_requested_context(sop_class, syntax)
    ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = 30
    association = ae.associate("127.0.0.1", node.port, ae_title=called or "DICOMNODE")
    try:
        yield association
    finally:
        association.release()


def push(
    association: Association,
    data: bytes,
    instance: str,
    sop_class: str = CT,
) -> tuple[int, str]:
    """A C-STORE of any bytes at all; status and error comment."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, instance
    request.DataSet = BytesIO(data)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id or 1)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(answer, C_STORE)
    assert answer.Status is not None
    return int(answer.Status), str(answer.ErrorComment or "")


def refused(node: Running, ds: Dataset, data: bytes | None = None) -> tuple[int, str]:
    """Push it as a modality would; see that it is refused, logged, and nothing is kept of it."""
    instance = str(ds.file_meta.MediaStorageSOPInstanceUID)
    with associated(node, str(ds.file_meta.MediaStorageSOPClassUID)) as association:
        status, comment = push(
            association,
            encoded(ds) if data is None else data,
            instance,
            str(ds.file_meta.MediaStorageSOPClassUID),
        )
    assert node.rows(Instance, Instance.sop_instance_uid == instance) == []
    assert node.logged("instance refused", status=f"0x{status:04X}", sop_instance_uid=instance)
    assert "ZEBRA" not in comment
    return status, comment


# Who asks


def test_another_called_title_is_rejected_with_its_reason(
    hospital: Hospital, tmp_path: Path
) -> None:
    file = save(ct("called"), tmp_path / "a.dcm")
    done = store(hospital.node.port, [file], called="OTHER")
    assert statuses(done) == []
    assert "Called AE Title Not Recognized" in done.stderr + done.stdout
    assert hospital.node.logged("association rejected", rejection=[1, 1, 7], called="OTHER")


def test_an_unknown_sender_is_rejected_with_its_reason(hospital: Hospital, tmp_path: Path) -> None:
    file = save(ct("calling"), tmp_path / "a.dcm")
    done = store(hospital.node.port, [file], calling="STRANGER")
    assert statuses(done) == []
    assert "Calling AE Title Not Recognized" in done.stderr + done.stdout
    assert hospital.node.logged("association rejected", rejection=[1, 1, 3], calling="STRANGER")
    assert hospital.node.command("studies", "why", uid("bad", "calling")).returncode == 3


# What is offered


@pytest.mark.parametrize(
    ("sop_class", "syntax"),
    [("1.2.3.4.5", ExplicitVRLittleEndian), (CT, EXPERIMENTAL_SYNTAX)],
    ids=["SOP class", "transfer syntax"],
)
def test_what_the_node_cannot_read_is_not_negotiated(
    hospital: Hospital, sop_class: str, syntax: str
) -> None:
    with associated(hospital.node, sop_class, syntax) as association:
        assert [c.result for c in association.rejected_contexts] == [
            3 if sop_class != CT else 4  # PS3.8 table 9-18
        ]


def test_a_sop_class_outside_its_context_is_refused(hospital: Hospital) -> None:
    with associated(hospital.node) as association:
        status, _ = push(association, encoded(ct("class")), "1.2.3", DX)
    assert status == 0x0122
    assert hospital.node.logged("instance refused", status="0x0122")


# What comes


def test_missing_uids_are_refused(hospital: Hospital) -> None:
    for attribute in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        ds = ct(attribute)
        delattr(ds, attribute)
        status, comment = refused(hospital.node, ds)
        assert (status, attribute in comment) == (0xA900, True)


def test_a_uid_that_is_a_path_is_refused_and_leads_nowhere(hospital: Hospital) -> None:
    for path in ("../../../../escaped", "/etc/escaped", "1.2/../../escaped"):
        status, _ = refused(hospital.node, ct(path, StudyInstanceUID=path))
        assert status == 0xA900
        with associated(hospital.node) as association:
            assert push(association, encoded(ct("path")), path)[0] == 0xA900
    assert list(hospital.node.folder.parent.rglob("*escaped*")) == []


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n" + b"\0" * 500, b"ZEBRA^CANARY " * 100, b"\x08"],
    ids=["PNG", "text", "one byte"],
)
def test_what_is_no_data_set_is_refused(hospital: Hospital, data: bytes) -> None:
    status, _ = refused(hospital.node, ct("nonsense"), data)
    assert status in (0xC001, 0xA900)


def test_a_truncated_instance_is_refused_wherever_it_was_cut(hospital: Hospital) -> None:
    ds = ct("truncated")
    whole = encoded(ds)
    answers = [refused(hospital.node, ds, whole[: len(whole) * n // 10])[0] for n in range(1, 10)]
    assert set(answers) <= {0xC001, 0xA900}
    assert 0xC001 in answers


def test_an_image_that_declares_more_than_it_holds_is_kept_and_not_analysed(
    hospital: Hospital, tmp_path: Path
) -> None:
    """More pixels than 31 bits count; a model may want it, and the PACS is told why it got none."""
    ds = ct("huge", Rows=46341, Columns=65535)
    assert hospital.node.send([save(ds, tmp_path / "huge.dcm")]) == [0x0000]
    hospital.node.settled(ds.StudyInstanceUID)
    (job,) = hospital.node.jobs(ds.StudyInstanceUID)
    assert (job.state, job.attempts) == (JobState.DONE, 1)
    (report,) = hospital.node.results(ds.StudyInstanceUID)
    assert report.kind == "sr"
    assert hospital.orthanc.file(report.sop_instance_uid)
    assert "not analysed: the images cannot be read" in hospital.node.why(ds.StudyInstanceUID)


def test_an_image_beyond_all_memory_is_refused(hospital: Hospital) -> None:
    ds = ct("bomb", Rows=65535, Columns=65535, NumberOfFrames=100)
    status, comment = refused(hospital.node, ds)
    assert (status, "GiB" in comment) == (0xC002, True)


def test_a_study_that_no_rule_wants_says_so(hospital: Hospital, tmp_path: Path) -> None:
    ds = dicoms.mr_slice(study_uid=uid("bad", "mr"), PatientName=CANARY, patient_id=CANARY_ID)
    assert hospital.node.send([save(ds, tmp_path / "mr.dcm")]) == [0x0000]
    hospital.node.closed(ds.StudyInstanceUID)
    assert "No rule wanted it" in hospital.node.why(ds.StudyInstanceUID)
    assert hospital.node.jobs(ds.StudyInstanceUID) == []


def test_a_model_without_its_weights_keeps_the_job_waiting_and_says_so(
    hospital: Hospital, tmp_path: Path
) -> None:
    node = hospital.node
    ds = dicoms.dx_image(
        modality="MG", study_uid=uid("bad", "mg"), PatientName=CANARY, patient_id=CANARY_ID
    )
    assert node.send([save(ds, tmp_path / "mg.dcm")]) == [0x0000]
    node.closed(ds.StudyInstanceUID)
    (job,) = eventually(
        lambda: [j for j in node.jobs(ds.StudyInstanceUID) if j.error], 60, "a job with its reason"
    )
    assert (job.state, job.attempts) == (JobState.READY, 0)
    assert node.logged("model not loadable", job=job.id, model="lost")
    told = node.why(ds.StudyInstanceUID)
    assert "the model cannot be loaded" in told
    assert "weights.safetensors" in told


def test_one_refusal_does_not_hold_up_the_others(hospital: Hospital, tmp_path: Path) -> None:
    """The refused one lies between two good ones of the same association."""
    good = [ct("between", number=n, sop_uid=uid("between", n)) for n in (1, 3)]
    bad = ct("between", number=2, SeriesInstanceUID="1.2/3")
    files = [save(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate((good[0], bad, good[1]))]
    assert hospital.node.send(files) == [0x0000, 0xA900, 0x0000]


def test_no_patient_is_named_outside_the_images_and_results(
    hospital: Hospital, tmp_path: Path
) -> None:
    node = hospital.node
    sent = [ct("canary", sop_uid=uid("canary")), ct("canary", sop_uid=uid("canary"), Rows=32)]
    files = [save(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(sent)]
    assert node.send(files) == [0x0000, 0xC003]  # the second goes to quarantine
    study = uid("bad", "canary")
    node.settled(study)
    assert "ZEBRA" not in node.log_text()
    assert "ZEBRA" not in node.why(study)
    assert "ZEBRA" not in json.dumps(node.told("studies", "show", study))
    assert not [p for p in node.folder.rglob("*") if "ZEBRA" in p.name.upper()]
    with redis.Redis(unix_socket_path=str(node.node.settings.embedded_redis_socket)) as client:
        for key in client.scan_iter():
            assert b"ZEBRA" not in key + (client.dump(key) or b"")


# What the node stands on


def instances_of(node: Running) -> set[str]:
    return {row.sop_instance_uid for row in node.rows(Instance)}


def test_a_full_disk_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    file = save(ct("full"), tmp_path / "full.dcm")
    with running(
        tmp_path / "node", roles=["listen"], listener={"port": free_port(), "reserve_mb": 1 << 40}
    ) as node:
        assert node.send([file]) == [0xA700]
        assert node.logged("instance not stored", status="0xA700", error="OutOfSpace")
        assert instances_of(node) == set()
        assert list(node.node.instances.names()) == []
        assert "OutOfSpace" in node.log_text()
        assert "ZEBRA" not in node.log_text()


@pytest.mark.slow
def test_a_locked_database_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite: another process holds the lock for longer than a writer waits."""
    kept, late = ct("kept", sop_uid=uid("kept")), ct("late", sop_uid=uid("late"))
    file = save(late, tmp_path / "late.dcm")
    with running(tmp_path / "node", roles=["listen"]) as node:
        with associated(node) as association:
            assert push(association, encoded(kept), str(kept.SOPInstanceUID))[0] == 0x0000
            path = node.node.settings.database_url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                stored, rejected = in_parallel(
                    lambda: push(association, encoded(late), str(late.SOPInstanceUID)),
                    lambda: store(node.port, [file]),
                )
                other.execute("ROLLBACK")
            assert stored[0] == 0xA700
            assert "Temporary Congestion" in rejected.stdout + rejected.stderr
            assert instances_of(node) == {uid("kept")}
            assert len(list(node.node.instances.names())) == 1
            # the association lives on, and the same instance is taken now
            assert push(association, encoded(late), str(late.SOPInstanceUID))[0] == 0x0000
        assert node.logged("instance not stored", status="0xA700", error="Unavailable")
        assert instances_of(node) == {uid("kept"), uid("late")}
        assert "ZEBRA" not in node.log_text()


def test_a_database_that_goes_away_and_comes_back_loses_nothing_acknowledged(
    tmp_path: Path,
) -> None:
    """PostgreSQL, stopped while an association is open; then everything goes on by itself."""
    series = [ct("away", number=n, sop_uid=uid("away", n)) for n in range(1, 5)]
    uids = [str(ds.SOPInstanceUID) for ds in series]
    with (
        postgresql(tmp_path) as server,
        running(
            tmp_path / "node",
            roles=["listen", "scheduler"],
            storage={"database": server.new_database()},
        ) as node,
        associated(node) as association,
    ):
        answers = [push(association, encoded(ds), ds.SOPInstanceUID)[0] for ds in series[:2]]
        server.stop()
        answers.append(push(association, encoded(series[2]), uids[2])[0])
        rejected = store(node.port, [save(series[2], tmp_path / "a.dcm")])
        server.start()
        answers.append(push(association, encoded(series[3]), uids[3])[0])
        association.release()
        assert answers == [0x0000, 0x0000, 0xA700, 0x0000]
        assert statuses(rejected) == []
        assert instances_of(node) == {uids[0], uids[1], uids[3]}
        for row in node.rows(Instance):
            assert node.node.instances.path(row.path).is_file()
        node.closed(str(series[0].StudyInstanceUID))
        assert node.logged("instance not stored", status="0xA700", error="Unavailable")
        assert node.logged("round skipped")
        assert "ZEBRA" not in node.log_text()


@pytest.mark.slow
def test_without_redis_studies_are_taken_and_closed_and_say_what_they_wait_for(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    ds = dicoms.dx_image(study_uid=uid("bad", "redis"), PatientName=CANARY, patient_id=CANARY_ID)
    with (
        redis_server(tmp_path) as broker,
        running(
            tmp_path / "node",
            roles=["listen", "scheduler"],
            models=[tiny_bundle.path],
            destinations={"folder": {"path": str(tmp_path / "out")}},
            rules=[rule("all", ["tiny"], ["folder"])],
            broker={"url": broker.url, "socket_timeout": 1},
        ) as node,
    ):
        broker.server.kill()
        study = str(ds.StudyInstanceUID)
        assert node.send([save(ds, tmp_path / "dx.dcm")]) == [0x0000]
        node.closed(study)
        assert [job.state for job in node.jobs(study)] == [JobState.READY]
        eventually(lambda: node.logged("broker away, will nudge again"), 30)
        assert "waits for a worker: none is running" in node.why(study)
        broker.start()
        eventually(lambda: nudges(broker) > 0, 30, "the job is nudged once Redis is back")
        with broker.client() as client:
            for key in client.scan_iter():
                assert b"ZEBRA" not in key + (client.dump(key) or b"")
        node.start("worker")
        node.settled(study)
        assert len(list((tmp_path / "out").glob("*.dcm"))) == 2
        (row,) = node.rows(Study)
        assert row.state == StudyState.CLOSED
        assert "ZEBRA" not in node.log_text()


def nudges(broker: Redis) -> int:
    with broker.client() as client:
        return int(client.llen("any"))
