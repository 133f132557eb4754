from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.destinations.folder import FolderDestination
from dicom_node.destinations.types import Item, Sent
from dicom_node.errors import DeliveryFailed, Retry

Told = list[tuple[Item, Sent | DeliveryFailed]]


def item(folder: Path, uid: str, content: bytes = b"content") -> Item:
    path = folder / "source"
    path.write_bytes(content)
    return Item(path, "1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1")


def send(to: FolderDestination, *outgoing: Item) -> Told:
    told: Told = []
    to.send(outgoing, lambda sent, fate: told.append((sent, fate)))
    return told


def test_a_file_arrives_under_its_uid_and_nothing_else_is_left(tmp_path: Path) -> None:
    outgoing, folder = item(tmp_path, "1.2.3"), tmp_path / "to" / "there"
    for _ in range(2):
        assert send(FolderDestination(folder), outgoing) == [
            (outgoing, Sent(0, outgoing.transfer_syntax))
        ]
    assert [p.name for p in folder.iterdir()] == ["1.2.3.dcm"]
    assert (folder / "1.2.3.dcm").read_bytes() == b"content"


@pytest.mark.parametrize("uid", ["../evil", "..", "", "1/2"])
def test_a_uid_never_leads_out_of_the_folder(tmp_path: Path, uid: str) -> None:
    folder = tmp_path / "to"
    ((_, fate),) = send(FolderDestination(folder), item(tmp_path, uid))
    assert isinstance(fate, DeliveryFailed)
    assert fate.retry is Retry.NEVER
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to_is_tried_later(tmp_path: Path) -> None:
    to = FolderDestination(tmp_path / "source" / "below-a-file")
    ((_, fate),) = send(to, item(tmp_path, "1.2.3"))
    assert isinstance(fate, DeliveryFailed)
    assert fate.retry is Retry.LATER
    assert not to.echo().reachable


def test_a_lost_source_leaves_no_half_file(tmp_path: Path) -> None:
    outgoing, folder = item(tmp_path, "1.2.3"), tmp_path / "to"
    outgoing.path.unlink()
    ((_, fate),) = send(FolderDestination(folder), outgoing)
    assert isinstance(fate, DeliveryFailed)
    assert list(folder.iterdir()) == []


def test_echo_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    assert FolderDestination(tmp_path / "new").echo().reachable
    assert list((tmp_path / "new").iterdir()) == []
