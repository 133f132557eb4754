from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dicom_node.errors import NotFound, OutOfSpace, Unavailable
from dicom_node.store import files
from dicom_node.store.files import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "instances", "owner")


def everything(folder: Folder) -> list[Path]:
    return sorted(path for path in folder.root.rglob("*") if path.is_file())


def test_a_file_holds_head_and_body_and_its_digest_is_the_bodys(folder: Folder) -> None:
    stored = folder.write(".dcm", b"head", b"body")
    assert folder.path(stored.name).read_bytes() == b"headbody"
    assert stored.sha256 == sha256(b"body").hexdigest()
    assert stored.size == 8
    assert list(folder.names()) == [stored.name]
    assert everything(folder) == [folder.path(stored.name)]


def test_a_body_may_come_in_pieces(folder: Folder) -> None:
    stored = folder.write("", b"", iter([b"a", b"b", b"c"]))
    assert folder.path(stored.name).read_bytes() == b"abc"
    assert (stored.sha256, stored.size) == (sha256(b"abc").hexdigest(), 3)


def test_names_are_drawn_here_and_spread_over_directories(folder: Folder) -> None:
    names = {folder.write(".dcm", b"", b"x").name for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch(r"(..)/\1[0-9a-f]{30}\.dcm", name) for name in names)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "ab/../../x"])
def test_a_name_that_leads_out_of_the_folder_is_not_found(folder: Folder, name: str) -> None:
    with pytest.raises(NotFound):
        folder.path(name)


# -- durability --------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk, in order: the real calls, noted."""
    noted: list[str] = []
    sync, rename, mkdir = os.fsync, Path.rename, Path.mkdir

    def noting_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        noted.append(f"sync {'temporary' if path.parent.name == 'incoming' else path.name}")
        sync(descriptor)

    def noting_rename(self: Path, target: Path) -> Path:
        noted.append("rename")
        return rename(self, target)

    def noting_mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        existed = self.is_dir()
        mkdir(self, *args, **kwargs)
        if not existed:
            noted.append(f"make {self.name}")

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    monkeypatch.setattr(Path, "mkdir", noting_mkdir)
    return noted


def test_bytes_then_name_then_the_directory_that_holds_it(folder: Folder, steps: list[str]) -> None:
    name = folder.write(".dcm", b"", b"x").name
    assert steps == ["sync temporary", "rename", f"sync {name[:2]}"]


def test_the_directories_are_on_disk_before_the_first_file(
    tmp_path: Path, steps: list[str]
) -> None:
    Folder(tmp_path / "data" / "instances", "owner")
    assert [s for s in steps if s.startswith("make")][-256:] == [
        f"make {n:02x}" for n in range(256)
    ]
    assert steps[-2:] == ["sync instances", "sync data"]


def test_directories_that_another_process_has_just_made_are_synced_as_well(
    tmp_path: Path, steps: list[str]
) -> None:
    """They may stand in memory only: whoever renames into them has to see them on disk."""
    Folder(tmp_path / "data" / "instances", "one")
    steps.clear()
    Folder(tmp_path / "data" / "instances", "other")
    assert steps == ["sync instances", "sync data"]


def fail_at(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("place", ["open", "fsync", "rename", "directory"])
def test_a_failure_of_the_disk_leaves_nothing_and_says_what_it_is(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    where: dict[str, tuple[Any, str]] = {
        "open": (Path, "open"),
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),
        "directory": (files, "_sync_directory"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*where[place], fail_at(number))
        with pytest.raises(Unavailable) as caught:
            folder.write(".dcm", b"", b"x")
    assert isinstance(caught.value, OutOfSpace) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert everything(folder) == []
    folder.write(".dcm", b"", b"x")  # and the next one goes through


def test_a_body_that_breaks_off_leaves_nothing(folder: Folder) -> None:
    def breaking() -> Any:
        yield b"a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(".dcm", b"", breaking())
    assert everything(folder) == []


def test_what_would_break_into_the_reserve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpace, match="MiB free"):
        Folder(tmp_path / "a", "owner", reserve=1 << 60).write("", b"", b"x")
    Folder(tmp_path / "a", "owner", reserve=1).write("", b"", b"x")


def test_a_disk_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a", "owner", reserve=1)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Unavailable):
        folder.write("", b"", b"x")


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="Not a directory"):
        Folder(tmp_path / "file" / "a", "owner")


# -- sweeping ----------------------------------------------------------------------------------


def test_a_sweep_takes_the_temporary_files_of_the_dead_only(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a", "me")
    kept = folder.write("", b"", b"x").name
    for name in ("me.1", "other.1", "dead.1", "dead.2"):
        (tmp_path / "a" / "incoming" / name).write_bytes(b"part")
    assert folder.sweep({"me", "other"}) == 2
    assert sorted(p.name for p in (tmp_path / "a" / "incoming").iterdir()) == ["me.1", "other.1"]
    assert folder.path(kept).is_file()


def test_removing_twice_is_no_fault(folder: Folder) -> None:
    name = folder.write("", b"", b"x").name
    folder.remove(name)
    folder.remove(name)
    assert list(folder.names()) == []
