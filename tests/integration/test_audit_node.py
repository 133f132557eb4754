"""A node with its processes, a modality, an administrator, and an audit repository."""

from __future__ import annotations

import signal
from pathlib import Path

from lxml import etree

from dicom_node.services.audit import standing
from tests.audit import Receiver, certificates, check, event, xml_of
from tests.dicoms import dx_image, uid
from tests.node import running
from tests.servers import eventually

STUDY = uid("canary study")


def test_all_that_a_node_does_reaches_the_repository_and_only_the_trail_names_the_patient(
    tmp_path: Path,
) -> None:
    image = tmp_path / "image.dcm"
    dx_image(study_uid=STUDY, patient_id="CANARY77", PatientName="Canary^Yellow").save_as(
        image, enforce_file_format=True
    )
    with Receiver(certificates(tmp_path / "keys")) as repository:
        shipping = repository.settings().model_dump(
            include={"receiver", "port", "ca", "certificate", "key"}
        )
        with running(tmp_path / "node", roles=("listen", "scheduler"), audit=shipping) as node:

            def told() -> list[tuple[str, etree._Element]]:
                roots = [check(xml_of(message)) for message in list(repository.messages)]
                return [(event(root), root) for root in roots]

            def has(words: str, inside: str = "") -> bool:
                return any(
                    name == words and inside in etree.tostring(root).decode()
                    for name, root in told()
                )

            assert node.send([image]) == [0x0000]
            assert node.send([image], calling="STRANGER") == []
            assert node.command("studies", "show", STUDY).returncode == 0
            assert node.command("modalities", "remove", "STORESCU").returncode == 0
            node.stop("listen", signal.SIGKILL)
            for words, inside in (
                ("Application Activity, Application Start E 0", "dicom-node listener"),
                ("Application Activity, Application Start E 0", "dicom-node scheduler"),
                ("Begin Transferring DICOM Instances E 0", STUDY),
                ("DICOM Instances Transferred C 0", "CANARY77"),
                ("Security Alert, Node Authentication E 4", "STRANGER"),
                ("DICOM Instances Accessed R 0", "dicom-node cli"),
                ("Security Alert, Security Configuration E 0", "modalities/STORESCU"),
                ("Application Activity, Application Stop E 8", "dicom-node listener"),
            ):
                eventually(lambda w=words, i=inside: has(w, i), 60, f"{words} with {inside}")
            assert node.node.audit.trail.verify().faults == ()
            shown = node.told("audit", "show", "--study", STUDY)
            assert [row["event"] for row in shown][-1] == "DICOM Instances Accessed"
            assert all(row["patient"] == "CANARY77" for row in shown)
            stands = standing(node.node)
            assert stands["shipped_at"] and not stands["fault"]
            eventually(lambda: has("Audit Log Used R 0"), 30, "reading the trail is told, too")
            assert "CANARY77" not in node.log_text() and "Canary" not in node.log_text()
            (line,) = list((node.data / "audit").glob("*.log"))
            assert line.stat().st_mode & 0o077 == 0
        head = node.node.audit.trail.head().sequence
        sequence = [int(message.split(b'"')[1]) for message in repository.messages]
        assert sequence == list(range(1, len(sequence) + 1)) and len(sequence) >= head - 2


def test_a_line_that_was_removed_is_told_by_the_command(tmp_path: Path) -> None:
    with running(tmp_path, roles=()) as node:
        for title in ("CT7", "CT8", "CT9"):
            assert node.command("modalities", "add", title).returncode == 0
        (log,) = (node.data / "audit").glob("*.log")
        assert node.command("audit", "verify").returncode == 0
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join([lines[0], *lines[2:]]))
        found = node.command("audit", "verify")
        assert found.returncode == 1 and "removed" in found.stdout
        assert "audit.receiver" in node.command("audit", "ship").stderr
