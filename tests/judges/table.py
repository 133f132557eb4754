"""Owns the table of judges who need no server; knows nothing of how any of them judges."""

from __future__ import annotations

from tests.attributes import attributes
from tests.judges.dcmtk import dsr2html, dsrdump
from tests.judges.dicom3tools import dciodvfy
from tests.judges.qiicr import dcmqi
from tests.judges.readback import readback
from tests.judges.types import Judge, NotApplicable, Origin, Verdict, kind_of, parse
from tests.tid1500 import complaints

NO_CONTENT = NotApplicable("no structured report, so no template")


def templates(data: bytes, origin: Origin) -> Verdict:
    """The report keeps the rows of PS3.16 (`tests.tid1500`)."""
    dataset = parse(data)
    return complaints(dataset) if kind_of(dataset) == "sr" else NO_CONTENT


JUDGES: dict[str, Judge] = {
    "dciodvfy": dciodvfy,
    "dsrdump": dsrdump,
    "dsr2html": dsr2html,
    "dcmqi": dcmqi,
    "pydicom, highdicom": readback,
    "TID 1500": templates,
    "attributes": attributes,
}
"""Those who need no server; `tests.judges.archive.Archive` has two more."""
