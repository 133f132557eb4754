"""Files go when nothing needs them and their time is over; what comes again is stored again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import delete

from dicom_node.dimse.tls import server_context
from dicom_node.errors import ConflictingInstance, InvalidTransition
from dicom_node.services import explain, jobs, purge, receive, registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import retry_delivery
from dicom_node.services.infer import run_jobs
from dicom_node.services.instances import Keep, resolve_instance
from dicom_node.services.receive import Outcome
from dicom_node.services.schedule import reconcile
from dicom_node.settings import RetentionSettings
from dicom_node.store.tables import (
    Delivery,
    DeliveryAttempt,
    Instance,
    Job,
    Quarantined,
    Result,
    Study,
)
from inference.bundle import Bundle
from inference.types import Prediction
from tests.arrivals import all_of, arrive, count, one, opened, request
from tests.audit import audited, event
from tests.certificates import Authority
from tests.dicoms import dx_image, save, uid
from tests.nodes import Clock, add_bundle, route, settle, store
from tests.pacs import AE_TITLE, Pacs
from tests.servers import orthanc

DAY = 86400.0


class Saying:
    """Says something at once; what a model finds makes no difference here."""

    def predict(self, digest: str, stacks: Any, *_: Any) -> list[Prediction]:
        del digest  # part of the interface
        return [Prediction(not_analysed="a test") for _ in stacks]


def keeping(node: Node, **days: float) -> Node:
    settings = node.settings.model_copy(update={"retention": RetentionSettings(**days)})
    return replace(node, settings=settings)


@pytest.fixture
def done(node: Node, tiny_bundle: Bundle, tmp_path: Path, clock: Clock) -> Iterator[Node]:
    """A node that keeps everything for a day, with a study all of whose results are delivered."""
    add_bundle(node, tiny_bundle)
    place = {"path": str(tmp_path / "out")}
    registry.add_destination(node, "out", "folder", place, terms={"commitment": "none"})
    route(node)
    arrive(node, dx_image())
    settle(node, Saying())
    assert {d.state for d in all_of(node, Delivery)} == {"sent"}
    yield keeping(node, instances=1, results=1, quarantine=1)


def promise(node: Node) -> bool:
    """Commit the only instance."""
    row = one(node, Instance)
    promised = {row.sop_instance_uid: row.sop_class_uid}
    return receive.commit(node, promised) == promised


def files(node: Node) -> tuple[int, int]:
    """Of instances and results, on the disk."""
    return len(list(node.instances.names())), len(list(node.results.names()))


def test_nothing_goes_before_its_time_and_everything_after_it(done: Node, clock: Clock) -> None:
    before = files(done)
    clock.pass_(DAY - 1)
    assert purge.purge(done).files == {}
    assert files(done) == before
    clock.pass_(2)
    tried = purge.purge(done, dry_run=True)
    assert files(done) == before
    told = purge.purge(done)
    assert told.files == tried.files == {"instances": 1, "results": 1, "predictions": 1}
    assert told.size == tried.size > 0
    assert files(done) == (0, 0)
    row = one(done, Instance)
    assert row.purging_at == row.purged_at == clock.time
    assert len(row.sha256) == 64
    assert all(r.purged_at for r in all_of(done, Result))
    assert purge.purge(done).files == {}
    assert reconcile(done) == {"temporary": 0, "orphans": 0, "missing": 0}


def test_the_audit_trail_names_what_goes_before_it_goes(
    done: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("killed")

    def removals() -> list[str]:
        return [name for root in audited(done.audit) if (name := event(root)).endswith(" D 0")]

    clock.pass_(2 * DAY)
    assert purge.purge(done, dry_run=True).files and not removals()
    with monkeypatch.context() as broken:
        broken.setattr(type(done.instances), "remove", fails)
        with pytest.raises(RuntimeError):
            purge.purge(done)
    assert removals() == ["DICOM Study Deleted D 0"]
    purge.purge(done)
    again = ["DICOM Study Deleted D 0"] * 2
    assert removals() == [*again, "DICOM Instances Accessed D 0"], "the report goes, too"
    assert files(done) == (0, 0)


def test_by_default_everything_stays(done: Node, clock: Clock) -> None:
    before = files(done)
    clock.pass_(1000 * DAY)
    assert purge.purge(keeping(done)).files == {}
    assert files(done) == before


def test_a_study_tells_that_its_files_are_gone(done: Node, clock: Clock) -> None:
    clock.pass_(2 * DAY)
    purge.purge(done)
    study = one(done, Study).study_instance_uid
    said = " ".join(explain.explain(done, study)["summary"])
    assert f"1 of 1 instances were purged, the last on {clock.time:%Y-%m-%d}" in said
    assert "1 result was purged" in said
    with pytest.raises(InvalidTransition, match="images, which were purged on"):
        jobs.rerun_study(done, study)
    with pytest.raises(InvalidTransition, match="without its file"):
        retry_delivery(done, all_of(done, Delivery)[0].id)
    assert count(done, Job) == 1


@pytest.mark.parametrize("state", ["pending", "sending", "dead", "unconfirmed"])
def test_an_undelivered_result_keeps_itself_and_its_images(
    done: Node, clock: Clock, state: str
) -> None:
    before = files(done)
    with done.database.transaction() as session:
        session.get_one(Delivery, 1).state = state
    clock.pass_(2 * DAY)
    assert purge.purge(done).kept == {f"a delivery is {state}": 2}
    assert files(done) == before


def test_a_dead_job_keeps_its_images_until_somebody_decides(done: Node, clock: Clock) -> None:
    with done.database.transaction() as session:
        session.get_one(Job, 1).state = "dead"
    clock.pass_(2 * DAY)
    told = purge.purge(done)
    assert (told.kept["a job is dead"], told.files["instances"]) == (1, 0)
    jobs.cancel_job(done, 1)
    assert purge.purge(done).files["instances"] == 1


def test_results_that_were_sent_nowhere_stay(done: Node, clock: Clock) -> None:
    with done.database.transaction() as session:
        session.execute(delete(DeliveryAttempt))
        session.execute(delete(Delivery))
    clock.pass_(2 * DAY)
    told = purge.purge(done)
    assert (told.kept, told.files["results"]) == ({purge.FOR_EVER: 1}, 0)


def test_what_was_purged_and_comes_again_is_stored_and_makes_no_job(
    done: Node, clock: Clock
) -> None:
    clock.pass_(2 * DAY)
    purge.purge(done)
    held = one(done, Instance)
    assert arrive(done, dx_image()) == [Outcome.STORED]
    row = one(done, Instance)
    assert (row.id, row.sha256, row.purging_at, row.purged_at) == (held.id, held.sha256, None, None)
    assert row.received_at == clock.time
    assert done.instances.path(row.path).is_file()
    assert arrive(done, dx_image()) == [Outcome.DUPLICATE]
    assert (one(done, Study).state, close_studies(done), count(done, Job)) == ("closed", 0, 1)
    assert purge.purge(done).files["instances"] == 0, "its time begins anew"
    (again,) = jobs.rerun_study(done, one(done, Study).study_instance_uid)
    settle(done, Saying())
    assert one(done, Job, Job.id == again).state == "done"


def test_what_was_purged_and_comes_with_other_content_is_a_new_revision(
    done: Node, clock: Clock
) -> None:
    clock.pass_(2 * DAY)
    purge.purge(done)
    changed = dx_image()
    changed.PixelData = bytes(len(changed.PixelData))
    assert arrive(done, changed) == [Outcome.STORED]
    assert close_studies(done) == 1
    assert (count(done, Instance), count(done, Job), count(done, Quarantined)) == (1, 2, 0)


def test_a_purged_uid_that_comes_in_another_study_is_refused(done: Node, clock: Clock) -> None:
    clock.pass_(2 * DAY)
    purge.purge(done)
    other = dx_image()
    other.StudyInstanceUID = uid("another study")
    with pytest.raises(ConflictingInstance):
        arrive(done, other)
    assert (files(done)[0], count(done, Study)) == (0, 1)


def test_a_job_whose_images_were_purged_waits_for_them(done: Node, clock: Clock) -> None:
    """As when a late image joins them; it must not be told that they cannot be read."""
    clock.pass_(2 * DAY)
    study = one(done, Study).study_instance_uid
    (job,) = jobs.rerun_study(done, study)
    with done.database.transaction() as session:  # nothing but a race or a late image does this
        session.get_one(Instance, 1).purging_at = clock.time
    purge.finish(done)
    assert run_jobs(done, Saying(), ("any",)) == 1
    row = one(done, Job, Job.id == job)
    assert (row.state, row.attempts) == ("ready", 0)
    arrive(done, dx_image())
    clock.pass_(61)
    settle(done, Saying())
    assert one(done, Job, Job.id == job).state == "done"


@pytest.mark.parametrize("after", ["mark", "removal"])
def test_a_purge_that_was_cut_off_is_finished_at_the_next_start(
    done: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(node: Node, folder: Any, rows: Sequence[Any]) -> None:
        if after == "removal":
            for row in rows:
                folder.remove(row.path)
        if rows:
            raise Killed

    clock.pass_(2 * DAY)
    with monkeypatch.context() as patch:
        patch.setattr(purge, "_remove", killed)
        with pytest.raises(Killed):
            purge.purge(done)
    row = one(done, Instance)
    assert (row.purging_at is not None, row.purged_at) == (True, None)
    assert receive.commit(done, {row.sop_instance_uid: row.sop_class_uid}) == {}
    assert reconcile(done)["missing"] == 0
    assert one(done, Instance).purged_at == clock.time
    assert files(done)[0] == 0


def test_what_comes_again_while_it_is_purged_keeps_its_new_file(
    done: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = purge._remove

    def late(node: Node, folder: Any, rows: Sequence[Any]) -> None:
        if any(isinstance(row, Instance) for row in rows):
            assert arrive(done, dx_image()) == [Outcome.STORED]
        remove(node, folder, rows)

    clock.pass_(2 * DAY)
    monkeypatch.setattr(purge, "_remove", late)
    purge.purge(done)
    row = one(done, Instance)
    assert (row.purging_at, row.purged_at) == (None, None)
    assert done.instances.path(row.path).is_file()
    assert files(done)[0] == 1


def test_what_comes_again_is_stored_where_the_held_one_is_purged_meanwhile(
    done: Node, clock: Clock
) -> None:
    clock.pass_(2 * DAY)
    came = vars(request(dx_image(), opened(done)))
    dataset = came.pop("dataset")
    intake = receive.Intake(done, receive.Arrival(**came))
    intake.write(dataset)
    assert purge.purge(done).files["instances"] == 1
    assert intake.finish() is Outcome.STORED
    row = one(done, Instance)
    assert (row.purging_at, row.purged_at) == (None, None)
    assert done.instances.path(row.path).is_file()


def test_row_24_what_was_committed_stays_without_an_archive(done: Node, clock: Clock) -> None:
    assert promise(done)
    clock.pass_(1000 * DAY)
    told = purge.purge(done)
    assert (told.kept, told.files["instances"]) == ({purge.NOT_ARCHIVED: 1}, 0)
    assert files(done)[0] == 1


def test_what_was_committed_goes_once_the_archive_holds_it(
    sqlite_node: Node, tmp_path: Path, clock: Clock
) -> None:
    node = keeping(sqlite_node, instances=1)
    image = dx_image()
    arrive(node, image)
    close_studies(node)
    assert promise(node)
    clock.pass_(2 * DAY)
    with orthanc(tmp_path, DicomAlwaysAllowFind=True) as archive:
        place = {"ae_title": archive.ae_title, "host": "127.0.0.1", "port": archive.port}
        registry.add_destination(node, "vna", "dimse", place, archive=True)
        assert purge.purge(node).kept == {purge.NOT_ARCHIVED: 1}
        send(archive, image, tmp_path)
        assert purge.purge(node, dry_run=True).files == {"instances": 1}
        assert one(node, Instance).archived_at is None
        assert purge.purge(node).files == {"instances": 1}
    assert one(node, Instance).archived_at == clock.time
    assert list(node.instances.names()) == []


def test_what_was_committed_stays_where_an_archive_cannot_be_asked(
    done: Node, clock: Clock
) -> None:
    assert promise(done)
    for name, host in (("a", "nowhere.invalid"), ("b", "127.0.0.1")):
        place = {"ae_title": "VNA", "host": host, "port": 1}
        registry.add_destination(done, name, "dimse", place, archive=True)
    clock.pass_(2 * DAY)
    told = purge.purge(done)
    assert (told.kept, told.files["instances"]) == ({purge.NOT_ARCHIVED: 1}, 0)
    assert told.files["results"] == 1, "and the rest goes on"


def test_an_archive_is_asked_over_tls(done: Node, clock: Clock, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    node = replace(
        done, settings=done.settings.model_copy(update={"tls": ca.issue("n").settings()})
    )
    secure = server_context(ca.issue("pacs").settings())
    assert promise(node)
    clock.pass_(2 * DAY)
    with Pacs(tmp_path / "vna", finds=True, tls=secure) as vna:
        place = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": vna.port, "tls": True}
        registry.add_destination(node, "vna", "dimse", place, archive=True)
        assert purge.purge(node).kept == {purge.NOT_ARCHIVED: 1}
        assert vna.queries == 1


def test_what_came_again_with_other_content_is_asked_for_anew(done: Node, clock: Clock) -> None:
    """The archive told that it holds other bytes than those that are promised now."""
    with done.database.transaction() as session:
        row = session.get_one(Instance, 1)
        row.committed_at = row.archived_at = clock.time
    clock.pass_(2 * DAY)
    assert purge.purge(done).files["instances"] == 1
    changed = dx_image()
    changed.PixelData = bytes(len(changed.PixelData))
    arrive(done, changed)
    assert promise(done)
    settle(done, Saying())
    clock.pass_(3 * DAY)
    assert purge.purge(done).kept == {purge.NOT_ARCHIVED: 1}
    assert files(done)[0] == 1


@pytest.mark.parametrize("keep", ["new", "old"])
def test_row_09_of_what_was_committed_no_content_goes_by_the_word_of_an_archive(
    done: Node, clock: Clock, tmp_path: Path, keep: Keep
) -> None:
    """It holds something of that UID; which of the two, a query does not tell."""
    assert promise(done)
    changed = dx_image()
    changed.PixelData = bytes(len(changed.PixelData))
    with done.database.transaction() as session:
        session.get_one(Instance, 1).archived_at = clock.time
    assert store(done, [changed]) == ["held with other content"]
    resolve_instance(done, 1, keep)
    assert (one(done, Instance).archived_at is None) == (keep == "new"), "told of other bytes"
    clock.pass_(60)
    settle(done, Saying())
    clock.pass_(1000 * DAY)
    with Pacs(tmp_path / "vna", finds=True) as vna:
        send(vna, changed, tmp_path)
        place = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": vna.port}
        registry.add_destination(done, "vna", "dimse", place, archive=True)
        told = purge.purge(done)
    assert told.kept == {purge.WHICH: 2}
    assert (told.files["instances"], told.files["quarantine"]) == (0, 0)
    assert files(done)[0] == 2


def send(archive: Any, image: Dataset, folder: Path) -> None:
    from tests.node import store

    done = store(archive.port, [save(image, folder / "image.dcm")], called=archive.ae_title)
    assert done.returncode == 0, done.stderr


def test_an_instance_in_quarantine_stays_until_it_is_settled(done: Node, clock: Clock) -> None:
    changed = dx_image()
    changed.PixelData = bytes(len(changed.PixelData))
    with pytest.raises(ConflictingInstance):
        arrive(done, changed)
    clock.pass_(1000 * DAY)
    assert purge.purge(done).kept["an instance in quarantine waits for a decision"] == 1
    assert files(done)[0] == 2
    resolve_instance(done, 1, "old")
    clock.pass_(DAY + 1)
    assert purge.purge(done).files == {"instances": 1, "quarantine": 1}
    assert one(done, Quarantined).purged_at == clock.time
    assert files(done)[0] == 0
