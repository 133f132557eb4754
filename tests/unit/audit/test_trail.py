from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.audit.trail import NOTHING, Trail
from dicom_node.errors import OutOfSpace, Unavailable

WRITER = """
import sys
from pathlib import Path
from dicom_node.audit.trail import Trail
trail = Trail(Path(sys.argv[1]), rotate=4000, patience=20)
for number in range(int(sys.argv[3])):
    trail.append(lambda s: f'[meta sequenceId="{s}"] {sys.argv[2]} {number}'.encode())
"""


def text(words: str = "x") -> Callable[[int], bytes]:
    return lambda sequence: f'<85>1 [meta sequenceId="{sequence}"] {words}'.encode()


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "audit", rotate=2000)


def fill(trail: Trail, count: int) -> None:
    for number in range(count):
        trail.append(text(f"record {number}"))


def test_records_come_back_in_order_chained_to_the_one_before(trail: Trail) -> None:
    fill(trail, 3)
    records = list(trail.read())
    assert [r.sequence for r in records] == [1, 2, 3]
    assert [r.previous for r in records] == [NOTHING, records[0].sha256, records[1].sha256]
    assert records[2].message.endswith(b"record 2")
    assert trail.head().sequence == 3
    assert trail.verify().faults == ()


def test_the_log_is_for_the_node_alone(trail: Trail) -> None:
    before = os.umask(0)
    try:
        fill(trail, 1)
    finally:
        os.umask(before)
    assert trail.folder.stat().st_mode & 0o777 == 0o700
    for path in trail.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_full_file_is_followed_by_another_and_nothing_is_lost(trail: Trail) -> None:
    fill(trail, 100)
    files = trail.files()
    assert len(files) > 3 and all(path.stat().st_size < 2200 for path in files)
    assert [r.sequence for r in trail.read()] == list(range(1, 101))
    assert trail.verify().faults == ()
    later = list(trail.read(files[2].name))
    assert later[0].sequence == int(files[2].stem)
    assert next(trail.read(later[0].file, later[0].end)).sequence == later[0].sequence + 1


def altered(data: bytes) -> bytes:
    return data.replace(b"record 1\n", b"record 7\n")


def removed(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:1] + lines[2:])


def put_in(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], *lines[1:]])


def cut_short(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


def last_altered(data: bytes) -> bytes:
    return data.replace(b"record 4\n", b"record 5\n")


@pytest.mark.parametrize("harm", [altered, removed, put_in, cut_short, last_altered])
def test_whatever_is_done_to_a_line_is_seen(trail: Trail, harm: Callable[[bytes], bytes]) -> None:
    fill(trail, 5)
    (file,) = trail.files()
    data = file.read_bytes()
    assert harm(data) != data
    file.write_bytes(harm(data))
    assert trail.verify().faults
    trail.append(text("later"))
    assert trail.verify().faults, "and is still seen when the log has gone on"
    assert trail.head().sequence == 6


def test_a_removed_file_is_seen_but_the_oldest_may_be_archived(trail: Trail) -> None:
    fill(trail, 100)
    files = trail.files()
    files[0].unlink()
    verdict = trail.verify()
    assert verdict.faults == () and verdict.first == int(files[1].stem)
    files[2].unlink()
    assert trail.verify().faults
    files[-1].unlink()
    trail.append(text())
    assert trail.head().sequence == 101 and trail.verify().faults


def test_what_a_crash_left_half_written_was_never_a_record(trail: Trail) -> None:
    fill(trail, 2)
    with trail.files()[0].open("ab") as file:
        file.write(b"0123 <85>1 [meta seq")
    assert [r.sequence for r in trail.read()] == [1, 2]
    assert trail.append(text()) == 3
    assert trail.verify().faults == ()


@pytest.mark.parametrize("lost", ["head behind", "no head", "torn head", "empty new file"])
def test_a_crash_between_record_and_head_loses_nothing(trail: Trail, lost: str) -> None:
    fill(trail, 20)
    before = (trail.folder / "head").read_bytes()
    if lost == "head behind":
        trail.append(text("21"))
        (trail.folder / "head").write_bytes(before)
    elif lost == "no head":
        (trail.folder / "head").unlink()
    elif lost == "torn head":
        (trail.folder / "head").write_bytes(before[:20])
    else:
        (trail.folder / f"{21:020}.log").touch()
    last = max(r.sequence for r in trail.read())
    assert trail.append(text()) == last + 1
    assert trail.verify().faults == ()
    assert trail.verify().last == last + 1


def test_several_processes_and_threads_write_one_chain(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    command = [sys.executable, "-c", WRITER, str(folder)]
    writers = [subprocess.Popen([*command, f"writer{n}", "150"]) for n in range(3)]
    trail = Trail(folder, rotate=4000, patience=20)
    threads = [threading.Thread(target=fill, args=(trail, 50)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    records = list(trail.read())
    assert [r.sequence for r in records] == list(range(1, 551))
    assert trail.verify().faults == ()
    for name in ("writer0", "writer1", "writer2"):
        own = [int(m.split()[-1]) for m in (r.message for r in records) if name.encode() in m]
        assert own == list(range(150)), "each writer's records keep their order"


def test_a_frozen_writer_holds_others_up_for_their_patience_only(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "audit", patience=0.1)
    fill(trail, 1)
    with (trail.folder / "head").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process"):
            trail.append(text())
    assert trail.append(text()) == 2


def test_a_full_disk_keeps_nothing_of_a_record(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(trail, 2)
    write, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", full)  # a disk that takes the first half of a line
    with pytest.raises(OutOfSpace):
        trail.append(text())
    monkeypatch.undo()
    assert trail.files()[0].read_bytes().count(b"\n") == 2
    assert trail.files()[0].read_bytes().endswith(b"\n")
    assert trail.append(text()) == 3
    assert trail.verify().faults == ()


def test_only_what_must_be_is_on_disk_before_it_goes_on(
    trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(trail, 1)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    trail.append(text())
    assert not synced
    trail.append(text(), durable=True)
    assert len(synced) == 1
    trail.sync()
    assert len(synced) == 2
