"""Whose a bundle is: keys, signatures, and the digests of what comes with the package."""

from __future__ import annotations

import json
import shutil
import stat
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dicom_node.errors import ConfigurationError
from dicom_node.services import trust
from dicom_node.services.models import SHIPPED
from dicom_node.settings import ModelSettings, Settings
from inference.bundle import Bundle, open_bundle, read_manifest
from tests.bundles import KEY, signed
from tests.bundles import OTHER_KEY as OTHER


def keys(*trusted: Ed25519PrivateKey, revoked: tuple[Ed25519PrivateKey, ...] = ()) -> ModelSettings:
    def named(those: tuple[Ed25519PrivateKey, ...]) -> list[str]:
        return [trust.setting(f"key {n}", key) for n, key in enumerate(those)]

    return ModelSettings(trusted_keys=named(trusted), revoked_keys=named(revoked))


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Of one's own, to be altered."""
    return open_bundle(shutil.copytree(tiny_bundle.path, tmp_path / "tiny"))


def test_a_bundle_is_trusted_by_the_name_of_the_key_that_signed_it(bundle: Bundle) -> None:
    found = trust.check(bundle, keys(OTHER, KEY))
    assert (found.signer, len(found.key)) == ("key 1", 16)


def test_an_unsigned_bundle_is_refused_and_says_what_to_do(bundle: Bundle) -> None:
    (bundle.path / "manifest.sig").unlink()
    with pytest.raises(trust.UntrustedBundle, match=r"tiny@0\.0\.1 is not signed.*models sign"):
        trust.check(bundle, keys(KEY))


def test_without_keys_nothing_but_what_is_shipped_is_trusted(bundle: Bundle) -> None:
    with pytest.raises(trust.UntrustedBundle, match="not among models"):
        trust.check(bundle, ModelSettings())


def test_a_revoked_key_is_refused_although_it_is_trusted_too(bundle: Bundle) -> None:
    with pytest.raises(trust.UntrustedBundle, match="revoked"):
        trust.check(bundle, keys(KEY, revoked=(KEY,)))


def test_a_signature_of_another_manifest_is_refused(bundle: Bundle) -> None:
    manifest = json.loads(read_manifest(bundle))
    (bundle.path / "manifest.json").write_text(json.dumps({**manifest, "title": "Another"}))
    with pytest.raises(trust.UntrustedBundle, match="no signature of its manifest"):
        trust.check(open_bundle(bundle.path), keys(KEY))


def test_another_key_cannot_sign_in_a_trusted_ones_name(bundle: Bundle) -> None:
    path = bundle.path / "manifest.sig"
    ours = json.loads(path.read_text())["key"]
    signed(bundle.path, OTHER)
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": ours}))
    with pytest.raises(trust.UntrustedBundle, match="no signature of its manifest"):
        trust.check(bundle, keys(KEY))


def test_a_signature_over_the_bare_manifest_is_not_taken(bundle: Bundle) -> None:
    """The same key may sign other things: only what names this purpose counts."""
    path = bundle.path / "manifest.sig"
    bare = b64encode(KEY.sign(read_manifest(bundle))).decode()
    path.write_text(json.dumps({**json.loads(path.read_text()), "signature": bare}))
    with pytest.raises(trust.UntrustedBundle, match="no signature of its manifest"):
        trust.check(bundle, keys(KEY))


@pytest.mark.parametrize(
    "change",
    [
        {"context": "another"},
        {"key": "x\n" * 8},
        {"key": 7},
        {"signature": "!"},
        {"signature": None},
        {"signature": ""},
    ],
)
def test_a_signature_file_that_makes_no_sense_is_refused(
    bundle: Bundle, change: dict[str, object]
) -> None:
    path = bundle.path / "manifest.sig"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(trust.UntrustedBundle) as refused:
        trust.check(bundle, keys(KEY))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 4000, b"{}"])
def test_a_signature_file_that_is_none_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.path / "manifest.sig").write_bytes(content)
    with pytest.raises(trust.UntrustedBundle, match="cannot be read"):
        trust.check(bundle, keys(KEY))


def test_the_digests_in_the_package_are_those_of_the_bundles_in_it() -> None:
    """`make digests` writes them anew."""
    found = {open_bundle(path).digest for path in SHIPPED.iterdir()}
    assert found
    assert trust.shipped() == found


def test_a_shipped_bundle_needs_no_key_and_an_altered_one_is_none_of_ours(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "us-breast-grade", tmp_path / "copy")
    assert trust.check(open_bundle(folder), ModelSettings()) == trust.Trust()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(trust.UntrustedBundle, match="not signed"):
        trust.check(open_bundle(folder), ModelSettings())


@pytest.mark.parametrize("secret", [None, b"a passphrase"])
def test_a_key_pair_signs_what_its_public_half_then_trusts(
    bundle: Bundle, tmp_path: Path, secret: bytes | None
) -> None:
    made = trust.generate(tmp_path / "key.pem", "the lab", secret)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in (tmp_path / "key.pem").read_bytes()) == (secret is not None)
    key = trust.load_key(tmp_path / "key.pem", lambda: secret or b"not asked")
    assert trust.sign(bundle, key) == made["key"]
    found = trust.check(bundle, ModelSettings(trusted_keys=(made["setting"],)))
    assert found.words == f"signed by the lab (key {made['key']})"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    trust.generate(tmp_path / "key.pem", "lab")
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(ConfigurationError, match="never overwritten"):
        trust.generate(tmp_path / "key.pem", "lab")
    assert (tmp_path / "key.pem").read_bytes() == before


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    trust.generate(tmp_path / "key.pem", "lab")
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        trust.load_key(tmp_path / "key.pem", lambda: b"")


def test_a_wrong_passphrase_and_no_key_are_told(tmp_path: Path) -> None:
    trust.generate(tmp_path / "key.pem", "lab", b"right")
    with pytest.raises(ConfigurationError, match="passphrase"):
        trust.load_key(tmp_path / "key.pem", lambda: b"wrong")
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(ConfigurationError, match="no private key"):
        trust.load_key(tmp_path / "text", lambda: b"")


@pytest.mark.parametrize("name", ["", "a:b", "x" * 33, "a\nb", '"'])
def test_a_name_that_cannot_stand_in_the_settings_makes_no_key(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a key"):
        trust.generate(tmp_path / "key.pem", name)
    assert not (tmp_path / "key.pem").exists()


@pytest.mark.parametrize(
    "entry", ["lab", "lab:AAAA", ":" + "A" * 43 + "=", "lab:" + "A" * 42 + "B="]
)
def test_what_is_no_key_is_refused_in_the_settings(entry: str) -> None:
    with pytest.raises(ValueError, match="trusted_keys"):
        Settings(models=ModelSettings.model_validate({"trusted_keys": [entry]}))
