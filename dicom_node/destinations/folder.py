"""Owns delivery into a folder, for tests and for PACS that import files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_node.destinations.types import EchoResult, Item, OnResult, Sent
from dicom_node.dimse.contexts import is_uid
from dicom_node.errors import DeliveryFailed, Retry


@dataclass(frozen=True)
class FolderDestination:
    """A folder that gets one ``<SOP Instance UID>.dcm`` an item; made where it is missing."""

    folder: Path

    def send(self, items: Sequence[Item], on_result: OnResult) -> None:
        """Copy each file; it is durable, and under its name only when whole."""
        for item in items:
            try:
                self._put(item)
            except DeliveryFailed as failure:
                on_result(item, failure)
            except OSError as error:
                on_result(item, DeliveryFailed(f"folder: {error.strerror}", Retry.LATER))
            else:
                on_result(item, Sent(0, item.transfer_syntax))

    def _put(self, item: Item) -> None:
        if not is_uid(item.sop_instance_uid) or not item.sop_instance_uid.strip("."):
            raise DeliveryFailed("SOP Instance UID is not a UID", Retry.NEVER)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The suffix keeps an importer that looks for *.dcm away from half a file.
        descriptor, name = tempfile.mkstemp(suffix=".part", dir=self.folder)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target, item.path.open("rb") as source:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
            temporary.chmod(0o644)
            temporary.replace(self.folder / _name(item))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def echo(self) -> EchoResult:
        """Whether a file can be made there."""
        started = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                fault = ""
        except OSError as error:
            fault = f"folder: {error.strerror}"
        return EchoResult(not fault, fault, time.monotonic() - started)

    def confirm(self, items: Sequence[Item]) -> set[str]:
        """Those whose file is there, unless the PACS has taken any away: then it cannot be said.

        Raises:
            DeliveryFailed: a file is gone.
        """
        held = {i.sop_instance_uid for i in items if (self.folder / _name(i)).is_file()}
        if len(held) < len({item.sop_instance_uid for item in items}):
            raise DeliveryFailed("a folder does not tell what was taken from it", Retry.NEVER)
        return held


def _name(item: Item) -> str:
    return f"{item.sop_instance_uid}.dcm"
