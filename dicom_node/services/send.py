"""Owns what a destination needs to know of a file, and sending files as a modality would.

The latter for the demo, for `dicom-node send`, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Item, Sent
from dicom_node.errors import DeliveryFailed
from dicom_node.store.files import Folder
from dicom_node.store.tables import Instance, Result


def item_of(folder: Folder, row: Instance | Result) -> Item:
    """What a destination needs to know of a file that a row names."""
    return Item(
        path=folder.path(row.path),
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        transfer_syntax=row.transfer_syntax,
    )


def items_of(files: Sequence[Path]) -> list[Item]:
    """What a destination needs to know of Part 10 files."""
    items = []
    for path in files:
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
        items.append(
            Item(
                path=path,
                sop_class_uid=str(meta.MediaStorageSOPClassUID),
                sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
                transfer_syntax=str(meta.TransferSyntaxUID),
            )
        )
    return items


def send_files(
    files: Sequence[Path],
    *,
    host: str,
    port: int,
    called: str,
    calling: str,
    timeout: float = 30.0,
    on_each: Callable[[Item, Sent | DeliveryFailed], None] | None = None,
) -> list[DeliveryFailed]:
    """Send Part 10 files on one association.

    Args:
        files: what to send, in this order.
        host: where to.
        port: where to.
        called: AE title of the receiver.
        calling: AE title to send as.
        timeout: seconds for each answer.
        on_each: told of each answer as it comes.

    Returns:
        What was not accepted.
    """
    failed = []

    def record(item: Item, outcome: Sent | DeliveryFailed) -> None:
        if isinstance(outcome, DeliveryFailed):
            failed.append(outcome)
        if on_each is not None:
            on_each(item, outcome)

    DimseDestination(called, host, port, calling, timeout).send(items_of(files), record)
    return failed


def gather(paths: Sequence[Path]) -> tuple[list[Item], list[Path]]:
    """The Part 10 files among what is named, folders searched; and the files that are none.

    A DICOMDIR counts among the latter: it is no instance.
    """
    items: list[Item] = []
    skipped: list[Path] = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            try:
                (item,) = items_of([file])
            except Exception:  # whatever lies beside the images makes pydicom raise
                skipped.append(file)
                continue
            if item.sop_class_uid == MediaStorageDirectoryStorage:
                skipped.append(file)
            else:
                items.append(item)
    return items, skipped
