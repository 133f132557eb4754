from pathlib import Path

import pytest

from dicom_node.destinations.folder import FolderDestination
from dicom_node.errors import ConfigurationError, NotFound, Unavailable
from dicom_node.services import peers, registry
from dicom_node.services.context import Node
from dicom_node.services.send import gather
from dicom_node.settings import Settings
from tests.dicoms import dx_image, save
from tests.nodes import make_node
from tests.pacs import Pacs


@pytest.fixture
def bare(tmp_path: Path) -> Node:
    return make_node(tmp_path / "node")


@pytest.mark.parametrize(
    ("text", "host", "port", "title"),
    [
        ("pacs.example:104/PACS", "pacs.example", 104, "PACS"),
        ("10.0.0.7:11112/MAIN PACS", "10.0.0.7", 11112, "MAIN PACS"),
        ("[::1]:104/A/B", "::1", 104, "A/B"),
    ],
)
def test_an_address_is_host_port_and_title(text: str, host: str, port: int, title: str) -> None:
    peer = peers.at_address(text, Settings(), "CT1")
    assert peer is not None
    assert (peer.host, peer.port, peer.ae_title, peer.calling) == (host, port, title, "CT1")


@pytest.mark.parametrize("text", ["pacs", "pacs:104", "pacs/AE", ":104/AE", "a:b/AE"])
def test_anything_else_is_a_name(text: str) -> None:
    assert peers.at_address(text, Settings()) is None


@pytest.mark.parametrize("text", ["a:0/AE", "a:70000/AE", "a:104/" + "X" * 17, "a:104/A\\B"])
def test_an_impossible_port_or_title_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        peers.at_address(text, Settings())


def test_a_name_is_a_configured_destination(bare: Node, tmp_path: Path) -> None:
    registry.add_destination(bare, "out", "folder", {"path": str(tmp_path / "out")})
    assert peers.named(bare, "out") == FolderDestination(tmp_path / "out")
    with pytest.raises(NotFound, match="nobody"):
        peers.named(bare, "nobody")


def test_our_listener_is_spoken_to_as_a_modality_that_may_send_from_here(bare: Node) -> None:
    assert peers.own_listener(bare).calling == "DICOMNODE"
    registry.add_modality(bare, "FAR", ["10.0.0.0/8"])
    registry.add_modality(bare, "NEAR", ["127.0.0.0/8"])
    assert peers.own_listener(bare).calling == "NEAR"
    assert peers.own_listener(bare, "CT1").calling == "CT1"


def test_a_rejection_is_told_with_what_is_behind_it(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs", calling=["OTHER"]) as pacs:
        peer = peers.at_address(f"127.0.0.1:{pacs.port}/PACS", Settings(), "CT1")
        assert peer is not None
        with pytest.raises(Unavailable, match="does not know the calling AE title CT1"):
            peers.echo(peer)
        wrong = peers.at_address(f"127.0.0.1:{pacs.port}/WRONG", Settings(), "OTHER")
        assert wrong is not None
        with pytest.raises(Unavailable, match="is not called WRONG"):
            peers.echo(wrong)
        right = peers.at_address(f"127.0.0.1:{pacs.port}/PACS", Settings(), "OTHER")
        assert right is not None and peers.echo(right) > 0


def test_folders_are_searched_and_what_is_no_instance_is_left_out(tmp_path: Path) -> None:
    one = save(dx_image(), tmp_path / "a" / "deep" / "1")
    other = save(dx_image(number=2), tmp_path / "2.dcm")
    text = tmp_path / "a" / "readme.txt"
    text.write_text("not DICOM")
    items, skipped = gather([tmp_path / "a", other])
    assert [item.path for item in items] == [one, other]
    assert skipped == [text]
