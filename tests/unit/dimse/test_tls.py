from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from dicom_node.dimse.tls import (
    Renewed,
    client_context,
    fingerprint_from,
    own_fingerprint,
    own_name,
    server_context,
    validities,
)
from dicom_node.errors import ConfigurationError
from dicom_node.settings import TlsSettings
from tests.certificates import DAY, Authority


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize("make", [server_context, client_context])
def test_nothing_below_tls_1_2_and_nothing_but_authenticated_encryption(
    ca: Authority, make: Callable[[TlsSettings], ssl.SSLContext]
) -> None:
    context = make(ca.issue("node").settings())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    suites = context.get_ciphers()
    assert {s["protocol"] for s in suites} == {"TLSv1.2", "TLSv1.3"}
    assert all(s["aead"] and s["strength_bits"] >= 128 for s in suites)
    of_1_2 = {s["name"] for s in suites if s["protocol"] == "TLSv1.2"}
    assert len(of_1_2) == 4 and all(name.startswith("ECDHE-") for name in of_1_2)


def test_a_destinations_name_is_checked(ca: Authority) -> None:
    assert client_context(ca.issue("node").settings()).check_hostname
    with pytest.raises(ConfigurationError, match=r"tls\.certificate is not set"):
        client_context(TlsSettings())


def text(path: Path, name: str, content: str = "nothing of the kind") -> str:
    (path / name).write_text(content)
    return str(path / name)


@pytest.mark.parametrize(
    ("setting", "content", "said"),
    [
        ("certificate", None, "No such file"),
        ("key", None, "No such file"),
        ("ca", None, "No such file"),
        ("crl", None, "No such file"),
        ("certificate", "x", "holds no certificate in PEM"),
        ("key", "x", "holds no private key in PEM"),
        ("ca", "x", "holds no certificate in PEM"),
        ("crl", "x", "holds no revocation list in PEM"),
        ("crl", "-----BEGIN X509 CRL-----\nx\n-----END X509 CRL-----", "holds no revocation list"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    ca: Authority, tmp_path: Path, setting: str, content: str | None, said: str
) -> None:
    path = str(tmp_path / "gone") if content is None else text(tmp_path, "bad", content)
    settings = ca.issue("node").settings(**{setting: path})
    with pytest.raises(ConfigurationError, match=rf"tls\.{setting} {path}.*{said}"):
        server_context(settings)


def test_a_key_of_another_certificate_or_with_a_passphrase_is_refused(ca: Authority) -> None:
    other = str(ca.issue("other").key)
    with pytest.raises(ConfigurationError, match="key values mismatch"):
        server_context(ca.issue("node").settings(key=other))
    with pytest.raises(ConfigurationError, match="has a passphrase"):
        server_context(ca.issue("locked", passphrase=b"secret").settings())


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=1024),  # noqa: S505 - to be refused
        ec.generate_private_key(ec.SECP224R1()),
    ],
    ids=["RSA 1024", "P-224"],
)
def test_a_weak_key_is_refused_ours_and_the_cas(ca: Authority, tmp_path: Path, key: object) -> None:
    with pytest.raises(ConfigurationError, match=r"tls\.certificate .*CN=node has .*needed are"):
        server_context(ca.issue("node", key=key).settings())
    weak = Authority(tmp_path, "Weak CA", key)
    with pytest.raises(ConfigurationError, match=r"tls\.ca .*CN=Weak CA has"):
        server_context(weak.issue("node").settings())


def test_a_renewed_certificate_is_taken_and_a_broken_one_leaves_the_former(ca: Authority) -> None:
    settings = ca.issue("node").settings()
    renewed = Renewed(settings)
    first = renewed()
    assert renewed() is first
    Path(settings.key).write_text("half of a file")
    assert renewed() is first
    ca.issue("node")
    second = renewed()
    assert second is not first
    assert renewed() is second


def test_a_fingerprint_is_read_from_hex_or_from_a_file(ca: Authority, tmp_path: Path) -> None:
    pair = ca.issue("ct")
    der = tmp_path / "ct.der"
    der.write_bytes(pair.made.public_bytes(Encoding.DER))
    colons = ":".join(pair.fingerprint[i : i + 2] for i in range(0, 64, 2)).upper()
    of_openssl = f"sha256 Fingerprint={colons}"
    for given in (pair.fingerprint, colons, of_openssl, str(pair.certificate), str(der)):
        assert fingerprint_from(given) == pair.fingerprint
    assert own_fingerprint(pair.settings()) == pair.fingerprint
    for given in (str(pair.key), "ab" * 31, str(tmp_path)):
        with pytest.raises(ConfigurationError):
            fingerprint_from(given)


def test_what_a_certificate_is_made_out_to_is_a_name_before_an_address(ca: Authority) -> None:
    hosts = ["10.0.0.1", "*.example", "node.example"]
    assert own_name(ca.issue("a", hosts=hosts).settings()) == "node.example"
    assert own_name(ca.issue("b", hosts=["10.0.0.1"]).settings()) == "10.0.0.1"


def test_how_long_each_file_holds_is_told(ca: Authority) -> None:
    pair = ca.issue("node", lives=10 * DAY)
    crl = ca.revoke(lives=timedelta(hours=3))
    found = {v.setting: v for v in validities(pair.settings(crl=str(crl)))}
    assert [(v.setting, v.what) for v in found.values()] == [
        ("tls.certificate", "CN=node"),
        ("tls.ca", "CN=Hospital CA"),
        ("tls.crl", "CN=Hospital CA"),
    ]
    ends = found["tls.certificate"].ends
    assert ends and 9 * DAY < ends - datetime.now(UTC) < 11 * DAY


@pytest.mark.parametrize(
    "half", [{"certificate": "a"}, {"key": "a", "ca": "b"}, {"ca": "a"}, {"listen": "tls"}]
)
def test_half_a_configuration_is_refused(half: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"belong together|nothing would be open"):
        TlsSettings.model_validate(half)


def test_which_ports_are_open_is_said_by_certificate_and_choice(tmp_path: Path) -> None:
    files = {"certificate": "c.pem", "key": "k.pem", "ca": "ca.pem"}
    assert TlsSettings().ports == {"plain"}
    assert TlsSettings(listen="plain", **files).ports == {"plain"}
    assert TlsSettings(**files).ports == {"plain", "tls"}
    assert TlsSettings(listen="tls", **files).ports == {"tls"}
    assert Path(TlsSettings(**files).key).is_absolute()
