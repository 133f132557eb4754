"""Data sets on their way into a node, for tests of its services; and a look at what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID
from sqlalchemy import Select, func, select

from dicom_node.services import receive
from dicom_node.services.context import Node
from dicom_node.services.receive import Outcome, Reception
from dicom_node.store.tables import Base

T = TypeVar("T", bound=Base)


def encode(dataset: Dataset, syntax: str | None = None) -> bytes:
    """The data set's bytes without file meta information, in its own syntax by default."""
    chosen = UID(syntax or dataset.file_meta.TransferSyntaxUID)
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = chosen.is_implicit_VR, True
    write_dataset(stream, dataset)
    return stream.getvalue()


def request(
    dataset: Dataset, association: int, data: bytes | None = None, syntax: str | None = None
) -> Reception:
    """The C-STORE request of a data set; ``data`` are other bytes than its own."""
    return Reception(
        encode(dataset, syntax) if data is None else data,
        syntax or str(dataset.file_meta.TransferSyntaxUID),
        str(dataset.SOPClassUID),
        str(dataset.SOPInstanceUID),
        association,
    )


def opened(node: Node, calling: str = "CT1") -> int:
    return receive.open_association(node, calling, "DICOMNODE", "127.0.0.1")


def arrive(node: Node, *datasets: Dataset, calling: str = "CT1") -> list[Outcome]:
    """All on one association, which closes in order; refusals are raised."""
    association = opened(node, calling)
    outcomes = [receive.receive_instance(node, request(ds, association)) for ds in datasets]
    receive.close_association(node, association, aborted=False)
    return outcomes


def all_of(node: Node, table: type[T], *where: Any) -> Sequence[T]:
    """Rows by id."""
    query: Select[Any] = select(table).where(*where).order_by(*table.__table__.primary_key)
    with node.database.reading() as session:
        return session.scalars(query).all()


def one(node: Node, table: type[T], *where: Any) -> T:
    (row,) = all_of(node, table, *where)
    return row


def count(node: Node, table: type[Base], *where: Any) -> int:
    with node.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where)) or 0


def files_of(node: Node) -> list[Path]:
    """Every file of instances and results, temporary ones included."""
    roots = (node.instances.root, node.results.root)
    return sorted(path for root in roots for path in root.rglob("*") if path.is_file())
