"""The installed command, as a process of its own, on a node in a temporary folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dicom_node.listener.node import NodeInbox
from dicom_node.listener.server import serve
from dicom_node.services import registry
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.settings import Settings
from dicom_node.worker.engines import WarmEngines
from tests.bundles import TRUST, make_tiny_bundle
from tests.dicoms import ct_series, dx_image, save, uid
from tests.nodes import Clock, add_bundle, make_node, route, settle, store
from tests.pacs import Pacs
from tests.web import Answer, Web

COMMAND = Path(sys.executable).with_name("dicom-node")
STUDY, OPEN, HELD = uid("study"), uid("open"), uid("held")


@dataclass(frozen=True)
class Cli:
    """Runs the command in a folder."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Its standard output; the exit code must be ``code``."""
        done = self.run(*arguments)
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))

    def refuses(self, code: int, *arguments: str) -> str:
        """What it says on standard error when it ends with ``code``."""
        done = self.run(*arguments)
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.replace("│", " ").split())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def cli_in(folder: Path, **environment: str) -> Cli:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")}
    return Cli(folder, {**plain, **environment})


@pytest.fixture
def fresh(tmp_path: Path) -> Cli:
    return cli_in(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def node(place: Path) -> Node:
    """One study done with a delivery that failed once, one open, one held, one in quarantine."""
    node = make_node(place / "node-data", Clock())
    add_bundle(node, make_tiny_bundle(place / "tiny"))
    registry.add_modality(node, "CT1", ["127.0.0.0/8"])
    series = {"study_uid": STUDY, "series_uid": uid("series")}
    hostile = "[bold]Thorax[/nope] \x1b[31m"
    with Pacs(place / "pacs", answers=[0xA700], comment="full") as pacs:
        config = {"ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(node, "out", "dimse", config)
        route(node, when={"modality": ["DX"]})
        images = [dx_image(**series, sop_uid=uid("a"), SeriesDescription=hostile)]
        images += ct_series(3, study_uid=STUDY, series_uid=uid("ct"))
        store(node, images)
        assert isinstance(node.now, Clock)
        node.now.pass_(60)
        engines = WarmEngines(node)
        settle(node, engines)
        node.now.pass_(600)
        settle(node, engines)
    store(node, [dx_image(**series, sop_uid=uid("a"), seed=4)])
    store(node, [dx_image(study_uid=OPEN)], close=False)
    store(node, [dx_image(study_uid=HELD, sop_uid=uid(p), patient_id=p) for p in "AB"])
    close_studies(node)
    return node


@pytest.fixture(scope="module")
def cli(node: Node, place: Path) -> Cli:
    trusted = json.dumps(TRUST["trusted_keys"])
    return cli_in(place, DICOM_NODE_MODELS__TRUSTED_KEYS=trusted)


def test_init_then_upgrade_makes_a_node_that_answers(fresh: Cli) -> None:
    assert "dicom-node db upgrade" in fresh("init")
    assert "--force" in fresh.refuses(2, "init")
    assert "db upgrade" in fresh.refuses(5, "studies", "list")
    assert fresh.json("db", "current", code=1)["current"] is None
    assert fresh.json("db", "upgrade")["after"] == fresh.json("db", "current")["needed"]
    assert fresh.json("studies", "list") == []
    assert fresh("studies", "list") == "none\n"


def test_another_file_is_named_by_the_option(fresh: Cli) -> None:
    fresh("--config", "here/node.toml", "init")
    text = (fresh.folder / "here" / "node.toml").read_text()
    (fresh.folder / "here" / "node.toml").write_text(text.replace("port = 11112", "port = x"))
    assert "node.toml" in fresh.refuses(2, "--config", "here/node.toml", "studies", "list")
    (check,) = fresh.json("--config", "here/node.toml", "doctor", code=1)
    assert check["level"] == "fault" and check["name"] == "configuration"


def test_studies_are_listed_by_state(cli: Cli) -> None:
    rows = {row["study"]: row for row in cli.json("studies", "list")}
    assert {u: rows[u]["state"] for u in rows} == {STUDY: "closed", OPEN: "open", HELD: "held"}
    assert rows[STUDY]["jobs"] == ["1 done"] and rows[STUDY]["modalities"] == ["CT", "DX"]
    listing = cli("studies", "list", "--state", "held")
    assert HELD in listing and STUDY not in listing
    assert len(cli.json("studies", "list", "--limit", "1")) == 1


def test_a_study_shows_its_series_and_no_header_steers_the_terminal(cli: Cli) -> None:
    told = cli("studies", "show", STUDY)
    assert "[bold]Thorax[/nope]" in told and "\x1b" not in told
    assert uid("series") in told and uid("ct") in told
    assert "patient id" in cli("studies", "show", HELD)
    assert "patient id" not in told


def test_why_tells_the_whole_story(cli: Cli) -> None:
    told = cli("studies", "why", STUDY)
    for words in (
        "Closed: revision 1 holds all that counts; complete.",
        "series 1 (CT, 3 instances) from CT1",
        "called complete: quiet for 30 s (modality CT), no association still sending it",
        "✓ rule all matched",
        "✗ modality is DX (here CT)",
        f"✓ takes image {uid('a')}: fits",
        "job 1 tiny@0.0.1 on 1 image  done",
        "found: ",
        "BINARY segmentation to out: sent",
        "2 attempts: success",
        "instances list",
        "came again with other content",
    ):
        assert words in told, words
    assert "Thorax" not in told  # typed by a person: it may name a patient
    revisions = cli.json("studies", "why", STUDY)["revisions"]
    assert revisions[0]["jobs"][0]["deliveries"][0]["state"] == "sent"


def test_why_tells_what_an_open_and_a_held_study_wait_for(cli: Cli) -> None:
    assert "still sending" in cli("studies", "why", OPEN)
    held = cli("studies", "why", HELD)
    assert "two patients" in held and f"studies resolve {HELD} --patient-id" in held


def test_jobs_are_listed_and_shown(cli: Cli) -> None:
    (row,) = cli.json("jobs", "list", "--state", "done")
    assert row["study"] == STUDY
    told = cli("jobs", "show", str(row["job"]))
    for words in (
        "tiny@0.0.1",
        "found: ",
        "goes to out by rule 'all'",
        "BINARY segmentation",
        "SR",
        "took ",
    ):
        assert words in told, words
    assert cli.json("jobs", "list", "--state", "dead") == []


def test_a_delivery_shows_every_attempt_with_its_status(cli: Cli) -> None:
    first = cli.json("deliveries", "list")[-1]
    log = cli.json("deliveries", "show", str(first["delivery"]))["log"]
    assert [attempt["status"] for attempt in log] == ["0xA700", "0x0000"]
    told = cli("deliveries", "show", str(first["delivery"]))
    assert "0xA700" in told and "success" in told
    assert "full" not in told  # a peer's comment may quote the patient


def test_what_does_not_exist_is_exit_code_3_and_a_wrong_state_4(cli: Cli) -> None:
    assert cli.refuses(3, "studies", "why", "1.2.3") == "dicom-node: no study '1.2.3'"
    cli.refuses(3, "jobs", "show", "99")
    cli.refuses(3, "deliveries", "retry", "99")
    cli.refuses(3, "instances", "resolve", "99", "--keep", "old")
    assert "job 1 is done: cannot retry" in cli.refuses(4, "jobs", "retry", "1")
    cli.refuses(4, "studies", "resolve", STUDY, "--patient-id", "TEST-1")


def test_wrong_use_is_exit_code_2(cli: Cli) -> None:
    assert "'lost' is not one of" in cli.refuses(2, "jobs", "list", "--state", "lost")
    assert "nowhere" in cli.refuses(2, "modalities", "add", "AE", "--address", "nowhere")


def test_status_is_one_screen(cli: Cli) -> None:
    told = cli("status")
    assert len(told.splitlines()) <= 24
    for words in ("1 closed", "1 held", "1 open", "1 done", "2 sent", "tiny@0.0.1", "alerts (2)"):
        assert words in told, words
    assert cli.json("status")["studies"] == {"closed": 1, "held": 1, "open": 1}


def test_doctor_finds_what_is_down_and_says_what_to_do(cli: Cli) -> None:
    done = cli.run("doctor")
    assert done.returncode == 1
    assert "✗ destinations" in done.stdout and "results wait" in done.stdout
    assert "✓ models" in done.stdout
    levels = {check["name"]: check["level"] for check in cli.json("doctor", code=1)}
    assert levels["database"] == levels["disk"] == levels["device"] == "ok"


def test_doctor_goes_deep_on_request(cli: Cli) -> None:
    checks = cli.json("doctor", "--deep", code=1)
    (model,) = [check for check in checks if check["name"] == "models"]
    assert model["level"] == "ok" and "golden example differs by" in model["found"]


def test_modalities_and_destinations_are_entered_listed_and_removed(fresh: Cli) -> None:
    fresh("db", "upgrade")
    fresh("modalities", "add", "XR1", "--address", "10.1.0.0/16", "--address", "10.2.0.7")
    fresh("modalities", "add", "XR2", "--host", "xr2", "--port", "104")
    assert [row["addresses"] for row in fresh.json("modalities", "list")] == [
        ["10.1.0.0/16", "10.2.0.7/32"],
        [],
    ]
    fresh("modalities", "remove", "XR1")
    assert [row["ae_title"] for row in fresh.json("modalities", "list")] == ["XR2"]
    fresh("destinations", "add", "out", "--folder", "results")
    assert fresh.json("destinations", "list")[0]["path"] == str(fresh.folder / "results")
    assert "answers" in fresh("destinations", "echo", "out")
    fresh("destinations", "add", "out", "--ae-title", "A", "--host", "127.0.0.1", "--port", "1")
    assert "127.0.0.1:1/A" in fresh.refuses(5, "destinations", "echo", "out")
    (row,) = fresh.json("destinations", "list")
    assert row["profile"]["segmentation"] == "binary"
    peer = ("--ae-title", "A", "--host", "127.0.0.1", "--port", "1")
    wishes = ("--segmentation", "labelmap", "--compression", "rle", "--capture", "always")
    fresh("destinations", "add", "out", *peer, *wishes)
    (row,) = fresh.json("destinations", "list")
    assert row["profile"] | {"segmentation": "labelmap", "capture": "always"} == row["profile"]
    listed = " ".join(fresh("destinations", "list").split())
    assert "LABELMAP segmentation in RLE" in listed
    refused = fresh.refuses(2, "destinations", "add", "out", *peer, "--compression", "rle")
    assert "one bit a pixel" in refused
    (fresh.folder / "secret").write_text("s3cret")
    web = ("--user", "node", "--secret-file", "secret", "--timeout", "7", "--report", "enhanced")
    with Web([Answer(401)]) as server:
        fresh("destinations", "add", "out", "--url", f"{server.url}/", *web)
        shown = fresh("destinations", "list", "--json")
        assert "s3cret" not in shown
        (row,) = json.loads(shown)
        assert row["kind"] == "dicomweb" and row["timeout"] == 7
        assert row["secret_file"] == str(fresh.folder / "secret")
        assert row["profile"]["report"] == "enhanced"
        assert "HTTP status 401" in fresh.refuses(5, "destinations", "echo", "out")
    fresh("destinations", "remove", "out")
    assert fresh.json("destinations", "list") == []


def test_rules_are_tried_before_they_are_applied(cli: Cli, place: Path) -> None:
    file = save(dx_image(study_uid=uid("trial")), place / "trial" / "1.dcm")
    rules = place / "new.toml"
    rules.write_text('[[rule]]\nname = "new"\nmodels = ["tiny"]\ndestinations = ["out"]\n')
    told = cli("routes", "test", str(file.parent), "--rules", str(rules))
    assert "✓ rule new matched" in told
    assert "would make a job of tiny@0.0.1 on 1 image, routine, to out" in told
    (trial,) = cli.json("routes", "test", STUDY)
    assert [rule["rule"] for rule in trial["rules"]] == ["all"]  # those in force
    assert "rule" in cli("routes", "test", OPEN)
    rules.write_text(rules.read_text().replace('"tiny"', '"none"'))
    assert "names model 'none', which does not exist; known are tiny" in cli.refuses(
        2, "routes", "apply", str(rules)
    )
    rules.write_text("[[rule]\n")
    assert "new.toml" in cli.refuses(2, "routes", "apply", str(rules))
    assert [rule["name"] for rule in cli.json("routes", "list")] == ["all"]
    assert "modality" in cli("routes", "list")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Cli, Node]]:
    """The node's real listener on a free port, with the command beside it."""
    node = make_node(tmp_path / "node-data")
    stop, ready, ports = threading.Event(), threading.Event(), []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    options = Settings().listener.model_copy(update={"port": 0})
    keywords = {"stop": stop, "ready": note, "drain": 0.0}
    thread = threading.Thread(target=serve, args=(options, NodeInbox(node)), kwargs=keywords)
    thread.start()
    assert ready.wait(10)
    yield cli_in(tmp_path, DICOM_NODE_LISTENER__PORT=str(ports[0])), node
    stop.set()
    thread.join(20)


def test_a_folder_is_sent_to_the_listener_and_every_answer_counted(
    listener: tuple[Cli, Node], tmp_path: Path
) -> None:
    cli, _ = listener
    for number, one in enumerate(ct_series(5, study_uid=STUDY)):
        save(one, tmp_path / "in" / f"{number}.dcm")
    (tmp_path / "in" / "readme.txt").write_text("no DICOM")

    rejected = cli.json("send", "in", "--as", "CT1", code=1)
    assert len(rejected["failures"]) == 5
    assert "does not know the calling AE title CT1" in rejected["answers"][0]["answer"]
    assert "(1,1,3)" in cli.refuses(5, "echo", "--as", "CT1")

    cli("modalities", "add", "CT1", "--address", "127.0.0.1")
    assert "answers in" in cli("echo")
    told = cli("send", "in")
    assert "5      0x0000  stored" in told and "1 file" in told
    assert cli.json("studies", "list")[0]["instances"] == 5

    changed = ct_series(1, study_uid=STUDY, intercept=-1000.0)
    save(changed[0], tmp_path / "in" / "0.dcm")
    mixed = cli.json("send", "in", code=1)
    assert {row["status"]: row["count"] for row in mixed["answers"]} == {"0x0000": 4, "0xC003": 1}
    (quarantined,) = cli.json("instances", "list")
    assert quarantined["differs_in"] == ["RescaleIntercept"]
    cli("instances", "resolve", "1", "--keep", "new")
    assert cli("instances", "list") == "none\n"
    assert cli.json("instances", "list", "--all")[0]["resolution"] == "keep-new"


def test_send_finds_peers_by_address_and_by_name(
    listener: tuple[Cli, Node], tmp_path: Path
) -> None:
    cli, _ = listener
    file = str(save(dx_image(), tmp_path / "1.dcm"))
    with Pacs(tmp_path / "pacs", answers=[0x0000, 0xB000, 0xC000], comment="odd") as pacs:
        address = f"127.0.0.1:{pacs.port}/PACS"
        assert "stored" in cli("send", file, "--to", address, "--calling", "ME")
        assert pacs.received[0].calling.strip() == "ME"
        where = ("--ae-title", "PACS", "--host", "127.0.0.1", "--port", str(pacs.port))
        cli("destinations", "add", "pacs", *where)
        assert "stored with a warning" in cli("send", file, "--to", "pacs")
        assert "odd" in cli("send", file, "--to", "pacs", code=1)
        assert cli.json("echo", "pacs")["seconds"] > 0
        assert "answers" in cli("echo", address)
    cli.refuses(5, "echo", address)
    cli.refuses(3, "send", file, "--to", "nobody")
    (tmp_path / "empty").mkdir()
    cli.refuses(3, "send", "empty", "--to", address)


def test_a_held_study_is_settled_and_a_job_cancelled_retried_and_rerun(
    tmp_path: Path,
) -> None:
    clock = Clock()
    node = make_node(tmp_path / "node-data", clock)
    add_bundle(node, make_tiny_bundle(tmp_path / "tiny"))
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    route(node)
    store(node, [dx_image(study_uid=HELD, sop_uid=uid(p), patient_id=p) for p in "AB"])
    close_studies(node)
    cli = cli_in(tmp_path)

    assert cli.json("studies", "resolve", HELD, "--patient-id", "A")["passed_over"] == 1
    clock.pass_(60)  # the command has the real time
    close_studies(node)
    assert "cancelled" in cli("jobs", "cancel", "1")
    assert cli.json("jobs", "show", "1")["error"] == "cancelled by an administrator"
    assert "ready" in cli("jobs", "retry", "1")
    settle(node, WarmEngines(node))
    assert cli.json("studies", "rerun", HELD, "--model", "tiny") == {"jobs": [2]}
    assert cli("studies", "rerun", HELD) == "a newer generation runs already\n"
    assert "again after job 1" in cli("studies", "why", HELD)
    assert "pending" in cli("deliveries", "retry", "1")
    assert cli.json("deliveries", "list", "--state", "pending")[0]["delivery"] == 1
    cli("studies", "reopen", HELD)
    assert cli.json("studies", "show", HELD)["state"] == "open"
