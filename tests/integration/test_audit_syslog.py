"""Shipping to a real TLS receiver, which is killed, mute, or somebody else."""

from __future__ import annotations

import fcntl
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_node.audit.syslog import Shipped, Shipper
from dicom_node.audit.trail import Trail, sequence_of
from dicom_node.errors import ConfigurationError, Unavailable
from tests.audit import Receiver, certificates
from tests.servers import eventually, free_port


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "audit", rotate=20_000)


def fill(trail: Trail, count: int) -> None:
    for number in range(count):
        body = f"\ufeff<AuditMessage n='{number}'>ä\n".replace("\n", " ") + "x" * 500
        trail.append(lambda s, b=body: f'<85>1 - - - - - [meta sequenceId="{s}"] {b}'.encode())


def sequences(receiver: Receiver) -> list[int]:
    return [sequence_of(message) for message in receiver.messages]


def test_all_that_was_recorded_arrives_in_order_byte_for_byte(trail: Trail, keys: Path) -> None:
    fill(trail, 100)
    assert len(trail.files()) > 2
    with Receiver(keys) as receiver:
        shipper = Shipper(trail, receiver.settings())
        assert shipper.waiting() == 100
        assert shipper.ship() == 100
        assert receiver.messages == [record.message for record in trail.read()]
        assert set(receiver.clients) == {"client"}, "we showed our certificate"
        assert shipper.waiting() == 0 and shipper.shipped().at and not shipper.shipped().fault
        assert shipper.ship() == 0
        fill(trail, 3)
        assert Shipper(trail, receiver.settings()).ship() == 3, "another process goes on from there"
        assert sequences(receiver) == list(range(1, 104))


def test_a_receiver_killed_in_a_batch_gets_all_of_it_again(
    trail: Trail, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.audit.syslog._BATCH_BYTES", 5000)
    fill(trail, 60)
    with Receiver(keys, dies_after=25) as dying:
        shipper = Shipper(trail, dying.settings())
        with pytest.raises(Unavailable):
            shipper.ship()
        kept = shipper.shipped().sequence
        assert 0 < kept < 25, "whole batches were confirmed, the last one was not"
        assert shipper.shipped().fault
        with pytest.raises(Unavailable, match="refused"):
            shipper.ship()
        fill(trail, 5)
    with Receiver(keys, port=dying.port) as again:
        assert Shipper(trail, again.settings()).ship() == 65 - kept
        told = sequences(dying) + sequences(again)
    assert set(told) == set(range(1, 66)), "nothing is lost"
    assert sequences(again) == list(range(kept + 1, 66)), "the order is kept"
    assert sequences(dying) == list(range(1, 26))


@pytest.mark.parametrize("default", [0, ssl.OP_IGNORE_UNEXPECTED_EOF], ids=["strict", "lenient"])
def test_without_close_notify_nothing_counts_as_shipped(
    trail: Trail, keys: Path, monkeypatch: pytest.MonkeyPatch, default: int
) -> None:
    """Whatever this Python's default is: the one of Debian is lenient."""
    made = ssl.create_default_context

    def as_there(*given: Any, **more: Any) -> ssl.SSLContext:
        context = made(*given, **more)
        context.options = context.options & ~ssl.OP_IGNORE_UNEXPECTED_EOF | default
        return context

    monkeypatch.setattr("dicom_node.audit.syslog.ssl.create_default_context", as_there)
    fill(trail, 2)
    with Receiver(keys, mute=True) as receiver:
        with pytest.raises(Unavailable):
            Shipper(trail, receiver.settings()).ship()
        assert Shipper(trail, receiver.settings()).waiting() == 2
        trusting = Shipper(trail, receiver.settings(confirm=False))
        assert trusting.ship() == 2 and trusting.waiting() == 0


def test_the_thread_waits_out_an_absence_and_then_catches_up(trail: Trail, keys: Path) -> None:
    fill(trail, 10)
    stop, reports = threading.Event(), []
    receiver = Receiver(keys, port=free_port())
    receiver._listening.close()
    shipper = Shipper(trail, receiver.settings(backoff_max=0.2))
    thread = threading.Thread(target=shipper.run, args=(stop, reports.append, 0.05))
    thread.start()
    try:
        eventually(lambda: len(reports) >= 2, 10, "it has tried twice")
        fill(trail, 10)
        with Receiver(keys, port=receiver.port) as back:
            eventually(lambda: len(back.messages) == 20, 10, "all arrived")
            eventually(lambda: reports[-1] == "", 10, "and it says that all is well")
            fill(trail, 1)
            eventually(lambda: len(back.messages) == 21, 10, "what is new follows")
            assert sequences(back) == list(range(1, 22))
    finally:
        stop.set()
        thread.join(10)
    assert all("refused" in report for report in reports[:-1])


def test_a_receiver_that_takes_connections_and_never_answers_is_given_up(
    trail: Trail, keys: Path
) -> None:
    fill(trail, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, Receiver(keys) as receiver:
        settings = receiver.settings(port=silent.getsockname()[1], timeout=0.3)
        with pytest.raises(Unavailable, match="timed out"):
            Shipper(trail, settings).ship()


def test_only_the_right_receiver_gets_anything_and_only_from_us(
    trail: Trail, keys: Path, tmp_path: Path
) -> None:
    fill(trail, 1)
    strangers = certificates(tmp_path / "strangers")
    with Receiver(strangers) as impostor:
        settings = impostor.settings(ca=str(keys / "ca.pem"))
        with pytest.raises(Unavailable, match="not trusted"):
            Shipper(trail, settings).ship()
        assert impostor.messages == []
    with Receiver(keys) as receiver:
        for wrong in (
            {"certificate": "", "key": ""},
            {
                "certificate": str(strangers / "client.pem"),
                "key": str(strangers / "client.key"),
            },
        ):
            with pytest.raises(Unavailable):
                Shipper(trail, receiver.settings(**wrong)).ship()
        assert receiver.messages == [] and Shipper(trail, receiver.settings()).waiting() == 1
        for bad in ({"ca": "/no/such.pem"}, {"key": str(strangers / "client.key")}):
            with pytest.raises(ConfigurationError, match="certificates"):
                Shipper(trail, receiver.settings(**bad)).ship()


def test_one_process_ships_at_a_time(trail: Trail, keys: Path) -> None:
    fill(trail, 5)
    with Receiver(keys) as receiver, (trail.folder / "shipping").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert Shipper(trail, receiver.settings()).ship() == 0
        assert receiver.messages == []


def test_a_log_that_was_never_written_to_has_nothing_to_ship(tmp_path: Path, keys: Path) -> None:
    with Receiver(keys) as receiver:
        shipper = Shipper(Trail(tmp_path / "none"), receiver.settings())
        assert shipper.ship() == 0 and shipper.shipped() == Shipped() and shipper.waiting() == 0
        no_receiver: Callable[[], int] = Shipper(
            Trail(tmp_path / "none"), receiver.settings(receiver="")
        ).ship
        with pytest.raises(ConfigurationError, match=r"audit\.receiver"):
            no_receiver()
