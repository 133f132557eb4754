import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dicom_node.cli import audit
from dicom_node.cli import registry as cli
from dicom_node.services.admission import Caller, Identity, admit
from dicom_node.services.context import Node
from dicom_node.services.peers import named
from tests.certificates import Authority
from tests.nodes import make_node


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = make_node(tmp_path / "node", tls=Authority(tmp_path).issue("node").settings())
    for module in (cli, audit):
        monkeypatch.setattr(module, "node", lambda: made)
    monkeypatch.setattr(cli, "settings", lambda: made.settings)
    return made


def run(group: Any, *words: str, typed: str = "") -> str:
    done = CliRunner().invoke(group, words, input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_modality_is_entered_with_what_it_must_show(node: Node, tmp_path: Path) -> None:
    shown = Authority(tmp_path / "ca").issue("ct1")
    words = ["add", "CT1", "--certificate", str(shown.certificate), "--certificate", "ab" * 32]
    words += ["--user", "jo", "--maximum-associations", "3"]
    run(cli.modalities, *words, typed="open sesame\n")
    told = run(cli.modalities, "list", "--json")
    (row,) = json.loads(told)
    assert row["certificates"] == [shown.fingerprint, "ab" * 32]
    assert (row["user"], row["maximum_associations"]) == ("jo", 3)
    assert "sesame" not in told and "scrypt" not in told
    caller = Caller("CT1", "10.0.0.1", shown.fingerprint, Identity("jo", "open sesame"))
    assert admit(node, caller).refusal is None
    assert f"certificate {shown.fingerprint[:16]}" in run(cli.modalities, "list")


def test_a_pacs_is_entered_with_tls(node: Node) -> None:
    words = ["add", "pacs", "--ae-title", "PACS", "--host", "10.0.0.5", "--port", "2762"]
    run(cli.destinations, *words, "--tls", "--tls-name", "pacs.example")
    peer: Any = named(node, "pacs")
    assert (peer.tls, peer.tls_name) == (node.settings.tls, "pacs.example")
    run(cli.destinations, *words)
    peer = named(node, "pacs")
    assert (peer.tls, peer.tls_name) == (None, "")


@pytest.mark.parametrize(
    "words",
    [
        ["--ae-title", "P", "--host", "h", "--port", "1", "--tls-name", "x"],
        ["--folder", "x", "--tls"],
    ],
)
def test_tls_options_that_mean_nothing_are_refused(node: Node, words: list[str]) -> None:
    assert CliRunner().invoke(cli.destinations, ["add", "x", *words]).exit_code == 2
