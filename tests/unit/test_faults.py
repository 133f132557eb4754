"""The steps at which tests make the node fail: off unless the environment says so twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import faults

ROOT = Path(faults.__file__).parent.parent
TESTING = {"FAULT_TESTING": "yes"}


@pytest.fixture(autouse=True)
def disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in production, before and after."""
    monkeypatch.setattr(faults, "_armed", None)
    return


def test_nothing_fails_where_nothing_is_asked_for() -> None:
    assert faults.arm({}) is None
    faults.step("synced", "instances")
    assert faults._armed is None


def test_a_fault_outside_of_a_test_is_ignored_aloud() -> None:
    told = faults.arm({"FAULT": "instances/synced:1:raise"})
    assert told is not None
    assert "ignored" in told
    faults.step("synced", "instances")


def test_the_step_fails_at_its_turn_and_at_no_other() -> None:
    assert faults.arm({**TESTING, "FAULT": "instances/synced:2:EIO"}) is None
    faults.step("written", "instances")
    faults.step("synced", "results")
    faults.step("synced", "instances")
    with pytest.raises(OSError, match="Input/output error"):
        faults.step("synced", "instances")
    faults.step("synced", "instances")


def test_an_order_in_a_file_is_carried_out_once(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    faults.arm({**TESTING, "FAULT": f"@{orders}"})
    faults.step("commit", "job")
    orders.write_text("job/commit:raise")
    faults.step("claimed", "job")
    with pytest.raises(RuntimeError):
        faults.step("commit", "job")
    assert not orders.exists()
    faults.step("commit", "job")


@pytest.mark.parametrize("wanted", ["nowhere:1:kill", "job/commit:1:explode", "job/commit"])
def test_a_step_or_action_that_is_misspelt_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"FAULT|unpack"):
        faults.arm({**TESTING, "FAULT": wanted})


def test_every_step_of_the_list_is_in_the_code_and_the_other_way_round() -> None:
    found = set()
    for folder in ("dicom_node", "migrations"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = re.findall(
                r'faults\.step\("(\w+)", ("\w+"|room|folder\.root\.name)\)', path.read_text()
            )
            for name, room in calls:
                rooms = (room.strip('"'),) if room[0] == '"' else ("instances", "results")
                found |= {f"{room}/{name}" for room in rooms}
    assert found == set(faults.STEPS)
