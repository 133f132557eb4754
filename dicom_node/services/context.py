"""Owns the building of a process's adapters, in one place; refuses to use any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from dicom_node.audit.recorder import Recorder
from dicom_node.settings import Settings
from dicom_node.store.database import Database
from dicom_node.store.files import Folder

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Node:
    """What a process of the node works with.

    Attributes:
        id: of this process, drawn at start; owner of its leases and temporary files.
        instances: received instances, and those in quarantine.
        results: objects that we built.
        bundles: model bundles, one folder per digest.
        audit: this process's way into the audit trail; `services.audit` says what goes there.
        now: the wall clock.
    """

    id: str
    role: str
    settings: Settings
    database: Database
    instances: Folder
    results: Folder
    audit: Recorder
    now: Clock = utc_now

    @classmethod
    def open(
        cls, settings: Settings, role: str, now: Clock = utc_now, own: str | None = None
    ) -> Node:
        """Build the adapters; nothing is listened to, nothing is sent.

        Args:
            settings: of the node.
            role: of this process.
            now: the wall clock.
            own: the id, of a child that works in its parent's name.
        """
        own = own or str(uuid4())
        settings.storage.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients' data
        folder, reserve = settings.storage.folder, settings.listener.reserve_mb << 20
        return cls(
            id=own,
            role=role,
            settings=settings,
            database=Database(settings.database_url),
            instances=Folder(folder / "instances", own, reserve),
            results=Folder(folder / "results", own),
            audit=Recorder(settings, role),
            now=now,
        )
