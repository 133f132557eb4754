"""Owns what administrators enter: modalities, destinations, routing rules.

Refuses to know how they are used. Every listing is plain data for the command to print.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from dicom_node.domain.delivery import Confirmation, Terms
from dicom_node.domain.model import ModelState, ModelVersion
from dicom_node.domain.profile import Profile
from dicom_node.domain.routing import Rule, parse_rules
from dicom_node.domain.selection import Criteria
from dicom_node.errors import ConfigurationError, NotFound
from dicom_node.services.admission import Identity, kept
from dicom_node.services.context import Node
from dicom_node.store.tables import Delivery, Destination, Modality, Model, RuleSet

MAXIMUM_AE_TITLE = 16
_OPTIONAL = {
    "dimse": frozenset({"tls", "tls_name"}),
    "dicomweb": frozenset(
        {"user", "secret_file", "secret_variable", "ca_file", "certificate", "key", "timeout"}
    ),
}


def model_version(row: Model) -> ModelVersion:
    """A stored model as the domain needs it."""
    selection: dict[str, Any] = row.manifest["select"]
    wishes: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in selection.items()}
    return ModelVersion(
        id=row.id,
        name=row.name,
        version=row.version,
        state=ModelState(row.state),
        criteria=Criteria(**wishes),
    )


def profile_of(config: Mapping[str, Any]) -> Profile:
    """In which forms the destination with this configuration gets results."""
    return Profile.parse(config.get("profile", {}))


def check_ae_title(title: str) -> str:
    """An AE title by PS3.5 section 6.2, stripped.

    Raises:
        ConfigurationError: too long, empty, or with characters that it may not have.
    """
    title = title.strip()
    printable = all(" " <= c <= "~" and c != "\\" for c in title)
    if not 1 <= len(title) <= MAXIMUM_AE_TITLE or not printable:
        raise ConfigurationError(
            f"{title!r} is no AE title: 1 to 16 ASCII characters, no backslash"
        )
    return title


def add_modality(
    node: Node,
    ae_title: str,
    addresses: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    *,
    certificates: Sequence[str] = (),
    tls_only: bool = False,
    identity: Identity | None = None,
    maximum_associations: int | None = None,
) -> None:
    """Let an AE title send to us; adding it again replaces what was told before.

    Args:
        addresses: networks that it may come from, as ``10.1.2.0/24`` or one address; none: any.
        host: where it takes associations from us (storage commitment answers).
        port: of ``host``.
        certificates: fingerprints or files, of which it must show one over TLS; none: any.
        tls_only: it may not come without TLS; so it is where certificates are named.
        identity: the user that it must name, with the passcode, of which a hash is kept.
        maximum_associations: at once, in each listener process.
    """
    title = check_ae_title(ae_title)
    try:
        networks = [str(ip_network(address, strict=False)) for address in addresses]
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    from dicom_node.dimse.tls import fingerprint_from

    if identity and not (identity.user and identity.passcode):
        raise ConfigurationError(f"modality {title!r}: neither user nor passcode may be empty")
    fingerprints = [fingerprint_from(given) for given in certificates]
    passcode = kept(identity.passcode) if identity else None
    with node.database.transaction() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == title))
        if row is None:
            row = Modality(ae_title=title)
            session.add(row)
        row.addresses, row.host, row.port = networks, host, port
        row.certificates, row.tls_only = fingerprints, tls_only
        row.user_name, row.passcode = identity.user if identity else None, passcode
        row.maximum_associations = maximum_associations


def remove_modality(node: Node, ae_title: str) -> None:
    """No longer let it send; what it sent stays."""
    with node.database.transaction() as session:
        row = session.scalar(select(Modality).where(Modality.ae_title == ae_title))
        if row is None:
            raise NotFound("modality", ae_title)
        session.delete(row)


def list_modalities(node: Node) -> list[dict[str, Any]]:
    """All, by AE title."""
    with node.database.reading() as session:
        rows = session.scalars(select(Modality).order_by(Modality.ae_title)).all()
    return [
        {
            "ae_title": r.ae_title,
            "addresses": r.addresses,
            "host": r.host,
            "port": r.port,
            "certificates": r.certificates,
            "tls_only": r.tls_only,
            "user": r.user_name,
            "maximum_associations": r.maximum_associations,
        }
        for r in rows
    ]


def add_destination(
    node: Node,
    name: str,
    kind: str,
    config: dict[str, Any],
    profile: Mapping[str, str] | None = None,
    terms: Mapping[str, Any] | None = None,
    archive: bool = False,
) -> None:
    """Name a place for results; adding it again replaces its configuration.

    Args:
        kind: ``dimse`` (config ae_title, host, port; perhaps tls, tls_name), ``dicomweb``
            (config url, and what `DicomwebDestination` has beside it) or ``folder`` (config path).
        profile: in which forms it gets results, where they are not the default ones.
        archive: it is asked, by C-FIND, whether it holds images before we purge what we committed.
        terms: how it is delivered to (``domain.delivery.Terms``), where that is not the default.

    Raises:
        ConfigurationError: an entry is missing or not known, or profile or terms make no sense.
    """
    # Listings load no network.
    from dicom_node.destinations.build import build

    needed = {"dimse": {"ae_title", "host", "port"}, "dicomweb": {"url"}, "folder": {"path"}}
    if kind not in needed:
        kinds = "dimse, dicomweb or folder"
        raise ConfigurationError(f"destination {name!r}: kind is {kinds}, not {kind!r}")
    if set(config) - _OPTIONAL.get(kind, frozenset()) != needed[kind]:
        raise ConfigurationError(f"destination {name!r}: {kind} needs {sorted(needed[kind])}")
    if kind == "dimse":
        config = {**config, "ae_title": check_ae_title(config["ae_title"])}
    if archive and kind != "dimse":
        raise ConfigurationError(f"destination {name!r}: a {kind} cannot be asked what it holds")
    try:
        build(kind, config, node.settings)
        told = Profile.parse(profile or {}).told()
        delivery = Terms.parse(terms or {})
        if delivery.commitment is Confirmation.COMMITMENT and kind != "dimse":
            raise ConfigurationError("only a PACS commits; --commitment query, or none")
    except ConfigurationError as error:
        raise ConfigurationError(f"destination {name!r}: {error}") from error
    with node.database.transaction() as session:
        row = session.scalar(select(Destination).where(Destination.name == name))
        if row is None:
            row = Destination(name=name)
            session.add(row)
        further = {"profile": told, "delivery": delivery.told(), "archive": archive}
        row.kind, row.config = kind, config | {k: v for k, v in further.items() if v}


def remove_destination(node: Node, name: str) -> None:
    """Forget a destination; refused while rules name it or deliveries remember it."""
    with node.database.transaction() as session:
        row = _destination(session, name)
        users = [rule.name for rule in rules_in_force(session) if name in rule.destinations]
        if users:
            raise ConfigurationError(f"destination {name!r} is named by rule {users[0]!r}")
        if session.scalar(select(exists().where(Delivery.destination_id == row.id))):
            raise ConfigurationError(
                f"destination {name!r} has deliveries; it stays, so that they stay explained"
            )
        session.execute(delete(Destination).where(Destination.id == row.id))


def list_destinations(node: Node) -> list[dict[str, Any]]:
    """All, by name."""
    with node.database.reading() as session:
        rows = session.scalars(select(Destination).order_by(Destination.name)).all()
    return [
        {
            "name": r.name,
            "kind": r.kind,
            **r.config,
            "profile": asdict(profile_of(r.config)),
            "delivery": asdict(Terms.parse(r.config.get("delivery", {}))),
            "failures": r.failures,
            "closed_until": r.closed_until,
        }
        for r in rows
    ]


def get_destination(node: Node, name: str) -> Destination:
    """One destination, by its name."""
    with node.database.reading() as session:
        return _destination(session, name)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read a rules file.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or a rule is wrong; says which and why.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    try:
        return parse_rules(document)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def apply_rules(node: Node, rules: Sequence[Rule]) -> None:
    """Put these rules in force, in place of those before.

    Raises:
        ConfigurationError: a rule names a model or destination that does not exist.
    """
    with node.database.transaction() as session:
        rows = session.execute(select(Model.name, Model.version)).all()
        models = {name for name, _ in rows} | {f"{name}@{version}" for name, version in rows}
        destinations = set(session.scalars(select(Destination.name)))
        for rule in rules:
            for kind, wanted, known in (
                ("model", rule.models, models),
                ("destination", rule.destinations, destinations),
            ):
                if missing := [name for name in wanted if name not in known]:
                    raise ConfigurationError(
                        f"rule {rule.name!r} names {kind} {missing[0]!r}, which does not exist; "
                        f"known are {', '.join(sorted(known)) or 'none'}"
                    )
        document = {"rule": [dict(rule.source) for rule in rules]}
        session.add(RuleSet(applied_at=node.now(), document=document))


def rules_in_force(session: Session) -> tuple[Rule, ...]:
    """The rules that were applied last."""
    row = session.scalar(select(RuleSet).order_by(RuleSet.id.desc()).limit(1))
    return parse_rules(row.document) if row else ()


def _destination(session: Session, name: str) -> Destination:
    row = session.scalar(select(Destination).where(Destination.name == name))
    if row is None:
        raise NotFound("destination", name)
    return row
