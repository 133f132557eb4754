"""Owns the node's settings: one frozen object, read once; refuses to act on any of them.

One TOML file (``dicom-node init`` writes it with every field explained) and environment
variables ``DICOM_NODE_<SECTION>__<FIELD>`` (which win). Unknown keys and bad values are refused
by name. Every field's description gives its unit and its reason; ``init`` and the docs are
generated from here.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from dicom_node.errors import ConfigurationError

CONFIG_VARIABLE = "DICOM_NODE_CONFIG"
AeTitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?$")
]
Seconds = Annotated[float, Field(ge=0)]
Days = Annotated[float, Field(ge=0)]
PublicKey = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")
]
"""A name and the 32 bytes of an Ed25519 public key in base64."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenerSettings(_Section):
    """Who we are to the modalities, and how much we take."""

    ae_title: AeTitle = Field(
        "DICOMNODE", description="our AE title; other called titles are rejected (1,1,7)"
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for the hospital's network"
    )
    port: int = Field(
        11112, ge=0, le=65535, description="TCP port; 104 is DICOM's own and needs a privilege"
    )
    storage_commitment: bool = Field(
        False,
        description="promise modalities to keep what they sent (SCP): it is then never purged "
        "before a destination flagged as archive tells that it holds it",
    )
    processes: int = Field(
        1, ge=1, le=32, description="listener processes that share the one listening socket"
    )
    maximum_associations: int = Field(
        64, ge=1, description="per process; more are rejected (2,3,2), to come again"
    )
    maximum_connections: int = Field(
        256, ge=1, description="TCP connections per process, associated or not"
    )
    maximum_connections_per_address: int = Field(
        48,
        ge=1,
        description="of them from one address: fewer than maximum_associations, so that one sender "
        "cannot take all places",
    )
    association_timeout: Seconds = Field(
        30,
        gt=0,
        description="seconds for a peer to finish its TLS handshake and its A-ASSOCIATE-RQ",
    )
    idle_timeout: Seconds = Field(
        120,
        gt=0,
        description="seconds without a byte before an association is aborted; inside a message, "
        "seconds of waiting beyond what 4 KiB/s would take",
    )
    maximum_pdu: int = Field(
        262144, ge=4096, le=4194304, description="bytes of a PDU that we offer to take"
    )
    maximum_object_mb: int = Field(
        4096, ge=1, description="MiB of one data set; larger ones get 0xC00x"
    )
    reserve_mb: int = Field(
        512, ge=0, description="MiB to be kept free on the data disk; below it: 0xA700"
    )


class TlsSettings(_Section):
    """TLS 1.2 and 1.3 with certificates on both sides: certificate, key and CA belong together."""

    certificate: str = Field(
        "",
        description="PEM file of our certificate and what stands between it and the CA; "
        "empty: no TLS",
    )
    key: str = Field(
        "",
        description="PEM file of its private key, without a passphrase, for the node's user only",
    )
    ca: str = Field(
        "", description="PEM file of the CAs whose certificates peers must show, both ways"
    )
    crl: str = Field(
        "", description="PEM file of those CAs' revocation lists; empty: revocation is not asked"
    )
    port: int = Field(2762, ge=0, le=65535, description="TCP port for associations over TLS")
    listen: Literal["both", "tls", "plain"] = Field(
        "both",
        description="which ports are open where there is a certificate: tls closes "
        "`listener.port`; plain uses TLS toward destinations only",
    )

    @model_validator(mode="after")
    def _together(self) -> TlsSettings:
        """Half of it would be a listener that cannot be spoken to; paths must not move."""
        files = {name: getattr(self, name) for name in ("certificate", "key", "ca")}
        missing = [name for name, path in files.items() if not path]
        if any(files.values()) and missing:
            raise ValueError(f"certificate, key and ca belong together: {missing[0]} is missing")
        if self.listen == "tls" and missing:
            raise ValueError("listen is tls, and there is no certificate: nothing would be open")
        for name in (*files, "crl"):
            if path := getattr(self, name):
                object.__setattr__(self, name, str(Path(path).expanduser().absolute()))
        return self

    @property
    def configured(self) -> bool:
        """Whether there is a certificate."""
        return bool(self.certificate)

    @property
    def ports(self) -> frozenset[Literal["tls", "plain"]]:
        """Which ports take associations."""
        if not self.configured or self.listen == "plain":
            return frozenset({"plain"})
        return frozenset({"tls"} if self.listen == "tls" else {"tls", "plain"})


class QuietPeriod(_Section):
    """How long a study must be quiet before it counts as complete; the first match wins."""

    modality: str | None = Field(None, description="DICOM modality, such as CT")
    ae_title: str | None = Field(
        None, description="calling AE title, such as that of a forwarding PACS"
    )
    station: str | None = Field(None, description="StationName (0008,1010)")
    seconds: Seconds = Field(
        description="quiet seconds after the last instance and the last association"
    )


class CompletionSettings(_Section):
    """When a study counts as complete."""

    quiet: tuple[QuietPeriod, ...] = Field(
        (
            QuietPeriod(modality="DX", seconds=5),
            QuietPeriod(modality="CR", seconds=5),
            QuietPeriod(modality="MG", seconds=15),
            QuietPeriod(modality="CT", seconds=30),
            QuietPeriod(modality="MR", seconds=60),
        ),
        description="first match wins",
    )
    default_quiet: Seconds = Field(30, description="seconds, where no entry of `quiet` matches")
    single_image_modalities: tuple[str, ...] = Field(
        ("DX", "CR"),
        description="a complete image of these may start its job when its association closes",
    )
    hard_cap: Seconds = Field(
        1800,
        description="seconds after the first instance of a revision: go on, labelled incomplete",
    )


class StorageSettings(_Section):
    """Where things are kept."""

    folder: Path = Field(
        Path("node-data"),
        description="instances, results, bundles; one file system shared by all roles",
    )
    database: str = Field(
        "",
        description="SQLAlchemy URL, as postgresql+psycopg://user@host/name; empty: SQLite",
    )


class BrokerSettings(_Section):
    """Redis carries nudges only; it may be lost at any time."""

    url: str = Field(
        "",
        description="redis://host:6379/0; empty: `up` runs a private one on a unix socket",
    )
    socket_timeout: Seconds = Field(
        3, description="seconds before a frozen Redis is given up for this nudge"
    )


class WorkerSettings(_Section):
    """How models run."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto takes the first CUDA device, else the CPU",
    )
    processes: int = Field(1, ge=1, description="worker processes that `up` starts")
    model_memory_mb: int = Field(
        2048, ge=64, description="MiB for warm models per process; the least used leaves first"
    )
    batch: int = Field(8, ge=1, le=256, description="jobs claimed at once, beyond the most urgent")
    lease: Seconds = Field(
        60,
        gt=0,
        description="seconds without a heartbeat after which a job is given to another worker",
    )
    job_deadline: Seconds = Field(
        900,
        gt=0,
        description="seconds after which a claimed job counts as hung; the process it runs in ends",
    )
    memory_mb: int = Field(
        8192,
        ge=2048,
        description="MiB of main memory for reading images and running models, per process; "
        "a job that needs more fails",
    )
    attempts: int = Field(
        3, ge=1, description="claims before a job that kills its worker goes to the dead letters"
    )
    ageing: Seconds = Field(
        300,
        gt=0,
        description="seconds of waiting that lift a job one priority step: routine never starves",
    )


class ModelSettings(_Section):
    """Whose models run: those that come with the package, and those that a key named here signed.

    Read when a process starts: restart the workers after a change.
    """

    trusted_keys: tuple[PublicKey, ...] = Field(
        (), description="NAME:KEY, as `dicom-node models keygen` prints it; none: only shipped ones"
    )
    revoked_keys: tuple[PublicKey, ...] = Field(
        (), description="in the same form; what they signed is refused, and runs no more"
    )


class RetentionSettings(_Section):
    """How long files stay once nothing needs them any more; their rows stay for ever.

    Nothing goes before its study is closed, its jobs are over and its results are delivered. The
    default keeps everything: whether another place holds the images is the hospital's to know.
    """

    instances: Days = Field(
        0, description="days after a study's last instance came; 0: its images stay"
    )
    results: Days = Field(0, description="days after a job's results were built; 0: they stay")
    quarantine: Days = Field(
        0, description="days after an instance in quarantine was settled; 0: it stays"
    )
    interval: Seconds = Field(3600, gt=0, description="seconds between two purges")

    @property
    def anything(self) -> bool:
        """Whether anything goes at all."""
        return bool(self.instances or self.results or self.quarantine)


class DeliverySettings(_Section):
    """How results leave."""

    timeout: Seconds = Field(
        30,
        gt=0,
        description="seconds for each answer of a destination, and each write to its socket",
    )
    backoff: Seconds = Field(
        5, gt=0, description="seconds before the second attempt; doubled each time, with jitter"
    )
    backoff_max: Seconds = Field(
        600, gt=0, description="seconds; the longest wait between two attempts"
    )
    attempts: int = Field(
        50, ge=1, description="attempts before a delivery goes to the dead letters"
    )
    commitment_timeout: Seconds = Field(
        300, gt=0, description="seconds without an answer before a destination is asked again"
    )
    commitment_attempts: int = Field(
        2, ge=1, description="requests for storage commitment before the destination is queried"
    )
    breaker_failures: int = Field(
        3,
        ge=1,
        description="connections that fail, one after the other, before only a C-ECHO is tried",
    )


class SchedulerSettings(_Section):
    """How often the node looks after itself."""

    interval: Seconds = Field(0.25, gt=0, description="seconds between two rounds")
    nudge_after: Seconds = Field(
        10, gt=0, description="seconds that ready work may wait before it is nudged again"
    )
    canary: Seconds = Field(
        30,
        description="seconds between two questions to a queue whether it is served; 0 asks none",
    )


class LogSettings(_Section):
    """Logs name UIDs and AE titles, never a patient."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least severe level written"
    )
    json_lines: bool = Field(
        True, description="one JSON object a line on stderr; false: for a person's eyes"
    )


class AuditSettings(_Section):
    """Who did what: the audit trail by DICOM PS3.15 A.5."""

    enabled: bool = Field(True, description="false: nothing is audited at all")
    folder: str = Field(
        "", description="the log, readable by the node alone; empty: `audit` below storage.folder"
    )
    patient_id: Literal["plain", "hashed"] = Field(
        "plain",
        description="plain: the Patient ID, as PS3.15 wants it: the trail has to answer who saw "
        "this patient's images, and a hash that looks like a number would mislead who reads it. "
        "hashed: HMAC-SHA256 under node_salt, with a type code of its own, which answers only to "
        "who knows the number and the salt",
    )
    accepted: bool = Field(
        False, description="true: accepted associations too, not only what was transferred"
    )
    source_id: str = Field("", description="AuditSourceID; empty: our AE title")
    site: str = Field("", description="AuditEnterpriseSiteID, where the receiver serves several")
    rotate_mb: int = Field(
        64, ge=1, description="MiB after which a new file is begun; no file is ever removed"
    )
    receiver: str = Field(
        "", description="host of the audit repository (syslog over TLS); empty: none"
    )
    port: int = Field(6514, ge=1, le=65535, description="its TCP port; 6514 is RFC 5425's")
    ca: str = Field(
        "", description="PEM file that its certificate is checked by; empty: the system's"
    )
    certificate: str = Field(
        "", description="PEM file of our own certificate, for mutual TLS; empty: none is shown"
    )
    key: str = Field("", description="PEM file of its key, without a password")
    confirm: bool = Field(
        True,
        description="records count as shipped when the receiver has returned close_notify, as RFC "
        "5425 demands of it; false for one that does not: a crash of it may then lose some",
    )
    timeout: Seconds = Field(10, gt=0, description="seconds for each step of shipping")
    backoff_max: Seconds = Field(
        60, gt=0, description="seconds; the longest wait for a receiver that is away"
    )


class Settings(BaseSettings):
    """Everything that an operator can choose."""

    model_config = SettingsConfigDict(
        env_prefix="DICOM_NODE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    node_salt: str = Field("", description="makes result UIDs this node's own; `init` draws one")
    listener: ListenerSettings = ListenerSettings()
    tls: TlsSettings = TlsSettings()
    completion: CompletionSettings = CompletionSettings()
    storage: StorageSettings = StorageSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    models: ModelSettings = ModelSettings()
    delivery: DeliverySettings = DeliverySettings()
    retention: RetentionSettings = RetentionSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    log: LogSettings = LogSettings()
    audit: AuditSettings = AuditSettings()

    @model_validator(mode="after")
    def _absolute_folder(self) -> Settings:
        """Child processes may start elsewhere; the folder must not move with them."""
        folder = self.storage.folder.expanduser().absolute()
        object.__setattr__(self, "storage", self.storage.model_copy(update={"folder": folder}))
        return self

    @model_validator(mode="after")
    def _hash_with_a_key(self) -> Settings:
        """Patient IDs are short: a hash that anybody can compute hides nothing."""
        if self.audit.patient_id == "hashed" and not self.node_salt:
            raise ValueError("audit.patient_id is hashed, which needs node_salt")
        return self

    @property
    def database_url(self) -> str:
        """The database to use: the one given, or SQLite in the folder."""
        return self.storage.database or f"sqlite:///{self.storage.folder / 'node.sqlite'}"

    @property
    def audit_folder(self) -> Path:
        """Where the audit log lies."""
        folder = self.audit.folder
        return Path(folder).expanduser().absolute() if folder else self.storage.folder / "audit"

    @property
    def broker_url(self) -> str:
        """The broker to use: the one given, or the embedded one's unix socket."""
        return self.broker.url or f"redis+socket://{self.embedded_redis_socket}"

    @property
    def embedded_redis_socket(self) -> Path:
        """Where the embedded Redis listens; short, for sun_path holds 107 bytes."""
        inside = self.storage.folder / "redis.sock"
        if len(str(inside)) <= 100:
            return inside
        name = sha256(str(self.storage.folder).encode()).hexdigest()[:16]
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/dicom-node-{os.getuid()}")  # noqa: S108 - made with mode 0700 by the supervisor, which refuses one that is not ours
        return runtime / f"{name}.sock"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file named by ``DICOM_NODE_CONFIG``."""
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if path := os.environ.get(CONFIG_VARIABLE):
            sources.append(TomlConfigSettingsSource(settings_cls, Path(path)))
        return tuple(sources)


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings from file and environment, once.

    Args:
        path: the TOML file; None takes ``DICOM_NODE_CONFIG``, then ``./dicom-node.toml``.
        overrides: whole sections that win over both.

    Raises:
        ConfigurationError: names each key that is unknown or has a bad value.
    """
    chosen = path or (Path(p) if (p := os.environ.get(CONFIG_VARIABLE)) else None)
    if chosen is None and Path("dicom-node.toml").exists():
        chosen = Path("dicom-node.toml")
    if chosen is not None:
        if not chosen.is_file():
            raise ConfigurationError(
                f"no configuration file {chosen}; `dicom-node init` writes one"
            )
        os.environ[CONFIG_VARIABLE] = str(chosen.absolute())  # children read the same file
    _refuse_unknown_variables()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        raise ConfigurationError(f"{chosen or 'environment'}: {faults}") from error
    except ValueError as error:  # not TOML at all
        raise ConfigurationError(f"{chosen}: {error}") from error


def _refuse_unknown_variables() -> None:
    """pydantic-settings ignores misspelt variables silently; a hospital must not."""
    known = {CONFIG_VARIABLE, "DICOM_NODE_DATA"}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            known.add(f"DICOM_NODE_{name}".upper())
            known |= {f"DICOM_NODE_{name}__{sub}".upper() for sub in kind.model_fields}
        else:
            known.add(f"DICOM_NODE_{name}".upper())
    unknown = sorted(
        v for v in os.environ if v.startswith("DICOM_NODE_") and v.upper() not in known
    )
    if unknown:
        raise ConfigurationError(f"unknown environment variables: {', '.join(unknown)}")
