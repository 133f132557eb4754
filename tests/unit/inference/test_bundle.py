"""Bundles are hostile: what is altered, hidden, outside or unlisted is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load

from inference import bundle as bundles
from inference.bundle import load_weights, open_bundle, pack, read_file, write_bundle
from inference.errors import BundleError
from tests.bundles import make_tiny_bundle


@pytest.fixture
def made(tmp_path):
    return make_tiny_bundle(tmp_path / "tiny")


def test_a_whole_bundle_opens_under_its_manifests_digest(made):
    opened = open_bundle(made.path)
    manifest = (made.path / "manifest.json").read_bytes()
    assert opened == made
    assert opened.digest == hashlib.sha256(manifest).hexdigest()


def test_the_weights_are_those_in_the_file(made):
    stored = load((made.path / "weights.safetensors").read_bytes())
    loaded = load_weights(made)
    assert loaded.keys() == stored.keys()
    assert all(bool((loaded[name] == stored[name]).all()) for name in stored)


@pytest.mark.parametrize("name", ["weights.safetensors", "card.md", "evaluation.json"])
def test_one_altered_byte_is_found_and_its_file_named(made, name):
    path = made.path / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=name):
        open_bundle(made.path)


def test_weights_altered_after_opening_are_not_loaded(made):
    (made.path / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load_weights(made)


def test_a_missing_file_is_named(made):
    (made.path / "card.md").unlink()
    with pytest.raises(BundleError, match=r"card\.md.*missing"):
        open_bundle(made.path)


def test_an_unlisted_file_is_refused(made):
    (made.path / "extra.py").write_text("print()")
    with pytest.raises(BundleError, match=r"extra\.py.*not listed"):
        open_bundle(made.path)


def test_a_link_is_refused_even_to_the_right_bytes(made, tmp_path):
    card = made.path / "card.md"
    elsewhere = tmp_path / "card.md"
    card.rename(elsewhere)
    card.symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"card\.md"):
        open_bundle(made.path)


def test_a_pipe_is_refused_rather_than_read_for_ever(made):
    os.mkfifo(made.path / "pipe")
    with pytest.raises(BundleError, match="pipe"):
        open_bundle(made.path)


def test_an_unknown_key_of_the_manifest_is_refused(made):
    path = made.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["treshold"] = 0.4
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="treshold"):
        open_bundle(made.path)


def test_a_file_that_is_not_listed_cannot_be_read(made):
    with pytest.raises(BundleError, match="not listed"):
        read_file(made, "../secret")


def test_a_bundle_without_manifest_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path)


def test_what_is_no_safetensors_is_refused_although_its_digest_is_right(made, tmp_path):
    manifest = made.manifest.model_dump(mode="json", exclude={"files"})
    files = {name: read_file(made, name) for name in made.manifest.files}
    files["weights.safetensors"] = b"\x80\x04K\x01."
    other = write_bundle(tmp_path / "other", manifest, files)
    with pytest.raises(BundleError, match=r"weights\.safetensors: no safetensors"):
        load_weights(other)


def test_a_bundle_packs_to_the_same_bytes_and_comes_back_whole(made, tmp_path):
    pack(made, tmp_path / "one.zip")
    pack(made, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    opened = open_bundle(tmp_path / "one.zip", tmp_path / "unpacked")
    assert opened.digest == made.digest


def test_a_zip_that_holds_the_bundles_folder_opens_too(made, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in made.path.iterdir():
            archive.write(path, f"tiny/{path.name}")
    assert open_bundle(tmp_path / "in.zip", tmp_path / "unpacked").digest == made.digest


def test_a_zip_needs_somewhere_empty_to_go(made, tmp_path):
    pack(made, tmp_path / "b.zip")
    with pytest.raises(BundleError, match="unpacked"):
        open_bundle(tmp_path / "b.zip")
    with pytest.raises(BundleError, match="not empty"):
        open_bundle(tmp_path / "b.zip", made.path)


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/outside", "a\\..\\outside", "C:outside"]
)
def test_no_entry_of_a_zip_leaves_its_folder(made, tmp_path, name):
    pack(made, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(BundleError, match="outside"):
        open_bundle(tmp_path / "b.zip", tmp_path / "inside" / "unpacked")
    assert not list(tmp_path.rglob("*outside"))
    assert not Path("/outside").exists()


def test_a_link_in_a_zip_is_refused(made, tmp_path):
    pack(made, tmp_path / "b.zip")
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match="link"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_device_in_a_zip_is_refused(made, tmp_path, kind):
    pack(made, tmp_path / "b.zip")
    entry = zipfile.ZipInfo("device")
    entry.external_attr = (kind | 0o666) << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr(entry, b"")
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_in_a_zip_is_refused(made, tmp_path):
    """Which of the two another program sees is anybody's guess."""
    pack(made, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr("card.md", b"another card")
    with pytest.raises(BundleError, match="no zip that we open"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_could_unpack_without_measure_is_refused(made, tmp_path, method):
    """Python unpacks these as a whole: 64 MiB of zeros are some hundred bytes of bzip2."""
    pack(made, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a", method) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    with pytest.raises(BundleError, match="another way than deflate"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


def test_a_zip_with_damaged_content_is_refused(made, tmp_path):
    pack(made, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        entry = archive.getinfo("weights.safetensors")
    content = bytearray((tmp_path / "b.zip").read_bytes())
    start = entry.header_offset + 30 + len(entry.filename)
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(BundleError, match="no zip that we open"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


def test_a_folder_cannot_be_had_through_a_file_in_a_zip(made, tmp_path):
    pack(made, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr("card.md/inside", b"x")
    with pytest.raises(BundleError, match="no zip that we open"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


def test_a_signature_is_no_listed_file_and_travels_with_the_bundle(made, tmp_path):
    assert (made.path / "manifest.sig").is_file()
    pack(made, tmp_path / "b.zip")
    opened = open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")
    assert bundles.read_signature(opened) == bundles.read_signature(made)
    (made.path / "manifest.sig").unlink()
    assert bundles.read_signature(open_bundle(made.path)) is None


@pytest.mark.parametrize("how", ["link", "pipe", "large"])
def test_a_signature_that_is_no_small_plain_file_is_refused(made, tmp_path, how):
    path = made.path / "manifest.sig"
    content = path.read_bytes()
    path.unlink()
    if how == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content + b" " * bundles.MAX_SIGNATURE_BYTES)
    with pytest.raises(BundleError, match=r"manifest\.sig"):
        bundles.read_signature(made)


def test_a_manifest_altered_after_opening_is_not_what_a_signature_is_held_against(made):
    (made.path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="altered since"):
        bundles.read_manifest(made)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(made):
    (made.path / "weights.safetensors").unlink()
    os.mkfifo(made.path / "weights.safetensors")
    with pytest.raises(BundleError, match="neither a file nor a folder"):
        load_weights(made)


def test_a_zip_that_grows_beyond_the_limit_is_stopped(made, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_BYTES", 1 << 20)
    pack(made, tmp_path / "b.zip")
    with pytest.raises(BundleError, match="over 1048576 bytes"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")
    assert sum(p.stat().st_size for p in (tmp_path / "unpacked").rglob("*")) <= 1 << 20


def test_a_zip_of_too_many_files_is_refused_before_any_is_written(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for i in range(100):
            archive.writestr(f"{i}", b"")
    with pytest.raises(BundleError, match="files"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())


def test_what_is_no_zip_is_refused(tmp_path):
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(BundleError, match=r"b\.zip"):
        open_bundle(tmp_path / "b.zip", tmp_path / "unpacked")


def test_opening_a_bundle_loads_no_torch(made):
    code = (
        "import sys; from pathlib import Path; from inference.bundle import open_bundle;"
        f"open_bundle(Path({str(made.path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
