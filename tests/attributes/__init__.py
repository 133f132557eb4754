"""Checks the attributes of result objects against ``results.md``, as one table; trusts no builder.

`TABLE` holds a row for each thing that an object must have: what, which kinds of objects, the
check, and where it is written: a section of PS3.3, PS3.5 or PS3.10, "IHE AIR" (AI Results), or
"results.md" for a rule of our own. ``dciodvfy`` knows which attributes an object may have; these
rows know what must be in them, given the source and the prediction. Refuses to know the rows of
report templates: `tests.tid1500` holds those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.attributes import description, ownership, reports, segmentations
from tests.attributes.case import Case
from tests.judges.types import Origin, Verdict, kind_of, parse


class Row(NamedTuple):
    """What, of which objects, how to see it, and who says so."""

    what: str
    kinds: str
    check: Callable[[Case], Iterable[str]]
    where: str


def attributes(data: bytes, origin: Origin) -> Verdict:
    """Each complaint names its row and who says so."""
    case = Case(parse(data), origin)
    kind = kind_of(case.data)
    found = []
    for row in TABLE:
        if kind in row.kinds.split():
            try:
                wrong = list(row.check(case))
            except (AttributeError, KeyError, IndexError) as error:
                wrong = [f"{type(error).__name__}: {error}"]
            found += [f"{row.what}: {one} ({row.where})" for one in wrong]
    return found


ALL = "seg sr sc"
TABLE = (
    Row("patient", ALL, ownership.same(*ownership.PATIENT),
        "PS3.3 C.7.1.1; results.md: copied unchanged"),
    Row("Patient's Sex", ALL, ownership.sex,
        "PS3.3 C.7.1.1; results.md: empty outside its enumeration"),
    Row("study", ALL, ownership.same(*ownership.STUDY),
        "PS3.3 C.7.2.1, C.7.2.2; results.md: copied unchanged"),
    Row("type 2 of patient and study", ALL, ownership.type_2, "PS3.3 C.7.1.1, C.7.2.1"),
    Row("Timezone Offset From UTC", ALL, ownership.time_zone, "PS3.3 C.12.1.1.8; results.md"),
    Row("content date and time", ALL, ownership.content_time, "results.md: in the source's offset"),
    Row("Specific Character Set", ALL, ownership.character_set,
        "PS3.3 C.12.1.1.2; results.md: ISO_IR 192"),
    Row("Modality", ALL, description.modality, "PS3.3 C.7.3.1.1.1; results.md"),
    Row("Series Description", ALL, description.series_description, "PS3.5 6.2 (LO); results.md"),
    Row("series", ALL, description.series, "results.md: one series per kind of output and model"),
    Row("UIDs", ALL, description.uids, "PS3.5 B.2; results.md: 2.25. and a UUID of version 8"),
    Row("file meta", ALL, description.file_meta, "PS3.10 7.1"),
    Row("equipment", ALL, description.equipment, "PS3.3 C.7.5.1, C.7.5.2"),
    Row("Contributing Equipment", ALL, description.contributing,
        "PS3.3 C.12.1; IHE AIR: one per algorithm"),
    Row("Device UID", ALL, description.one_device, "IHE AIR: the same in observer and equipment"),
    Row("lossy compression", "seg sc", description.lossy, "PS3.3 C.7.6.1.1.5"),
    Row("derivation of each frame", "seg", segmentations.derivation,
        "PS3.3 C.7.6.16.2.6; results.md"),
    Row("Frame of Reference UID", "seg", segmentations.frame_of_reference,
        "PS3.3 C.7.4.1; results.md"),
    Row("geometry", "seg", segmentations.geometry,
        "PS3.3 C.7.6.16.2.1, .3, .4; results.md: within 1e-4 mm"),
    Row("placeholders", "seg", segmentations.placeholders,
        "results.md: projections have no place in the patient"),
    Row("Patient Orientation", "seg", segmentations.patient_orientation,
        "PS3.3 C.7.6.1; results.md"),
    Row("segments", "seg", segmentations.segments, "PS3.3 C.8.20.4"),
    Row("algorithm", "seg", segmentations.algorithm,
        "PS3.3 C.8.20.2, 10.16; IHE AIR; results.md: AUTOMATIC"),
    Row("recommended colour", "seg", segmentations.colours, "PS3.3 C.8.20.4; results.md"),
    Row("Referenced Series", "seg", segmentations.referenced_series,
        "PS3.3 C.12.2; OHIF shows none without"),
    Row("Segments Overlap", "seg", segmentations.overlap, "PS3.3 C.8.20.2"),
    Row("Segmentation Type", "seg", segmentations.encoding, "PS3.3 C.8.20.2.3, A.51"),
    Row("dimension indices", "seg", segmentations.dimensions, "PS3.3 C.7.6.17"),
    Row("tracking", "seg sr", reports.shared_tracking,
        "PS3.3 C.8.20.4; IHE AIR: SEG and SR share it"),
    Row("flags", "sr", reports.flags, "PS3.3 C.17.2; results.md: never VERIFIED"),
    Row("evidence", "sr", reports.evidence, "PS3.3 C.17.2, C.17.2.3"),
    Row("image library", "sr", reports.library, "results.md: all inputs that were used"),
    Row("Procedure Reported", "sr", reports.procedure, "IHE AIR; results.md"),
    Row("Predecessor Documents", "sr", reports.predecessor, "PS3.3 C.17.2; results.md"),
    Row("research use", "sr", reports.research, "results.md: in the text too"),
    Row("verdicts", "sr", reports.never_silent, "IHE AIR; results.md: never silence"),
    Row("algorithm", "sr", reports.algorithms,
        "IHE AIR; results.md: name, version, parameters (TID 4019)"),
    Row("numbers", "sr", reports.numbers, "results.md: a group repeats no number"),
    Row("boxes", "sr", reports.boxes, "IHE AIR: locations"),
    Row("outlines", "sr", reports.outlines, "PS3.3 C.18.6.1.2"),
    Row("frame numbers", "sr", reports.frame_numbers, "PS3.3 C.18.4"),
    Row("code meanings", "sr", reports.code_meanings, "PS3.3 8.8, PS3.16 D; results.md"),
    Row("secondary capture", "sc", description.capture, "PS3.3 C.8.6.1, C.7.6.1; results.md"),
    Row("no place in the patient", "sc", description.no_millimetres, "PS3.3 A.8.1"),
)  # fmt: skip
