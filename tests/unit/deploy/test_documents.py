"""What the documents tell people to type exists, and what they point at is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dicom_node.dimse.tls import own_name, server_context
from dicom_node.settings import TlsSettings
from tests.commands import find, known_options
from tests.servers import need

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "deploy").glob("*.md")))
    if path.is_file()
]
FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?<![\w/.-])dicom-node ([a-z][^#|>\n]*)")


def commands(text: str) -> list[list[str]]:
    """Command lines in code, inline or in blocks; prose that begins with the name is none."""
    lines = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`]+)`", FENCED.sub("", text))
    lines += [" ".join(code.split()) for code in inline]
    return [match.split() for line in lines for match in COMMAND.findall(line)]


def test_commands_are_found_where_documents_have_them() -> None:
    block = "```sh\ndicom-node db \\\n  upgrade  # now\nx/dicom-node y\n```"
    text = f"dicom-node is `dicom-node jobs\nlist`\n{block}"
    assert commands(text) == [["db", "upgrade"], ["jobs", "list"]]


def test_the_documents_are_there() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert names >= {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "deploy/first-steps.md",
        "deploy/conformance.md",
        "deploy/settings.md",
        "deploy/audit.md",
        "deploy/tls.md",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_exists_with_its_options(document: Path) -> None:
    for words in commands(document.read_text()):
        command, left = find(words)
        assert not hasattr(command, "commands") or not left, words
        options = {w.split("=")[0] for w in left if re.match(r"--[a-z]", w)}
        assert options <= known_options(words), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_every_module_that_a_document_names_is_there(document: Path) -> None:
    places = r"`((?:dicom_node|inference|training|tests|deploy|migrations)/[\w/.-]+)`"
    for name in re.findall(places, document.read_text()):
        assert (ROOT / name).exists(), name


def test_the_certificates_that_the_page_on_tls_makes_can_be_used(tmp_path: Path) -> None:
    script = FENCED.findall((ROOT / "deploy/tls.md").read_text())[0]
    subprocess.run(
        [need("sh"), "-ec", script], cwd=tmp_path, check=True, capture_output=True, timeout=30
    )
    name = tmp_path / "node.example.org"
    files = {"certificate": f"{name}.pem", "key": f"{name}.key", "ca": str(tmp_path / "ca.pem")}
    server_context(TlsSettings(**files))
    assert own_name(TlsSettings(**files)) == "node.example.org"
    peer = tmp_path / "ctscanner1.example.org.pem"
    how = ("-x509_strict", "-purpose", "sslclient", "-CAfile", tmp_path / "ca.pem")
    subprocess.run([need("openssl"), "verify", *how, peer], check=True, capture_output=True)
