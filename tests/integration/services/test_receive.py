"""T1 on both databases: what is acknowledged is durable, and nothing else is kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSNearLossless,
    RLELossless,
)
from sqlalchemy import event, text

from dicom_node.errors import (
    ConflictingInstance,
    IdentifierProblem,
    OutOfSpace,
    Unavailable,
    UnreadableDataSet,
)
from dicom_node.services import peers, receive, registry, same
from dicom_node.services.alerts import list_alerts
from dicom_node.services.context import Node
from dicom_node.services.processes import bury
from dicom_node.services.receive import Outcome, receive_instance
from dicom_node.services.schedule import reconcile
from dicom_node.store import database, postgresql
from dicom_node.store.database import CommitUnknown
from dicom_node.store.tables import Association, Expectation, Instance, Quarantined, Study
from tests.arrivals import all_of, arrive, count, encode, files_of, one, opened, request
from tests.dicoms import CT, ct_slice, dx_image, phantom, uid
from tests.dicoms import DX_PRESENTATION as DX
from tests.nodes import Clock, make_node
from tests.servers import Postgres, eventually


def compressed(dataset: Dataset, syntax: str = RLELossless, **options: Any) -> Dataset:
    dataset.compress(syntax, generate_instance_uid=False, **options)
    return dataset


def in_parallel(tasks: list[Callable[[], Any]]) -> list[Any]:
    """All at once; each one's value or error."""
    results: list[Any] = [None] * len(tasks)
    start = threading.Barrier(len(tasks))

    def run(number: int) -> None:
        start.wait()
        try:
            results[number] = tasks[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# -- durable -----------------------------------------------------------------------------------


def test_what_is_acknowledged_is_on_disk_as_it_was_sent(node: Node, clock: Clock) -> None:
    dataset = dx_image(SeriesDescription="Thorax")
    association = opened(node, "DX1")
    assert receive_instance(node, request(dataset, association)) is Outcome.STORED
    row = one(node, Instance)
    data = encode(dataset)
    path = node.instances.path(row.path)
    assert files_of(node) == [path]
    assert path.read_bytes().endswith(data)
    assert (row.sha256, row.transfer_syntax) == (sha256(data).hexdigest(), ExplicitVRLittleEndian)
    assert row.size == path.stat().st_size
    assert (row.association_id, row.counts, row.note) == (association, True, "")
    assert row.facts["series_description"] == "Thorax"
    assert (row.facts["calling_ae"], row.facts["called_ae"]) == ("DX1", "DICOMNODE")
    study = one(node, Study)
    assert (study.study_instance_uid, study.state) == (dataset.StudyInstanceUID, "open")
    assert study.first_at == study.last_at == study.check_at == clock.time


def test_the_file_is_part_10_and_says_what_the_request_said(node: Node) -> None:
    dataset = compressed(ct_slice())
    arrive(node, dataset)
    again = pydicom.dcmread(node.instances.path(one(node, Instance).path))
    meta = again.file_meta
    assert meta.TransferSyntaxUID == RLELossless
    assert meta.MediaStorageSOPClassUID == dataset.SOPClassUID
    assert meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert (again.pixel_array == phantom(seed=1)).all()


def test_what_is_no_image_of_a_modality_is_kept_and_opens_nothing(node: Node) -> None:
    arrive(node, dx_image(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))
    assert one(node, Study).state == "closed"
    row = one(node, Instance)
    assert not row.counts
    assert row.note == "Secondary Capture Image Storage is no image of a modality"


def test_of_four_at_once_each_is_durable_before_it_is_acknowledged(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, name, directory, row, then the answer, whoever's transaction carries the row."""
    noted: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.rename

    def noting_sync(descriptor: int) -> None:
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        noted.append(("sync", path.name.rpartition(".")[2]))

    def noting_rename(self: Path, target: Path) -> Path:
        noted.append(("rename", target.stem))
        return rename(self, target)

    @event.listens_for(node.database.engine, "commit")
    def noting_commit(_: Any) -> None:
        noted.append(("commit", ""))

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    requests = [request(dx_image(number=n), opened(node)) for n in range(16)]
    noted.clear()

    def take(reception: receive.Reception) -> None:
        receive_instance(node, reception)
        row = one(node, Instance, Instance.sop_instance_uid == reception.sop_instance_uid)
        noted.append(("answer", Path(row.path).stem))

    in_parallel([partial(lambda some: [take(r) for r in some], requests[n::4]) for n in range(4)])
    answers = [name for step, name in noted if step == "answer"]
    assert len(set(answers)) == 16
    for name in answers:
        file, named = noted.index(("sync", name)), noted.index(("rename", name))
        folder = noted.index(("sync", name[:2]), named)
        answer = noted.index(("answer", name))
        assert file < named < folder < answer
        assert ("commit", "") in noted[folder:answer]


# -- again -------------------------------------------------------------------------------------


def test_the_same_bytes_again_are_acknowledged_and_change_nothing(node: Node, clock: Clock) -> None:
    arrive(node, dx_image())
    before, study = files_of(node), one(node, Study)
    clock.pass_(100)
    assert arrive(node, dx_image()) == [Outcome.DUPLICATE]
    assert files_of(node) == before
    assert one(node, Study).last_at == study.last_at


def test_the_same_bytes_take_the_place_of_a_held_file_that_is_gone(node: Node) -> None:
    arrive(node, dx_image())
    files_of(node)[0].unlink()
    assert receive.commit(node, {str(dx_image().SOPInstanceUID): DX}) == {}
    assert arrive(node, dx_image()) == [Outcome.DUPLICATE]
    row = one(node, Instance)
    assert files_of(node) == [node.instances.path(row.path)]
    assert node.instances.path(row.path).read_bytes().endswith(encode(dx_image()))


@pytest.mark.parametrize(
    "encodings",
    [
        (ExplicitVRLittleEndian, RLELossless),
        (RLELossless, ExplicitVRLittleEndian),
        (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (ImplicitVRLittleEndian, RLELossless),
    ],
    ids=lambda e: "-".join(s.name.split()[0] for s in e),
)
def test_another_encoding_of_the_same_content_is_acknowledged(
    sqlite_node: Node, encodings: tuple[str, str]
) -> None:
    def sent(syntax: str) -> receive.Reception:
        dataset = ct_slice()
        dataset.add_new(0x00091010, "LO", "private")  # a forwarding PACS makes it UN
        dataset.add_new(0x00090010, "LO", "VENDOR")
        if syntax == RLELossless:
            compressed(dataset)
        return request(dataset, opened(sqlite_node), syntax=syntax)

    first, second = map(sent, encodings)
    assert receive_instance(sqlite_node, first) is Outcome.STORED
    assert receive_instance(sqlite_node, second) is Outcome.OTHER_ENCODING
    assert len(files_of(sqlite_node)) == 1
    assert one(sqlite_node, Instance).transfer_syntax == encodings[0]


def test_of_many_other_encodings_at_once_one_is_compared_at_a_time(sqlite_node: Node) -> None:
    arrive(sqlite_node, ct_slice())
    again = request(compressed(ct_slice()), opened(sqlite_node))
    done, children = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            lines = (" ".join(child.cmdline()) for child in psutil.Process().children())
            with suppress(psutil.NoSuchProcess):
                children.append(sum("dicom_node.services.same" in line for line in lines))

    watching = threading.Thread(target=watch)
    watching.start()
    outcomes = in_parallel([partial(receive_instance, sqlite_node, again)] * 3)
    done.set()
    watching.join()
    assert outcomes == [Outcome.OTHER_ENCODING] * 3
    assert max(children) == 1


def test_who_cannot_be_compared_in_time_is_told_to_come_again(
    sqlite_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than taken for other content."""
    arrive(sqlite_node, ct_slice())
    monkeypatch.setattr(same, "_PATIENCE", 0.1)
    with same._one_child, pytest.raises(Unavailable):
        arrive(sqlite_node, compressed(ct_slice()))
    assert count(sqlite_node, Quarantined) == 0


def test_a_lossy_encoding_is_other_content(sqlite_node: Node) -> None:
    arrive(sqlite_node, ct_slice())
    lossy = compressed(ct_slice(), JPEGLSNearLossless, jls_error=10)
    with pytest.raises(ConflictingInstance):
        arrive(sqlite_node, lossy)


@pytest.mark.parametrize(
    "change", [{"PatientID": "OTHER"}, {"pixels": phantom((96, 80), seed=9)}, {"KVP": "80"}]
)
def test_other_content_under_a_held_uid_goes_to_quarantine(
    node: Node, change: dict[str, Any]
) -> None:
    arrive(node, dx_image(sop_uid="1.2.3"))
    (original,) = files_of(node)
    kept = original.read_bytes()
    other = dx_image(sop_uid="1.2.3", **change)
    for _ in range(2):  # the second time it is known already
        with pytest.raises(ConflictingInstance) as caught:
            arrive(node, other)
        assert caught.value.sop_instance_uid == "1.2.3"
    assert original.read_bytes() == kept
    row = one(node, Quarantined)
    assert (row.sha256, row.resolution) == (sha256(encode(other)).hexdigest(), None)
    assert node.instances.path(row.path).read_bytes().endswith(encode(other))
    assert len(files_of(node)) == 2
    (alert,) = list_alerts(node)
    assert (alert["kind"], alert["subject"]) == ("conflicting instance", "1.2.3")
    assert one(node, Instance).sha256 == sha256(encode(dx_image(sop_uid="1.2.3"))).hexdigest()


def test_the_same_instance_from_many_at_once_is_one_row_and_one_file(node: Node) -> None:
    requests = [request(dx_image(), opened(node)) for _ in range(20)]
    outcomes = in_parallel([partial(receive_instance, node, r) for r in requests])
    assert sorted(outcomes) == ["duplicate"] * 19 + ["stored"]
    assert count(node, Instance) == count(node, Study) == len(files_of(node)) == 1


def test_a_new_study_from_many_at_once_is_one_study(node: Node) -> None:
    requests = [request(dx_image(number=n), opened(node)) for n in range(20)]
    outcomes = in_parallel([partial(receive_instance, node, r) for r in requests])
    assert outcomes == ["stored"] * 20
    assert (count(node, Instance), count(node, Study), len(files_of(node))) == (20, 1, 20)


def test_other_content_from_many_at_once_keeps_one_and_quarantines_one(node: Node) -> None:
    arrive(node, dx_image(sop_uid="1.2.3"))
    other = dx_image(sop_uid="1.2.3", KVP="80")
    requests = [request(other, opened(node)) for _ in range(8)]
    outcomes = in_parallel([partial(receive_instance, node, r) for r in requests])
    assert [type(outcome) for outcome in outcomes] == [ConflictingInstance] * 8
    assert (count(node, Quarantined), len(files_of(node))) == (1, 2)


# -- refused -----------------------------------------------------------------------------------


def nothing_kept(node: Node) -> bool:
    return not files_of(node) and not count(node, Instance) and not count(node, Study)


@pytest.mark.parametrize(
    "change",
    [
        {"SeriesInstanceUID": None},
        {"StudyInstanceUID": "../../etc"},
        {"SOPInstanceUID": "1.2.99"},
        {"SOPClassUID": "1.2.99"},
    ],
)
def test_what_has_no_identity_leaves_no_trace(sqlite_node: Node, change: dict[str, Any]) -> None:
    good = request(dx_image(), opened(sqlite_node))
    bad = dx_image()
    for keyword, value in change.items():
        if value is None:
            delattr(bad, keyword)
        else:
            bad[keyword]._value = value
    with pytest.raises(IdentifierProblem):
        receive_instance(sqlite_node, replace(good, dataset=encode(bad)))
    assert nothing_kept(sqlite_node)


@pytest.mark.parametrize("cut", [1, 500, 15_000])
def test_what_is_truncated_leaves_no_trace(sqlite_node: Node, cut: int) -> None:
    good = request(dx_image(), opened(sqlite_node))
    with pytest.raises(UnreadableDataSet):
        receive_instance(sqlite_node, replace(good, dataset=good.dataset[:-cut]))
    assert nothing_kept(sqlite_node)


@pytest.mark.parametrize(
    "odd",
    [
        {"SeriesDescription": "A\0B", "PatientID": "P\0Q"},
        {"PatientName": "Zażółć^Gęślą=山田", "PatientID": "Ω-1"},
        {"PatientID": "P" * 100, "StationName": "S" * 500},
        {"PatientID": None, "Modality": None},
        {"SpecificCharacterSet": "ISO_IR 999"},
        {"ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_what_is_odd_but_whole_is_stored_on_either_database(
    node: Node, odd: dict[str, Any]
) -> None:
    with pydicom.config.disable_value_validation():
        assert arrive(node, dx_image(**odd)) == [Outcome.STORED]


# -- unavailable -------------------------------------------------------------------------------


def test_a_disk_that_is_full_takes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    full = make_node(
        tmp_path / "full",
        storage={"folder": tmp_path / "full", "database": sqlite_url},
        listener={"reserve_mb": 1 << 40},
    )
    association = opened(full)
    with pytest.raises(OutOfSpace):
        receive_instance(full, request(dx_image(), association))
    assert nothing_kept(full)


def node_on(url: str, folder: Path) -> Node:
    """One that connects as the constants of the moment say, and keeps no space free."""
    return make_node(
        folder, storage={"folder": folder, "database": url}, listener={"reserve_mb": 0}
    )


def test_a_locked_database_is_unavailable_and_no_file_stays(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    node = node_on(sqlite_url, tmp_path / "n")
    association = opened(node)
    with node.database.transaction() as session:
        session.execute(text("SELECT 1"))  # it holds the one write lock
        with pytest.raises(Unavailable, match="locked"):
            receive_instance(node, request(dx_image(), association))
        assert files_of(node) == []
    assert receive_instance(node, request(dx_image(), association)) is Outcome.STORED
    (held,) = files_of(node)
    held.rename(held.with_suffix(".away"))
    other = dx_image(sop_uid=str(dx_image().SOPInstanceUID), KVP="80")
    with node.database.transaction() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(Unavailable, match="locked"):  # in place of the one that is gone
            receive_instance(node, request(dx_image(), association))
        held.with_suffix(".away").rename(held)
        with pytest.raises(Unavailable, match="locked"):  # into quarantine
            receive_instance(node, request(other, association))
    assert files_of(node) == [held]


@pytest.fixture
def postgresql_node(postgresql_url: str, tmp_path: Path) -> Node:
    return node_on(postgresql_url, tmp_path / "n")


def test_a_server_that_is_away_is_unavailable(
    postgresql_node: Node, postgres_server: Postgres
) -> None:
    association = opened(postgresql_node)
    postgres_server.stop()
    try:
        with pytest.raises(Unavailable):
            receive_instance(postgresql_node, request(dx_image(), association))
    finally:
        postgres_server.start()
    assert nothing_kept(postgresql_node)
    assert receive_instance(postgresql_node, request(dx_image(), association)) is Outcome.STORED


@pytest.mark.timeout(40)  # it waits without end where the defence is out
def test_row_05_a_locked_table_is_unavailable_and_no_file_stays(
    postgresql_url: str,
    postgres_server: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody holds it for longer than a writer waits; all that come meanwhile hear so."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.5)
    node = node_on(postgresql_url, tmp_path / "n")
    association, began = opened(node), time.monotonic()
    images = [request(dx_image(number=n), association) for n in range(8)]
    with node.database.engine.connect() as other:
        other.execute(text("LOCK TABLE studies IN ACCESS EXCLUSIVE MODE"))  # not met before T1
        told = in_parallel([partial(receive_instance, node, image) for image in images])
        other.execute(text("LOCK TABLE instances IN ACCESS EXCLUSIVE MODE"))
        told += in_parallel([partial(receive_instance, node, image) for image in images])
    assert [type(one) for one in told] == [Unavailable] * 16
    assert time.monotonic() - began < 20
    assert nothing_kept(node)
    assert [receive_instance(node, image) for image in images] == [Outcome.STORED] * 8


@pytest.mark.timeout(40)  # as above
@pytest.mark.parametrize("word", ["INSERT INTO studies", "COMMIT"])
def test_row_05_a_frozen_server_is_unavailable_and_in_the_commit_unknown(
    postgresql_node: Node, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """It takes what it is sent and answers nothing; once it goes on, it finds the COMMIT there."""
    node, association, left = postgresql_node, opened(postgresql_node), [word]
    monkeypatch.setattr(postgresql, "SILENT_SECONDS", 1.0)
    with ExitStack() as frozen:

        def freeze(here: str) -> None:
            if left and here.startswith(left[0]):
                left.clear()
                frozen.enter_context(postgres_server.frozen())

        @event.listens_for(node.database.engine, "before_cursor_execute")
        def in_statement(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            freeze(statement)

        @event.listens_for(node.database.engine, "commit")
        def in_commit(_: Any) -> None:
            freeze("COMMIT")

        with pytest.raises(Unavailable, match="answered nothing") as caught:
            receive_instance(node, request(dx_image(), association))
    unknown = word == "COMMIT"
    assert isinstance(caught.value, CommitUnknown) is unknown
    assert len(files_of(node)) == unknown
    if unknown:
        eventually(lambda: count(node, Instance) == 1, 10)
    again = receive_instance(node, request(dx_image(), association))
    assert again is (Outcome.DUPLICATE if unknown else Outcome.STORED)
    assert (count(node, Instance), len(files_of(node))) == (1, 1)


def cut_before(node: Node, server: Postgres, word: str) -> None:
    """Break the connection just before a statement, once, as a network does."""
    left = [word]

    @event.listens_for(node.database.engine, "before_cursor_execute")
    def cut(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if left and statement.startswith(left[0]):
            left.clear()
            pid = cursor.connection.info.backend_pid
            server.execute(f"SELECT pg_terminate_backend({pid})")


def test_a_connection_lost_before_the_commit_leaves_no_file(
    postgresql_node: Node, postgres_server: Postgres
) -> None:
    association = opened(postgresql_node)
    cut_before(postgresql_node, postgres_server, "INSERT INTO studies")
    with pytest.raises(Unavailable) as caught:
        receive_instance(postgresql_node, request(dx_image(), association))
    assert not isinstance(caught.value, CommitUnknown)
    assert nothing_kept(postgresql_node)


def test_a_commit_whose_outcome_is_unknown_keeps_the_file_until_it_is_old(
    postgresql_node: Node, postgres_server: Postgres
) -> None:
    node, left = postgresql_node, [1]
    association = opened(node)

    @event.listens_for(node.database.engine, "commit")
    def cut(connection: Any) -> None:
        if left:
            left.clear()
            pid = connection.connection.dbapi_connection.info.backend_pid
            postgres_server.execute(f"SELECT pg_terminate_backend({pid})")

    with pytest.raises(CommitUnknown):
        receive_instance(node, request(dx_image(), association))
    assert len(files_of(node)) == 1  # the row may stand: its file must
    seen: dict[Path, float] = {}
    assert reconcile(node, seen)["orphans"] == 0
    assert reconcile(node, {path: since - 3700 for path, since in seen.items()})["orphans"] == 1
    assert files_of(node) == []
    assert receive_instance(node, request(dx_image(), association)) is Outcome.STORED


def test_a_commit_that_happened_unseen_makes_the_next_attempt_a_duplicate(
    postgresql_node: Node, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to COMMIT is lost, not the COMMIT."""
    association, dialect = opened(postgresql_node), postgresql_node.database.engine.dialect
    commit = dialect.do_commit

    def lost(connection: Any) -> None:
        monkeypatch.setattr(dialect, "do_commit", commit)
        pid = connection.dbapi_connection.info.backend_pid
        commit(connection)
        postgres_server.execute(f"SELECT pg_terminate_backend({pid})")
        connection.dbapi_connection.execute("SELECT 1")

    monkeypatch.setattr(dialect, "do_commit", lost)
    with pytest.raises(CommitUnknown):
        receive_instance(postgresql_node, request(dx_image(), association))
    outcome = receive_instance(postgresql_node, request(dx_image(), association))
    assert outcome is Outcome.DUPLICATE
    assert (count(postgresql_node, Instance), len(files_of(postgresql_node))) == (1, 1)


# -- associations, peers, expectations -----------------------------------------------------------


def test_an_association_is_a_row_from_its_start_to_its_end(node: Node, clock: Clock) -> None:
    association = opened(node, "CT7")
    row = one(node, Association)
    assert (row.id, row.calling_ae, row.closed_at) == (association, "CT7", None)
    receive_instance(node, request(dx_image(), association))
    clock.pass_(5)
    receive.close_association(node, association, aborted=True)
    row = one(node, Association)
    assert (row.closed_at, row.aborted) == (clock.time, True)
    assert one(node, Study).check_at == clock.time
    clock.pass_(5)
    receive.close_association(node, association, aborted=False)  # what ended stays as it ended
    assert one(node, Association).closed_at == row.closed_at


def test_the_associations_of_a_dead_listener_are_buried_with_it(node: Node, clock: Clock) -> None:
    association = opened(node)
    receive_instance(node, request(dx_image(), association))
    clock.pass_(50)
    bury(node, [node.id])
    row = one(node, Association)
    assert (row.closed_at, row.aborted) == (clock.time, True)
    assert one(node, Study).check_at == clock.time


def test_a_modality_is_answered_where_it_was_entered(sqlite_node: Node) -> None:
    registry.add_modality(sqlite_node, "CT1", ["10.1.2.0/24", "fd00::/8"])
    registry.add_modality(sqlite_node, "CT2", host="ct2.example", port=104)
    assert (peers.modality(sqlite_node, "CT1"), peers.modality(sqlite_node, "CT3")) == (None, None)
    told = peers.modality(sqlite_node, "CT2")
    assert told is not None and (told.host, told.port, told.tls) == ("ct2.example", 104, None)


def test_what_is_told_to_belong_to_a_study_is_kept_with_it(node: Node, clock: Clock) -> None:
    first, second = dx_image(number=1), dx_image(number=2)
    uids = [str(first.SOPInstanceUID), str(second.SOPInstanceUID)]
    receive.expect(node, "storage commitment", None, uids)
    assert count(node, Expectation) == 0  # nobody knows yet of which study
    arrive(node, first)
    clock.pass_(3)
    receive.expect(node, "storage commitment", None, uids)
    receive.expect(node, "MPPS", str(first.StudyInstanceUID), uids)
    rows = all_of(node, Expectation)
    assert [r.source for r in rows] == ["storage commitment", "MPPS"]
    assert {r.study_instance_uid for r in rows} == {str(first.StudyInstanceUID)}
    assert rows[0].sop_instance_uids == uids
    assert one(node, Study).check_at == clock.time


def test_what_has_a_row_and_a_file_is_committed_and_the_row_says_so(node: Node) -> None:
    images = [dx_image(number=n) for n in range(3)]
    arrive(node, *images)
    gone = one(node, Instance, Instance.sop_instance_uid == str(images[1].SOPInstanceUID))
    node.instances.remove(gone.path)
    first, lost, of_another_class = [str(i.SOPInstanceUID) for i in images]
    asked = {first: DX, lost: DX, of_another_class: CT, uid("unknown"): DX}
    assert receive.commit(node, asked) == {first: DX, of_another_class: DX}
    assert receive.commit(node, {}) == {}
    promised = all_of(node, Instance, Instance.committed_at.is_not(None))
    assert [row.sop_instance_uid for row in promised] == [first]


def test_more_may_be_asked_for_than_a_statement_may_name(node: Node) -> None:
    image = dx_image()
    arrive(node, image)
    asked = {f"1.2.{number}": CT for number in range(70_000)} | {str(image.SOPInstanceUID): DX}
    receive.expect(node, "storage commitment", None, list(asked))
    assert one(node, Expectation).study_instance_uid == str(image.StudyInstanceUID)
    assert receive.commit(node, asked) == {str(image.SOPInstanceUID): DX}
