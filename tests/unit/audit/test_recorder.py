from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.audit import messages, who
from dicom_node.audit.recorder import Recorder
from dicom_node.audit.throttle import Throttle
from dicom_node.settings import Settings
from tests.audit import audited, event

AT = datetime(2026, 3, 1, tzinfo=UTC)


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def recorder(folder: Path, clock: Seconds | None = None, **audit: object) -> Recorder:
    settings = Settings(storage={"folder": folder}, node_salt="salt", audit=audit)
    made = Recorder(settings, "test", clock or Seconds())
    made.trail._patience = 0.05  # of a test
    return made


def start(made: Recorder) -> messages.Message:
    return messages.activity(True, AT, made.process)


def test_a_message_becomes_a_valid_record_by_rfc_5424(tmp_path: Path) -> None:
    made = recorder(tmp_path, source_id="NODE-1", site="Ward")
    assert made.record(start(made)) == ""
    (record,) = made.trail.read()
    header = record.message.partition(b"\xef\xbb\xbf")[0].decode()
    pri, at, host, name, pid, kind, *structured = header.split()
    assert pri == "<85>1" and datetime.fromisoformat(at).tzinfo is not None
    assert (name, kind) == ("dicom-node", "DICOM+RFC3881")
    assert f"{pid}@{host}" == made.process.user
    assert structured == ["[meta", 'sequenceId="1"]']
    (root,) = audited(made)
    source = root.find("AuditSourceIdentification")
    assert dict(source.attrib) == {"AuditSourceID": "NODE-1", "AuditEnterpriseSiteID": "Ward"}


def test_what_the_log_does_not_take_waits_and_goes_in_order_with_the_next(tmp_path: Path) -> None:
    clock = Seconds()
    made = recorder(tmp_path, clock)
    made.record(start(made))
    with (made.trail.folder / "head").open("rb") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        assert "another process" in made.record(start(made))
        clock.now = 1
        assert made.record(start(made)), "the log is left alone for a while"
    assert made.record(start(made)), "as yet"
    clock.now = 10
    stop = messages.activity(False, AT, made.process)
    assert made.record(stop) == ""
    told = [event(root) for root in audited(made)]
    assert told == [
        "Application Activity, Application Start E 0",
        "Security Alert, Audit Recording Stopped E 8",
        *["Application Activity, Application Start E 0"] * 3,
        "Application Activity, Application Stop E 0",
    ]
    assert "4 messages were written late, 0 are lost" in audited(made)[1][0][2].text
    assert made.record(stop) == "" and len(audited(made)) == 7, "and that is told once"


def test_what_is_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.audit.recorder.MOST", 3)
    clock = Seconds()
    made = recorder(tmp_path / "file" / "below", clock)
    (tmp_path / "file").write_text("no folder")
    for _ in range(5):
        assert "Not a directory" in made.record(start(made))
    (tmp_path / "file").unlink()
    assert made.flush() == ""
    told = audited(made)
    assert event(told[0]) == "Security Alert, Audit Recording Stopped E 12"
    assert "3 messages were written late, 2 are lost" in told[0][0][2].text
    assert len(told) == 4


def test_a_trail_that_is_switched_off_writes_nothing(tmp_path: Path) -> None:
    made = recorder(tmp_path, enabled=False)
    assert made.record(start(made)) == ""
    assert not made.trail.folder.exists()


def test_a_hash_needs_a_salt(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="node_salt"):
        Settings(storage={"folder": tmp_path}, audit={"patient_id": "hashed"})


def test_the_same_is_told_once_and_then_counted() -> None:
    clock = Seconds()
    throttle = Throttle(60, clock)
    assert throttle.passes(("a",)) == 0 and throttle.passes(("b",)) == 0
    assert throttle.passes(("a",)) is None and throttle.passes(("a",)) is None
    clock.now = 61
    assert throttle.passes(("a",)) == 2
    assert throttle.passes(("b",)) == 0
    assert throttle.passes(("b",)) is None
    assert throttle.left() == {("b",): 1} and throttle.left() == {}


def test_peers_that_are_many_cost_a_bounded_memory() -> None:
    throttle = Throttle(60, Seconds())
    for number in range(5000):
        throttle.passes((str(number),))
    assert len(throttle._kinds) <= 1000


def test_the_person_is_the_login_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "forged")
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert "forged" not in who.person().user
    monkeypatch.setattr(who, "_logged_in", lambda: "")
    monkeypatch.setenv("SUDO_USER", "ada")
    told = who.person()
    assert told.user.startswith("ada@") and told.account and told.account != "ada"
    monkeypatch.setattr(who, "_logged_in", lambda: "grace")
    assert who.person().user.startswith("grace@"), "what the kernel knows wins"


def test_a_destination_is_told_without_its_password() -> None:
    url = {"url": "https://user:secret@pacs.example:8443/dicom-web?token=x"}
    told = who.place("web", url)
    assert told.address == "https://pacs.example:8443/dicom-web"
    assert who.place("out", {"path": "/srv/out"}).address == "file:///srv/out"
    assert who.place("p", {"ae_title": "PACS", "host": "h", "port": 1}).ae_title == "PACS"
