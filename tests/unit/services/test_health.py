import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from dicom_node.services import registry
from dicom_node.services.context import Node
from dicom_node.services.health import Check, Level, examine, status
from dicom_node.services.models import bundle_folder
from dicom_node.settings import CONFIG_VARIABLE, Settings
from dicom_node.worker.engines import WarmEngines
from tests.certificates import DAY, Authority, Pair
from tests.dicoms import dx_image
from tests.nodes import Clock, make_node, settle, store


def named(checks: Sequence[Check], name: str) -> list[Check]:
    found = [check for check in checks if check.name == name]
    assert found, f"no check {name}"
    return found


def worst(checks: Sequence[Check], name: str) -> Level:
    levels = {check.level for check in named(checks, name)}
    return next(level for level in (Level.FAULT, Level.WARNING, Level.OK) if level in levels)


def look(node: Node) -> list[Check]:
    return list(examine(node.settings, node.now))


def test_each_part_that_is_in_order_is_told_so(node: Node) -> None:
    registry.add_modality(node, "CT1")
    checks = look(node)
    for name in ("disk", "device", "database", "models", "modalities", "rules", "destinations"):
        assert worst(checks, name) is Level.OK, named(checks, name)
    assert "torch 2" in named(checks, "device")[0].found


def test_every_warning_and_fault_says_what_to_do(node: Node) -> None:
    for check in look(node):
        assert bool(check.remedy) == (check.level is not Level.OK), check


def test_a_node_without_a_database_is_told_how_to_get_one(tmp_path: Path) -> None:
    settings = Settings.model_validate({"storage": {"folder": tmp_path / "none"}})
    checks = list(examine(settings, Clock()))
    (check,) = named(checks, "database")
    assert check.level is Level.FAULT and "db upgrade" in check.remedy
    assert not (tmp_path / "none").exists()  # looking makes nothing


def test_a_file_that_others_may_read_is_told(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dicom-node.toml"
    file.touch(0o644)
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    assert worst(look(node), "configuration") is Level.WARNING
    file.chmod(0o600)
    assert worst(look(node), "configuration") is Level.OK


def certificates(pair: Pair, **more: str) -> list[Check]:
    """What is said of the files of TLS, without looking at the rest."""
    settings = Settings(tls=pair.settings(**more))
    early = takewhile(lambda check: check.name != "disk", examine(settings, Clock()))
    return [check for check in early if check.name == "certificates"]


def test_certificates_that_end_soon_or_have_ended_are_told(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    assert {c.level for c in certificates(ca.issue("node"))} == {Level.OK}
    for lives, level in ((29 * DAY, Level.WARNING), (-DAY, Level.FAULT)):
        check, of_ca = certificates(ca.issue("node", lives=lives))
        assert (check.level, of_ca.level) == (level, Level.OK)
        assert "tls.certificate (CN=node) end" in check.found and check.remedy
    pair = ca.issue("node")
    for lives, level in ((2 * DAY, Level.OK), (DAY / 2, Level.WARNING), (-DAY, Level.FAULT)):
        assert certificates(pair, crl=str(ca.revoke(lives=lives)))[-1].level is level


def test_a_key_that_others_may_read_and_a_file_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("node")
    pair.key.chmod(0o640)
    assert {c.level for c in certificates(pair)} == {Level.OK}, "a group may"
    pair.key.chmod(0o644)
    check = certificates(pair)[-1]
    assert check.level is Level.WARNING and "chmod 600" in check.remedy
    (check,) = certificates(pair, ca=str(tmp_path / "gone"))
    assert check.level is Level.FAULT and "tls.ca" in check.found


def test_status_tells_how_long_certificates_hold(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    bare = make_node(tmp_path / "bare")
    assert status(bare)["certificates"] == []
    told = status(make_node(tmp_path / "node", tls=ca.issue("n", lives=20 * DAY).settings()))
    assert [(c["setting"], c["renew"]) for c in told["certificates"]] == [
        ("tls.certificate", True),
        ("tls.ca", False),
    ]


def test_a_disk_below_its_reserve_is_a_fault(node: Node) -> None:
    free = os.statvfs(node.settings.storage.folder)
    reserve = (free.f_bavail * free.f_frsize >> 20) * 2
    listener = node.settings.listener.model_copy(update={"reserve_mb": reserve})
    settings = node.settings.model_copy(update={"listener": listener})
    assert worst(list(examine(settings, node.now)), "disk") is Level.FAULT


def test_a_cuda_device_that_is_not_there_is_a_fault(node: Node) -> None:
    worker = node.settings.worker.model_copy(update={"device": "cuda:99"})
    settings = node.settings.model_copy(update={"worker": worker})
    (check,) = named(list(examine(settings, node.now)), "device")
    assert check.level is Level.FAULT and "cuda:99" in check.found


def test_an_altered_bundle_is_a_fault(node: Node) -> None:
    (digest,) = (path.name for path in bundle_folder(node, "x").parent.iterdir())
    (bundle_folder(node, digest) / "card.md").write_text("altered")
    (check,) = named(look(node), "models")
    assert check.level is Level.FAULT and "card.md" in check.found


def test_a_destination_that_does_not_answer_is_a_fault(node: Node) -> None:
    config = {"ae_title": "GONE", "host": "127.0.0.1", "port": 1}
    registry.add_destination(node, "gone", "dimse", config)
    faults = [c for c in named(look(node), "destinations") if c.level is Level.FAULT]
    assert [check.found.startswith("gone: 127.0.0.1:1/GONE") for check in faults] == [True]


def test_a_silent_process_and_missing_roles_are_faults(node: Node, clock: Clock) -> None:
    found = [check.found for check in named(look(node), "processes")]
    assert "listener: none alive" in found
    clock.pass_(600)
    found = [check.found for check in named(look(node), "processes")]
    assert any("no heartbeat for 600 s" in text for text in found)


def test_status_counts_what_there_is(node: Node, engines: WarmEngines, clock: Clock) -> None:
    store(node, [dx_image()])
    settle(node, engines)
    store(node, [dx_image(patient_id="A", number=1, sop_uid="2.25.1", study_uid="2.25.9")])
    from dicom_node.services.complete import close_studies

    close_studies(node)
    clock.pass_(90)

    told = status(node)

    assert told["studies"] == {"closed": 2}
    assert told["jobs"] == {"done": 1, "ready": 1}
    assert (told["at"] - told["oldest_ready_job"]).total_seconds() == 90
    assert told["deliveries"] == {"sent": 2}
    assert told["models"] == [{"model": "tiny@0.0.1", "state": "active"}]
    assert [process["beating"] for process in told["processes"]] == [False]
