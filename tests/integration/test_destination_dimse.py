"""The storage SCU against a real, scripted PACS."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom.dsutils import split_dataset
from pynetdicom.sop_class import _STORAGE_CLASSES

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Destination, Item, Refused, Sent
from dicom_node.errors import DeliveryFailed, Retry
from tests import dicoms
from tests.pacs import AE_TITLE, Do, Pacs

Fate = Sent | DeliveryFailed


def item(folder: Path, ds: Dataset) -> Item:
    path = dicoms.save(ds, folder / "out" / f"{ds.SOPInstanceUID}.dcm")
    return Item(path, ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID)


def items(folder: Path, number: int) -> list[Item]:
    return [item(folder, ds) for ds in dicoms.ct_series(number)]


def implicit(ds: Dataset) -> Dataset:
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return ds


def digest(sent: Item) -> str:
    _, start = split_dataset(sent.path)
    return hashlib.sha256(sent.path.read_bytes()[start:]).hexdigest()


def destination(port: int, **options: object) -> DimseDestination:
    settings = {"ae_title": AE_TITLE, "host": "127.0.0.1", "calling": "NODE", "timeout": 5.0}
    return DimseDestination(port=port, **{**settings, **options})  # type: ignore[arg-type] # by name


def send(to: Destination, outgoing: list[Item]) -> list[Fate]:
    """The fate of each item; each is told once."""
    fates: dict[str, Fate] = {}

    def note(sent: Item, fate: Fate) -> None:
        assert sent.sop_instance_uid not in fates
        fates[sent.sop_instance_uid] = fate

    to.send(outgoing, note)
    return [fates[sent.sop_instance_uid] for sent in outgoing]


def retries(fates: list[Fate]) -> list[Retry | None]:
    return [fate.retry if isinstance(fate, DeliveryFailed) else None for fate in fates]


@contextmanager
def pacs_at(folder: Path, **options: object) -> Iterator[Pacs]:
    with Pacs(folder / "pacs", **options) as pacs:  # type: ignore[arg-type] # passed on by name
        yield pacs


def test_each_file_arrives_as_it_lies_on_disk_on_one_association(tmp_path: Path) -> None:
    outgoing = items(tmp_path, 3)
    outgoing.append(item(tmp_path, implicit(dicoms.dx_image())))
    with pacs_at(tmp_path) as pacs:
        for _ in range(2):  # a re-send sends the same bytes
            fates = send(destination(pacs.port), outgoing)
            assert fates == [Sent(0x0000, i.transfer_syntax) for i in outgoing]
        assert pacs.associations == 2
    assert [r.sha256 for r in pacs.received] == [digest(i) for i in outgoing] * 2
    assert {r.calling for r in pacs.received} == {"NODE"}


def test_a_destination_that_takes_only_implicit_gets_it_and_the_record_says_so(
    tmp_path: Path,
) -> None:
    outgoing = items(tmp_path, 1)
    with pacs_at(tmp_path, syntaxes=[ImplicitVRLittleEndian]) as pacs:
        fates = send(destination(pacs.port), outgoing)
    assert fates == [Sent(0x0000, ImplicitVRLittleEndian)]
    assert outgoing[0].transfer_syntax == ExplicitVRLittleEndian
    (received,) = pacs.received
    assert received.path
    assert dcmread(received.path) == dcmread(outgoing[0].path)


def test_what_is_not_negotiable_fails_alone_and_for_good(tmp_path: Path) -> None:
    compressed = dicoms.ct_slice(number=9)
    compressed.compress(RLELossless)
    outgoing = [item(tmp_path, compressed), *items(tmp_path, 1)]
    uncompressed = [ExplicitVRLittleEndian]
    with pacs_at(tmp_path, syntaxes=uncompressed) as pacs:
        refused, taken = send(destination(pacs.port), outgoing)
        assert isinstance(refused, DeliveryFailed)
        assert (refused.retry, refused.status) == (Retry.NEVER, 0x0122)
        assert isinstance(taken, Sent)
        assert retries(send(destination(pacs.port), outgoing[:1])) == [Retry.NEVER]
    with pacs_at(tmp_path, classes=[dicoms.MR]) as pacs:
        assert retries(send(destination(pacs.port), outgoing)) == [Retry.NEVER, Retry.NEVER]


def test_each_status_means_what_it_should(tmp_path: Path) -> None:
    statuses = [0xA700, 0xA900, 0x0122, 0xC123, 0xB000, 0x0999, 0x0000]
    outgoing = items(tmp_path, len(statuses))
    with pacs_at(tmp_path, answers=statuses, comment="Doe^John is unknown") as pacs:
        fates = send(destination(pacs.port), outgoing)
        assert pacs.associations == 1
    later, never = Retry.LATER, Retry.NEVER
    assert retries(fates) == [later, never, never, never, None, later, None]
    assert [fate.status for fate in fates] == statuses
    refused, warned = fates[0], fates[4]
    assert isinstance(refused, Refused)
    assert isinstance(warned, Sent)
    assert refused.comment == warned.comment == "Doe^John is unknown", "for whoever sends by hand"
    assert "Doe" not in f"{refused} {refused!r} {refused.reason} {warned!r}", "these are logged"


def test_a_result_is_told_when_its_response_arrives(tmp_path: Path) -> None:
    outgoing, first = items(tmp_path, 2), threading.Event()
    with pacs_at(tmp_path, answers=[0x0000, Do.HANG]) as pacs:
        thread = threading.Thread(
            target=destination(pacs.port).send, args=(outgoing, lambda *_: first.set())
        )
        thread.start()
        assert first.wait(3)
        assert thread.is_alive()
        pacs.release()
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("fault", [Do.ABORT, Do.DROP, Do.NONSENSE])
def test_a_lost_association_leaves_the_rest_for_later(tmp_path: Path, fault: Do) -> None:
    outgoing = items(tmp_path, 3)
    with pacs_at(tmp_path, answers=[0x0000, fault]) as pacs:
        started = time.monotonic()
        fates = send(destination(pacs.port), outgoing)
    assert retries(fates) == [None, Retry.LATER, Retry.LATER]
    assert time.monotonic() - started < 3


def test_a_pacs_that_does_not_answer_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    with pacs_at(tmp_path, answers=[Do.HANG]) as pacs:
        started = time.monotonic()
        fates = send(destination(pacs.port, timeout=0.5), items(tmp_path, 2))
        assert retries(fates) == [Retry.LATER, Retry.LATER]
        assert 0.5 <= time.monotonic() - started < 3


def large(folder: Path) -> list[Item]:
    """More than the sockets' buffers hold."""
    return [item(folder, dicoms.ct_slice(np.zeros((4096, 4096), np.int16)))]


def test_a_pacs_that_stops_reading_is_given_up_too(tmp_path: Path) -> None:
    with pacs_at(tmp_path) as pacs:
        pacs.stop_reading()
        started = time.monotonic()
        fates = send(destination(pacs.port, timeout=0.5), large(tmp_path))
        assert retries(fates) == [Retry.LATER]
        assert time.monotonic() - started < 5


def test_a_slow_transfer_that_goes_on_is_not_given_up(tmp_path: Path) -> None:
    with pacs_at(tmp_path) as pacs:

        def stutter() -> None:
            while not pacs.received:
                pacs.stop_reading()
                time.sleep(0.3)
                pacs.resume()
                time.sleep(0.02)

        thread = threading.Thread(target=stutter)
        thread.start()
        started = time.monotonic()
        try:
            (fate,) = send(destination(pacs.port, timeout=1.5), large(tmp_path))
        finally:
            pacs.received.append(None)  # type: ignore[arg-type] # ends the stutter
            thread.join()
        assert isinstance(fate, Sent)
        assert time.monotonic() - started > 1.5


def test_a_rejection_is_told_with_its_reason(tmp_path: Path) -> None:
    with pacs_at(tmp_path, ae_title="OTHER") as pacs:
        (fate,) = send(destination(pacs.port), items(tmp_path, 1))
    assert isinstance(fate, DeliveryFailed)
    assert (fate.retry, fate.reason) == (Retry.LATER, "association rejected (1,1,7)")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_where_nobody_listens_all_items_wait(tmp_path: Path, host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        to = destination(free.getsockname()[1], host=host)
        assert retries(send(to, items(tmp_path, 2))) == [Retry.LATER, Retry.LATER]
        assert not to.echo().reachable


def test_a_peer_that_accepts_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        to = destination(silent.getsockname()[1], timeout=0.5)
        assert retries(send(to, items(tmp_path, 1))) == [Retry.LATER]
        assert time.monotonic() - started < 3


def test_a_lost_file_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    outgoing = items(tmp_path, 2)
    outgoing[0].path.unlink()
    with pacs_at(tmp_path) as pacs:
        assert retries(send(destination(pacs.port), outgoing)) == [Retry.LATER, None]


def test_more_classes_than_one_association_can_carry_take_several(tmp_path: Path) -> None:
    outgoing = []
    for number, sop_class in enumerate(sorted(_STORAGE_CLASSES.values())[:80]):
        ds = dicoms.ct_slice(number=number, SOPClassUID=sop_class)
        ds.file_meta.MediaStorageSOPClassUID = UID(sop_class)
        outgoing.append(item(tmp_path, ds))
    with pacs_at(tmp_path) as pacs:
        assert retries(send(destination(pacs.port), outgoing)) == [None] * 80
        assert pacs.associations == 2


def test_echo_says_whether_the_pacs_answers(tmp_path: Path) -> None:
    with pacs_at(tmp_path) as pacs:
        result = destination(pacs.port).echo()
        assert result.reachable
        assert result.seconds < 1
        wrong = destination(pacs.port, ae_title="WRONG").echo()
        assert (wrong.reachable, wrong.detail) == (False, "association rejected (1,1,7)")
