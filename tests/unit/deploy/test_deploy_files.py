"""Every deployment starts commands that exist, with settings that exist, and never as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dicom_node.settings import Settings, load
from tests.commands import resolve

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
SERVICES = {n: s for n, s in COMPOSE["services"].items() if s["image"] == "dicom-node"}


def environment_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def settings_of(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the node reads them: an unknown variable or a bad value raises."""
    monkeypatch.chdir(DEPLOY)  # where no dicom-node.toml lies
    for name, value in environment.items():
        if name.startswith("DICOM_NODE_"):
            monkeypatch.setenv(name, value)
    return load()


def interpolated(value: str, variables: dict[str, str]) -> str:
    """Compose's ${NAME:-default} and ${NAME:?message}."""
    return re.sub(
        r"\$\{(\w+):([-?])([^}]*)\}",
        lambda m: variables.get(m[1]) or (m[3] if m[2] == "-" else "drawn"),
        value,
    )


# The image


def test_the_image_runs_as_a_user_that_is_not_root() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", FINAL_STAGE, re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user}" in FINAL_STAGE
    assert FINAL_STAGE.index("\nUSER ") < FINAL_STAGE.index("\nENTRYPOINT ")


def test_the_image_starts_the_command_and_checks_its_health() -> None:
    assert 'ENTRYPOINT ["dicom-node"]' in FINAL_STAGE
    (words,) = re.findall(r'^CMD \["(.+)"\]$', FINAL_STAGE, re.MULTILINE)
    resolve(words.split('", "'))
    assert re.search(r"^HEALTHCHECK .* CMD \[\"healthy\"\]$", FINAL_STAGE, re.MULTILINE)


def test_nothing_is_built_or_installed_in_the_final_stage() -> None:
    for tool in ("apt-get", "gcc", "pip ", "build-essential"):
        assert tool not in FINAL_STAGE


def test_the_settings_of_the_image_are_settings_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(dict(re.findall(r"(DICOM_NODE_\w+)=(\S+)", FINAL_STAGE)), monkeypatch)
    assert settings.listener.host == "0.0.0.0"  # noqa: S104 - compared with, not bound
    assert settings.storage.folder == Path("/data")


def test_the_builder_is_sent_all_that_the_image_copies_and_no_more() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
        if not source.startswith("--")
    ]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert allowed == set(sources)
    assert all((ROOT / source).exists() for source in sources if source != "README.md")


def test_the_image_takes_every_package_of_the_project() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in include["packages"]["find"]["include"]}
    assert packages == set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))


# Compose


def test_every_role_of_up_is_a_service() -> None:
    commands = {" ".join(service["command"]) for service in SERVICES.values()}
    assert commands == {
        "db upgrade",
        "listen",
        "scheduler",
        "worker --queues any",
        "worker --queues gpu,any",
        "worker --queues deliver",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_a_command_that_exists(name: str) -> None:
    resolve(SERVICES[name]["command"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_settings_that_the_node_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = environment_file(DEPLOY / "env.example")
    told = SERVICES[name]["environment"]
    settings = settings_of({k: interpolated(v, variables) for k, v in told.items()}, monkeypatch)
    assert settings.node_salt == "drawn"
    assert settings.database_url.startswith("postgresql+psycopg://")
    assert "drawn" not in settings.database_url  # no password in what commands may print
    assert settings.broker_url.startswith("redis://redis:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_secrets_have_no_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = environment_file(DEPLOY / "env.example")
    for secret in ("NODE_SALT", "DATABASE_PASSWORD", "PACS_PASSWORD"):
        assert re.findall(rf"\$\{{{secret}(.)(.)", text)
        assert set(re.findall(rf"\$\{{{secret}(..)", text)) == {":?"}
        assert example[secret] == ""


def test_ports_are_published_on_the_loopback_address_unless_told_otherwise() -> None:
    example = environment_file(DEPLOY / "env.example")
    ports = [p for s in COMPOSE["services"].values() for p in s.get("ports", ())]
    assert len(ports) == 3
    assert all(interpolated(port, example).startswith("127.0.0.1:") for port in ports)


def test_every_role_waits_for_the_schema_and_the_schema_for_the_database() -> None:
    for name, service in SERVICES.items():
        (waits,) = service["depends_on"].items()
        if name == "schema":
            assert waits == ("database", {"condition": "service_healthy"})
        else:
            assert waits == ("schema", {"condition": "service_completed_successfully"})
    assert COMPOSE["services"]["database"]["healthcheck"]["test"]


def test_redis_keeps_nothing_and_evicts_nothing() -> None:
    words = COMPOSE["services"]["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--save"] == ""
    assert options["--appendonly"] == "no"
    assert options["--maxmemory-policy"] == "noeviction"


def test_what_a_service_names_is_declared() -> None:
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        named = {volume.split(":")[0] for volume in service.get("volumes", ())}
        assert named <= set(COMPOSE["volumes"])
    profiles = {p for s in COMPOSE["services"].values() for p in s.get("profiles", ())}
    assert profiles == {"pacs", "gpu"}


# systemd


def words_of(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_a_command_that_exists(unit: Path) -> None:
    (start,) = words_of(unit, "ExecStart")
    program, *words = start.split()
    assert program == "/opt/dicom-node/bin/dicom-node"
    resolve(words)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_hardened(unit: Path) -> None:
    assert words_of(unit, "User") == ["dicom-node"]
    assert words_of(unit, "ProtectSystem") == ["strict"]
    assert words_of(unit, "NoNewPrivileges") == ["yes"]
    assert set(words_of(unit, "CapabilityBoundingSet")) <= {"", "CAP_NET_BIND_SERVICE"}
    # ProtectClock= closes every device but the clock, and PrivateDevices= all: no GPU then.
    if unit.stem in ("dicom-node", "dicom-node-gpu-worker@"):
        assert not words_of(unit, "ProtectClock") + words_of(unit, "PrivateDevices")
    else:
        assert words_of(unit, "PrivateDevices") == ["yes"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_settings_of_a_unit_are_settings_of_the_node(
    unit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dict(e.replace("%i", "0").split("=", 1) for e in words_of(unit, "Environment"))
    assert told.pop("DICOM_NODE_CONFIG") == "/etc/dicom-node/dicom-node.toml"
    settings_of(told, monkeypatch)


def test_every_unit_for_a_role_belongs_to_the_target() -> None:
    for unit in UNITS:
        if unit.stem != "dicom-node":
            assert words_of(unit, "PartOf") == ["dicom-node.target"]
    assert words_of(DEPLOY / "systemd/dicom-node.service", "Conflicts") == ["dicom-node.target"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("dicom-node"))
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/dicom-node/bin/dicom-node", command)
        (tmp_path / unit.name.replace("@.", "@0.")).write_text(text)
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )
    ours = [line for line in told.stderr.splitlines() if "dicom-node" in line]
    assert (told.returncode, ours) == (0, [])


# Kubernetes


@cache
def rendered() -> list[dict[str, Any]]:
    """What ``kubectl apply -k`` would send."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not here")
    told = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(yaml.safe_load_all(told.stdout))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of the node, by the name of what makes them."""
    for thing in rendered():
        labels = thing["metadata"].get("labels", {})
        is_ours = labels.get("app.kubernetes.io/name") == "dicom-node"
        if is_ours and thing["kind"] in ("Deployment", "Job"):
            yield thing["metadata"]["name"], thing["spec"]["template"]["spec"]


def test_every_object_fits_kubernetes_schema() -> None:
    assert len(rendered()) > 10
    for thing in rendered():
        kubernetes_validate.validate(thing, "1.33", strict=True)


def test_every_pod_runs_a_command_that_exists() -> None:
    assert len(list(pods())) == 6
    for _, pod in pods():
        (container,) = pod["containers"]
        resolve(container["args"])


def test_no_pod_gets_service_links_which_the_settings_would_refuse() -> None:
    for name, pod in pods():
        assert pod["enableServiceLinks"] is False, name


def test_no_pod_runs_as_root_or_writes_outside_its_volumes() -> None:
    for name, pod in pods():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert f"USER {pod['securityContext']['runAsUser']}:" in FINAL_STAGE
        assert container["securityContext"]["readOnlyRootFilesystem"], name
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"], name


def test_every_pod_that_stays_is_probed_and_has_a_bound_on_its_memory() -> None:
    for name, pod in pods():
        (container,) = pod["containers"]
        assert "memory" in container["resources"]["limits"], name
        if not name.endswith("schema"):
            assert container["livenessProbe"]["exec"]["command"] == ["healthy"], name


def test_the_settings_of_the_cluster_are_settings_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = environment_file(DEPLOY / "kubernetes/settings.env")
    for _, pod in pods():
        told |= {e["name"]: e.get("value", "") for e in pod["containers"][0].get("env", ())}
    settings = settings_of(told, monkeypatch)
    services = {t["metadata"]["name"] for t in rendered() if t["kind"] == "Service"}
    assert settings.broker_url.split("/")[2].split(":")[0] in services
