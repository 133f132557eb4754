"""T3 and T4 with the real engine on small models: claim, run, results, and what goes wrong."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from sqlalchemy import select, update

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import OutOfSpace
from dicom_node.results import build
from dicom_node.services import jobs, receive, registry
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.infer import run_jobs
from dicom_node.services.models import bundle_folder
from dicom_node.store.files import Folder
from dicom_node.store.tables import Delivery, Instance, Job, Model, Result, Revision
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from inference.types import ImageStack, Prediction
from tests.arrivals import all_of, arrive, count, files_of, one, opened, request
from tests.dicoms import ct_series, dx_image, phantom, uid
from tests.nodes import Clock, add_bundle, make_node

ANY = ("any",)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prepare(node: Node, folder: Path, *bundles: Bundle, **rule: Any) -> None:
    for bundle in bundles:
        add_bundle(node, bundle)
    registry.add_destination(node, "out", "folder", {"path": str(folder / "out")})
    names = [bundle.manifest.name for bundle in bundles]
    written = {"name": "all", "models": names, "destinations": ["out"], **rule}
    registry.apply_rules(node, parse_rules({"rule": [written]}))


@pytest.fixture
def local(sqlite_node: Node, tiny_bundle: Bundle, tiny_ct_bundle: Bundle, tmp_path: Path) -> Node:
    """A node with both models, to which the database does not matter."""
    prepare(sqlite_node, tmp_path, tiny_bundle, tiny_ct_bundle)
    return sqlite_node


@dataclass
class Watched:
    """Real engines, or what a test makes of them; notes what each call was given."""

    predict_with: Callable[[str, Sequence[ImageStack]], list[Prediction]]
    calls: list[list[str]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def predict(self, digest: str, stacks: Sequence[ImageStack], *_: Any) -> list[Prediction]:
        self.calls.append([stack.frames[0].sop_instance_uid for stack in stacks])
        self.meanwhile()
        return self.predict_with(digest, stacks)


def saying(_: str, stacks: Sequence[ImageStack]) -> list[Prediction]:
    return [Prediction(not_analysed="a test") for _ in stacks]


def words(path: Path) -> list[str]:
    """Every text of a report."""
    return [str(e.value) for e in pydicom.dcmread(path).iterall() if e.keyword == "TextValue"]


def ready(node: Node, clock: Clock, *datasets: pydicom.Dataset) -> None:
    """Close one study for all that is given."""
    arrive(node, *datasets)
    clock.pass_(60)
    assert close_studies(node) > 0


def radiograph(number: int) -> pydicom.Dataset:
    """One of a study of its own."""
    return dx_image(phantom((96, 80), seed=number), patient_id=f"P{number}")


# -- results -----------------------------------------------------------------------------------


def test_a_radiograph_becomes_a_seg_and_a_report(local: Node, clock: Clock) -> None:
    image = radiograph(1)
    ready(local, clock, image)
    assert run_jobs(local, WarmEngines(local), ANY) == 1
    job = one(local, Job)
    assert (job.state, job.attempts, job.owner, job.error) == ("done", 1, None, "")
    seg, sr = all_of(local, Result)
    assert [(r.kind, r.position) for r in (seg, sr)] == [("seg", 0), ("sr", 1)]
    for row in (seg, sr):
        data = local.results.path(row.path).read_bytes()
        assert (sha256(data).hexdigest(), len(data)) == (row.sha256, row.size)
        dataset = pydicom.dcmread(local.results.path(row.path))
        assert dataset.SOPInstanceUID == row.sop_instance_uid
        assert dataset.SOPClassUID == row.sop_class_uid
        assert dataset.SeriesInstanceUID == row.series_instance_uid
        assert dataset.file_meta.TransferSyntaxUID == row.transfer_syntax
        assert dataset.StudyInstanceUID == image.StudyInstanceUID
        assert dataset.PatientID == image.PatientID
    mask = pydicom.dcmread(local.results.path(seg.path))
    assert (mask.Rows, mask.Columns) == (96, 80)
    assert [s.SegmentLabel for s in mask.SegmentSequence] == ["Right lung", "Left lung"]
    assert job.summary is not None
    assert [s["label"] for s in job.summary["segments"]] == ["Right lung", "Left lung"]
    assert job.summary["timings"]["forward"] > 0
    assert {d.state for d in all_of(local, Delivery)} == {"pending"}
    assert run_jobs(local, WarmEngines(local), ANY) == 0


def test_a_ct_series_becomes_one_seg_of_its_grid(local: Node, clock: Clock) -> None:
    ready(local, clock, *ct_series(4))
    assert run_jobs(local, WarmEngines(local), ANY) == 1
    seg, _ = all_of(local, Result)
    mask = pydicom.dcmread(local.results.path(seg.path))
    assert (mask.Rows, mask.Columns) == (64, 64)
    sources = {
        str(i.ReferencedSOPInstanceUID)
        for i in mask.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert sources == {str(ds.SOPInstanceUID) for ds in ct_series(4)}


def test_images_of_different_studies_share_a_forward_pass(local: Node, clock: Clock) -> None:
    images = [radiograph(n) for n in range(3)]
    for image in images:
        ready(local, clock, image)
    engines = WarmEngines(local)
    watched = Watched(engines.predict)
    passes: list[int] = []

    def note(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == name:
            passes.append(len(args[0]))

    engines.warm_up()
    name = type(engines._engine(one(local, Model, Model.name == "tiny").digest).network).__name__
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        assert run_jobs(local, watched, ANY) == 3
    finally:
        hook.remove()
    assert watched.calls == [[str(image.SOPInstanceUID) for image in images]]
    assert passes == [3]
    assert count(local, Job, Job.state == "done") == 3
    for job in all_of(local, Job):  # each by itself afterwards
        for row in all_of(local, Result, Result.job_id == job.id):
            study = pydicom.dcmread(local.results.path(row.path)).StudyInstanceUID
            assert study == images[job.id - 1].StudyInstanceUID


def test_the_second_study_loads_nothing(local: Node, clock: Clock) -> None:
    engines = WarmEngines(local)
    for number in range(2):
        ready(local, clock, radiograph(number))
        assert run_jobs(local, engines, ANY) == 1
        assert engines.loads == 1


def test_a_late_image_gives_a_report_that_names_its_predecessor(local: Node, clock: Clock) -> None:
    series, engines = ct_series(4), WarmEngines(local)
    ready(local, clock, *series[:3])
    run_jobs(local, engines, ANY)
    before = {r.sop_instance_uid: local.results.path(r.path) for r in all_of(local, Result)}
    kept = {uid: path.read_bytes() for uid, path in before.items()}
    ready(local, clock, series[3])
    run_jobs(local, engines, ANY)
    old, new = all_of(local, Result, Result.kind == "sr")
    report = pydicom.dcmread(local.results.path(new.path))
    (predecessor,) = report.PredecessorDocumentsSequence
    (named,) = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == old.sop_instance_uid
    assert {uid: path.read_bytes() for uid, path in before.items()} == kept
    assert count(local, Result) == len({r.sop_instance_uid for r in all_of(local, Result)}) == 4


def test_a_pacs_that_forwards_everything_back_starts_nothing(local: Node, clock: Clock) -> None:
    """Our own results included, as they were sent and as a PACS may rewrite them."""
    image = radiograph(1)
    ready(local, clock, image)
    run_jobs(local, WarmEngines(local), ANY)
    ours = [pydicom.dcmread(local.results.path(row.path)) for row in all_of(local, Result)]
    rewritten = pydicom.dcmread(local.results.path(all_of(local, Result)[0].path))
    rewritten.SOPInstanceUID = uid("rewritten by the PACS")  # in our series still
    rewritten.file_meta.MediaStorageSOPInstanceUID = rewritten.SOPInstanceUID
    outcomes = arrive(local, image, *ours, rewritten, calling="PACS")
    assert outcomes == ["duplicate", "stored", "stored", "stored"]
    clock.pass_(10_000)
    assert close_studies(local) == 0
    assert (count(local, Job), count(local, Revision)) == (1, 1)
    notes = [row.note for row in all_of(local, Instance)]
    assert notes == ["", *["a result of this node that came back"] * 3]
    # A late image of the modality still counts, and only the images are its inputs.
    ready(local, clock, dx_image(number=2, patient_id="P1", study_uid=str(image.StudyInstanceUID)))
    assert [r.instances for r in all_of(local, Revision)] == [1, 2]


def test_a_rerun_is_a_new_generation_with_uids_of_its_own(local: Node, clock: Clock) -> None:
    ready(local, clock, radiograph(1))
    engines = WarmEngines(local)
    run_jobs(local, engines, ANY)
    (again,) = jobs.rerun_study(local, str(radiograph(1).StudyInstanceUID))
    run_jobs(local, engines, ANY)
    job = one(local, Job, Job.id == again)
    assert (job.generation, job.predecessor_id, job.state) == (2, 1, "done")
    assert len({r.sop_instance_uid for r in all_of(local, Result)}) == 4


def test_a_study_closed_by_the_cap_says_so_in_its_report(local: Node, clock: Clock) -> None:
    receive.receive_instance(local, request(radiograph(1), opened(local)))
    clock.pass_(1800)
    assert close_studies(local) == 1
    run_jobs(local, WarmEngines(local), ANY)
    sr = one(local, Result, Result.kind == "sr")
    assert any("hard cap of 1800 s" in text for text in words(local.results.path(sr.path)))


def test_pixels_that_cannot_be_read_give_a_report_that_says_why(local: Node, clock: Clock) -> None:
    ready(local, clock, dx_image(Rows=46341, Columns=65535))
    watched = Watched(saying)
    assert run_jobs(local, watched, ANY) == 1
    assert watched.calls == []
    job, result = one(local, Job), one(local, Result)
    assert (job.state, result.kind) == ("done", "sr")
    assert job.summary is not None
    told = job.summary["not_analysed"]
    assert told.startswith("the images cannot be read: ")
    assert any(told in text for text in words(local.results.path(result.path)))


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_job_waits_for_a_bundle_that_is_missing_and_is_not_counted(
    local: Node, clock: Clock, tiny_bundle: Bundle
) -> None:
    ready(local, clock, radiograph(1))
    folder = bundle_folder(local, tiny_bundle.digest)
    shutil.move(folder, folder.with_name("away"))
    engines = WarmEngines(local)
    for _ in range(5):
        assert run_jobs(local, engines, ANY) == 1
        assert run_jobs(local, engines, ANY) == 0  # not before its patience is over
        clock.pass_(60)
    job = one(local, Job)
    assert (job.state, job.attempts) == ("ready", 0)
    assert job.error.startswith("the model cannot be loaded: ")
    assert [(a["kind"], a["subject"]) for a in list_alerts(local)] == [
        ("model not loadable", "tiny")
    ]
    shutil.move(folder.with_name("away"), folder)
    assert run_jobs(local, engines, ANY) == 1
    assert one(local, Job).state == "done"


def test_an_altered_bundle_is_not_run(local: Node, clock: Clock, tiny_bundle: Bundle) -> None:
    ready(local, clock, radiograph(1))
    weights = bundle_folder(local, tiny_bundle.digest) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run_jobs(local, WarmEngines(local), ANY) == 1
    assert (one(local, Job).state, count(local, Result)) == ("ready", 0)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, KeyError, MemoryError])
def test_a_poisonous_image_takes_no_other_with_it(
    local: Node, clock: Clock, error: type[Exception]
) -> None:
    images = [radiograph(n) for n in range(3)]
    for image in images:
        ready(local, clock, image)
    poison = str(images[1].SOPInstanceUID)

    def failing(digest: str, stacks: Sequence[ImageStack]) -> list[Prediction]:
        if any(stack.frames[0].sop_instance_uid == poison for stack in stacks):
            raise error("poison")
        return saying(digest, stacks)

    watched = Watched(failing)
    assert run_jobs(local, watched, ANY) == 3
    assert [job.state for job in all_of(local, Job)] == ["done", "ready", "done"]
    assert run_jobs(local, watched, ANY) == run_jobs(local, watched, ANY) == 1
    assert run_jobs(local, watched, ANY) == 0
    dead = all_of(local, Job)[1]
    assert (dead.state, dead.attempts, dead.owner) == ("dead", 3, None)
    assert "poison" in dead.error
    assert dead.finished_at == clock.time
    assert [(a["kind"], a["subject"]) for a in list_alerts(local)] == [("job dead", "job 2")]
    jobs.retry_job(local, 2)
    assert run_jobs(local, Watched(saying), ANY) == 1
    assert [job.state for job in all_of(local, Job)] == ["done"] * 3


def test_a_held_file_that_is_gone_is_no_finding_about_the_patient(
    local: Node, clock: Clock
) -> None:
    ready(local, clock, radiograph(1))
    local.instances.path(one(local, Instance).path).unlink()
    for _ in range(3):
        assert run_jobs(local, Watched(saying), ANY) == 1
    job = one(local, Job)
    assert (job.state, count(local, Result)) == ("dead", 0)
    assert files_of(local) == []


def test_a_full_disk_makes_jobs_wait_and_is_not_counted(
    local: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(local, clock, radiograph(1))
    (source,) = files_of(local)
    write = Folder.write
    written: list[int] = []

    def full(self: Folder, *args: Any) -> Any:
        if written:
            raise OutOfSpace("No space left on device")
        written.append(1)  # the first of the objects still fits
        return write(self, *args)

    engines = WarmEngines(local)
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", full)
        for _ in range(4):
            assert run_jobs(local, engines, ANY) == 1
            clock.pass_(60)
    assert files_of(local) == [source]
    assert (one(local, Job).state, one(local, Job).attempts) == ("ready", 0)
    assert [a["kind"] for a in list_alerts(local)] == ["results not kept"]
    assert run_jobs(local, engines, ANY) == 1
    assert (one(local, Job).state, count(local, Result)) == ("done", 2)
    assert list_alerts(local) == []


def test_an_error_of_a_library_is_told_without_its_words(
    local: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise ValueError("Invalid value 'Canary^Yellow' for VR PN")

    monkeypatch.setattr(build, "build_results", failing)
    ready(local, clock, radiograph(1))
    run_jobs(local, Watched(saying), ANY)
    assert one(local, Job).error.startswith("ValueError in failing, test_infer.py line ")


def test_row_17_a_result_is_discarded_when_the_lease_was_taken_back(
    node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    """The worker was frozen past its lease; another has the job, or had it."""
    prepare(node, tmp_path, tiny_bundle)
    ready(node, clock, radiograph(1))
    (source,) = files_of(node)

    def take_back() -> None:
        with node.database.transaction() as session:
            session.execute(update(Job).values(state="ready", token=Job.token + 1, owner=None))

    engines = WarmEngines(node)
    assert run_jobs(node, Watched(engines.predict, meanwhile=take_back), ANY) == 1
    assert files_of(node) == [source]
    assert (count(node, Result), count(node, Delivery)) == (0, 0)
    assert one(node, Job).state == "ready"
    assert run_jobs(node, engines, ANY) == 1
    # The image, what the model said of it, and its two objects.
    assert (one(node, Job).state, count(node, Result), len(files_of(node))) == ("done", 2, 4)


def test_a_cancelled_job_stores_nothing(local: Node, clock: Clock) -> None:
    ready(local, clock, radiograph(1))
    watched = Watched(saying, meanwhile=lambda: jobs.cancel_job(local, 1))
    run_jobs(local, watched, ANY)
    assert (one(local, Job).state, count(local, Result)) == ("cancelled", 0)


# -- which first -------------------------------------------------------------------------------


def claimed_order(node: Node) -> list[str]:
    """Job by job, in the order of claiming."""
    worker = node.settings.worker.model_copy(update={"batch": 1})
    single = replace(node, settings=node.settings.model_copy(update={"worker": worker}))
    watched = Watched(saying)
    while run_jobs(single, watched, ANY):
        pass
    return [uids[0] for uids in watched.calls]


def test_stat_goes_first_and_routine_ages(local: Node, clock: Clock) -> None:
    def come(number: int, priority: str = "") -> str:
        image = radiograph(number)
        if priority:
            image.RequestedProcedurePriority = priority
        ready(local, clock, image)
        return str(image.SOPInstanceUID)

    ageing = local.settings.worker.ageing
    oldest = come(1)
    clock.pass_(10 * ageing - 100)
    stat = come(2, "STAT")
    routine = come(3)
    clock.pass_(200)
    late_stat = come(4, "STAT")  # the oldest has aged past this one
    assert claimed_order(local) == [stat, oldest, late_stat, routine]


def test_a_job_is_claimed_only_from_its_queue(local: Node, clock: Clock) -> None:
    ready(local, clock, radiograph(1))
    assert run_jobs(local, Watched(saying), ("gpu",)) == 0
    assert run_jobs(local, Watched(saying), ("gpu", "any")) == 1


def test_a_batch_is_of_one_model_and_no_larger_than_set(local: Node, clock: Clock) -> None:
    ready(local, clock, *ct_series(2))
    for number in range(10):
        ready(local, clock, radiograph(number))
    watched = Watched(saying)
    sizes = []
    while run_jobs(local, watched, ANY):
        sizes.append(len(watched.calls[-1]))
    assert sizes == [1, 8, 2]


def test_row_16_two_workers_that_are_nudged_for_one_job_claim_it_once(
    node: Node, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    prepare(node, tmp_path, tiny_bundle)
    arrive(node, *(dx_image(np.full((8, 8), n), number=n, patient_id="P") for n in range(40)))
    assert close_studies(node) == 40
    worker = node.settings.worker.model_copy(update={"batch": 3})
    settings = node.settings.model_copy(update={"worker": worker})
    watched, start = [Watched(saying), Watched(saying)], threading.Barrier(2)

    def work(number: int) -> None:
        own = replace(node, id=f"worker-{number}", settings=settings)
        start.wait()
        while run_jobs(own, watched[number], ANY):
            pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [uid for w in watched for uids in w.calls for uid in uids]
    assert len(done) == len(set(done)) == 40
    assert all(w.calls for w in watched)
    assert {(job.state, job.attempts, job.token) for job in all_of(node, Job)} == {("done", 1, 1)}
    assert count(node, Result) == 40


def test_a_job_that_waits_is_not_claimed_before_its_time(local: Node, clock: Clock) -> None:
    ready(local, clock, radiograph(1))
    with local.database.transaction() as session:
        session.execute(update(Job).values(not_before=clock.time + timedelta(seconds=5)))
    assert run_jobs(local, Watched(saying), ANY) == 0
    clock.pass_(5)
    assert run_jobs(local, Watched(saying), ANY) == 1


def test_a_claim_steps_over_what_another_is_claiming(
    postgresql_url: str, tiny_bundle: Bundle, clock: Clock, tmp_path: Path
) -> None:
    """On PostgreSQL (SKIP LOCKED): nobody waits for a claim that is still being made."""
    folder = {"folder": tmp_path / "data", "database": postgresql_url}
    worker = {"device": "cpu", "batch": 1}
    node = make_node(tmp_path / "data", clock, storage=folder, worker=worker)
    prepare(node, tmp_path, tiny_bundle)
    for number in range(3):
        ready(node, clock, radiograph(number))
    with node.database.transaction() as session:
        held = session.scalars(
            select(Job).order_by(Job.due_at, Job.id).limit(1).with_for_update()
        ).one()
        assert run_jobs(node, Watched(saying), ANY) == 1
        assert run_jobs(node, Watched(saying), ANY) == 1
        assert run_jobs(node, Watched(saying), ANY) == 0
        first = held.id
    assert [job.id for job in all_of(node, Job) if job.state == "ready"] == [first]
    assert run_jobs(node, Watched(saying), ANY) == 1
    node.database.engine.dispose()
