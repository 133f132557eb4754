from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from dicom_node.errors import ConfigurationError
from dicom_node.services import registry
from dicom_node.services.admission import Admission, Caller, Identity, Reason, admit, kept
from dicom_node.services.context import Node
from dicom_node.store.tables import Modality
from tests.nodes import make_node

ONE, OTHER = "a" * 64, "b" * 64
HERE = "10.1.2.3"


@pytest.fixture
def bare(tmp_path: Path) -> Node:
    return make_node(tmp_path / "node")


@pytest.mark.parametrize(
    ("title", "address", "refusal"),
    [
        ("CT1", "10.1.2.200", None),
        ("CT1", "10.1.3.1", Reason.ADDRESS),
        ("CT1", "fd00::1", None),
        ("CT2", "192.0.2.1", None),
        ("CT3", "10.1.2.200", Reason.UNKNOWN),
        ("ct1", "10.1.2.200", Reason.UNKNOWN),
    ],
)
def test_only_who_was_entered_may_send_and_only_from_its_networks(
    bare: Node, title: str, address: str, refusal: Reason | None
) -> None:
    registry.add_modality(bare, "CT1", ["10.1.2.0/24", "fd00::/8"])
    registry.add_modality(bare, "CT2", host="ct2.example", port=104)
    assert admit(bare, Caller(title, address)) == Admission(refusal)


def test_a_modality_comes_with_its_certificate_and_no_other(bare: Node) -> None:
    registry.add_modality(bare, "CT1", certificates=[ONE, ONE[:-1] + "c"])
    registry.add_modality(bare, "CT2", tls_only=True)
    registry.add_modality(bare, "CT3")

    def refusal(title: str, certificate: str | None) -> Reason | None:
        return admit(bare, Caller(title, HERE, certificate)).refusal

    assert refusal("CT1", ONE) is None
    assert refusal("CT1", ONE[:-1] + "c") is None, "the one that follows it"
    assert refusal("CT1", OTHER) is Reason.CERTIFICATE
    assert refusal("CT1", None) is Reason.PLAIN
    assert refusal("CT2", OTHER) is None
    assert refusal("CT2", None) is Reason.PLAIN
    assert refusal("CT3", OTHER) is refusal("CT3", None) is None


def test_a_user_is_known_by_name_and_passcode(bare: Node) -> None:
    registry.add_modality(bare, "CT1", identity=Identity("jo", "söcret"))
    registry.add_modality(bare, "CT2")

    def asked(identity: Identity | None, title: str = "CT1") -> Admission:
        return admit(bare, Caller(title, HERE, identity=identity))

    assert asked(Identity("jo", "söcret")) == Admission(identified=True)
    for wrong in (None, Identity("jo", ""), Identity("jo", "secret"), Identity("Jo", "söcret")):
        assert asked(wrong) == Admission(Reason.IDENTITY)
    assert asked(Identity("who", "ever"), "CT2") == Admission(), "not asked for"


def test_a_passcode_is_kept_salted_and_never_itself(bare: Node) -> None:
    registry.add_modality(bare, "CT1", identity=Identity("jo", "opensesame"))
    with bare.database.reading() as session:
        row = session.scalars(select(Modality)).one()
    assert row.passcode and row.passcode.startswith("scrypt:")
    assert "opensesame" not in row.passcode
    assert kept("x") != kept("x")
    assert kept("x", b"salt") == kept("x", b"salt")
    assert "passcode" not in str(registry.list_modalities(bare))


def test_entering_a_modality_again_replaces_what_it_had_to_show(bare: Node) -> None:
    identity = Identity("jo", "x")
    registry.add_modality(
        bare, "CT1", certificates=[ONE], identity=identity, maximum_associations=2, tls_only=True
    )
    (row,) = registry.list_modalities(bare)
    assert (row["certificates"], row["user"], row["tls_only"]) == ([ONE], "jo", True)
    assert admit(bare, Caller("CT1", HERE, ONE, identity)).maximum_associations == 2
    registry.add_modality(bare, "CT1")
    assert admit(bare, Caller("CT1", HERE)) == Admission()


@pytest.mark.parametrize("identity", [Identity("", "x"), Identity("jo", "")])
def test_an_empty_user_or_passcode_is_refused(bare: Node, identity: Identity) -> None:
    with pytest.raises(ConfigurationError, match="may be empty"):
        registry.add_modality(bare, "CT1", identity=identity)
