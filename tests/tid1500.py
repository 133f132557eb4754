"""Checks the content of a report against the rows of its templates; trusts nothing of `report.py`.

``dciodvfy`` and ``dsrdump`` know value types and relationships, not templates. The tables below
are those rows of PS3.16 (2026a) that a report of ours may have, each with its place in the
standard, what it may be and how often. "INCLUDE" rows are written out: "TID 4019 row 1, by TID
1501 row 9b" is row 1 of TID 4019 as row 9b of TID 1501 brings it in. Where ``results.md`` asks for
more than the standard, the row says so. What a template does not name is allowed only where it is
extensible, and has a row here that says "extension".

Refuses to know attributes outside the content tree: `tests.attributes` holds those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

ANY = None
MANY = 10**6
CONTAINS, MOD = "CONTAINS", "HAS CONCEPT MOD"
OBS, ACQ = "HAS OBS CONTEXT", "HAS ACQ CONTEXT"
INFERRED, SELECTED, PROPERTIES = "INFERRED FROM", "SELECTED FROM", "HAS PROPERTIES"


BELOW = "extension of TID 1500 rows 13 and 14"
"""What a measurement group says of a finding without a place, said below an evaluation. HAS
PROPERTIES where a group HAS OBS CONTEXT: an Enhanced SR has that below containers only."""


class Row(NamedTuple):
    """A row of a template: where it stands, what it allows, how often."""

    where: str
    relationship: str
    value_type: str
    concept: str | None
    least: int
    most: int
    below: str | None = None
    """The table of its children; none are allowed where there is no table."""
    values: frozenset[str] | None = None
    """Codes that a CODE may have; any where None."""


def _codes(context_group: str) -> frozenset[str]:
    """A context group as pydicom knows it, each "value scheme"."""
    group = getattr(codes, context_group)
    return frozenset(f"{code.value} {code.scheme_designator}" for code in group.concepts.values())


TITLES = _codes("cid7021")
OTHER_TITLE = "111017 DCM"
"""CAD Processing and Findings Summary, of a report without a measurement group: CID 7021 is
extensible, and viewers show the words of no report with one of its own titles."""
LATERALITIES = _codes("cid244")


def _algorithm(by: str) -> tuple[Row, ...]:
    """TID 4019 Algorithm Identification; name and version in every group (results.md)."""
    return (
        Row(f"TID 4019 row 1, by {by} (results.md)", MOD, "TEXT", "111001 DCM", 1, 1),
        Row(f"TID 4019 row 1b, by {by}", MOD, "CODE", "111001 DCM", 0, 1),
        Row(f"TID 4019 row 2, by {by} (results.md)", MOD, "TEXT", "111003 DCM", 1, 1),
        Row(f"TID 4019 row 2b, by {by}", MOD, "TEXT", "122405 DCM", 0, 1),
        Row(f"TID 4019 row 3, by {by}", MOD, "TEXT", "111002 DCM", 0, MANY),
        Row(f"TID 4019 row 4, by {by}", MOD, "CODE", "111000 DCM", 0, 1),
    )


def _tracking(tid: str) -> tuple[Row, ...]:
    """Rows that TID 1410, 1411 and 1501 have under the same numbers."""
    return (
        Row(f"TID {tid} row 1b", OBS, "TEXT", "C67447 NCIt", 0, 1),
        Row(f"TID {tid} row 2 (results.md)", OBS, "TEXT", "112039 DCM", 1, 1),
        Row(f"TID {tid} row 3 (results.md)", OBS, "UIDREF", "112040 DCM", 1, 1),
        Row(f"TID {tid} row 3a", CONTAINS, "CODE", "276214006 SCT", 0, 1),
        Row(f"TID {tid} row 3b", CONTAINS, "CODE", "121071 DCM", 0, 1),
    )


def _of_region(tid: str) -> tuple[Row, ...]:
    """What TID 1419 adds to a group about a region.

    Its row 5 (NUM) is mandatory; a group that only refers to a segmentation and repeats no number
    (results.md) has site and algorithm all the same: both templates are extensible.
    """
    by = {"1410": "TID 1410 row 11", "1411": "TID 1411 row 15"}[tid]
    return (
        Row(f"TID 1419 row 1, by {by}", MOD, "CODE", "370129005 SCT", 0, 1),
        Row(f"TID 1419 row 2, by {by}", MOD, "CODE", "363698007 SCT", 0, MANY, "site of region"),
        *_algorithm(f"TID 1419 row 4b and {by}"),
        Row(f"TID 1419 row 5, by {by}", CONTAINS, "NUM", ANY, 0, MANY, "number of region"),
    )


TEMPLATES: dict[str, tuple[Row, ...]] = {
    "1500": (
        Row("TID 1204 row 1, by TID 1500 row 2 (results.md)", MOD, "CODE", "121049 DCM", 1, 1,
            "language"),
        Row("TID 1002 row 1, by TID 1001 row 1 and TID 1500 row 3", OBS, "CODE", "121005 DCM", 1, 1,
            None, frozenset({"121007 DCM"})),
        Row("TID 1004 row 1, by TID 1002 row 3", OBS, "UIDREF", "121012 DCM", 1, 1),
        Row("TID 1004 row 2, by TID 1002 row 3", OBS, "TEXT", "121013 DCM", 0, 1),
        Row("TID 1004 row 3, by TID 1002 row 3", OBS, "TEXT", "121014 DCM", 0, 1),
        Row("TID 1004 row 4, by TID 1002 row 3", OBS, "TEXT", "121015 DCM", 0, 1),
        Row("TID 1004 row 5, by TID 1002 row 3", OBS, "TEXT", "121016 DCM", 0, 1),
        Row("TID 1004 row 6, by TID 1002 row 3", OBS, "TEXT", "121017 DCM", 0, 1),
        Row("TID 1004 row 7, by TID 1002 row 3", OBS, "CODE", "113876 DCM", 0, MANY),
        Row("TID 1004 row 8, by TID 1002 row 3", OBS, "TEXT", "110119 DCM", 0, 1),
        Row("TID 1500 row 4 (IHE AIR)", MOD, "CODE", "121058 DCM", 1, MANY),
        Row("TID 1600 row 1, by TID 1500 row 5 (results.md)", CONTAINS, "CONTAINER", "111028 DCM",
            1, 1, "library"),
        Row("TID 1500 row 6", CONTAINS, "CONTAINER", "126010 DCM", 0, 1, "measurements"),
        Row("TID 1500 row 12", CONTAINS, "CONTAINER", "C0034375 UMLS", 0, 1, "evaluations"),
    ),
    "language": (Row("TID 1204 row 2", MOD, "CODE", "121046 DCM", 0, 1),),
    "library": (
        Row("TID 1600 row 2 (results.md)", CONTAINS, "CONTAINER", "126200 DCM", 1, MANY,
            "library group"),
    ),
    "library group": (
        Row("TID 1602 row 1, by TID 1600 row 3", ACQ, "CODE", "121139 DCM", 0, 1, None,
            _codes("cid29")),
        Row("TID 1602 row 2, by TID 1600 row 3", ACQ, "CODE", "123014 DCM", 0, 1),
        Row("TID 1602 row 3, by TID 1600 row 3", ACQ, "CODE", "111027 DCM", 0, 1, None,
            LATERALITIES),
        Row("TID 1602 row 4, by TID 1600 row 3", ACQ, "DATE", "111060 DCM", 0, 1),
        Row("TID 1602 row 5, by TID 1600 row 3", ACQ, "TIME", "111061 DCM", 0, 1),
        Row("TID 1602 row 10, by TID 1600 row 3", ACQ, "UIDREF", "112227 DCM", 0, 1),
        Row("TID 1601 row 1, by TID 1600 row 4 (results.md)", CONTAINS, "IMAGE", ANY, 1, MANY),
    ),
    "measurements": (
        *(row._replace(least=0) for row in _algorithm("TID 1500 row 6b")),
        Row("TID 1500 rows 7, 8, 9", CONTAINS, "CONTAINER", "125007 DCM", 1, MANY, "group"),
    ),
    "evaluations": (
        *(row._replace(least=0) for row in _algorithm("TID 1500 row 12b")),
        Row("TID 1500 row 13", CONTAINS, "CODE", ANY, 0, MANY, "evaluation"),
        Row("TID 1500 row 14", CONTAINS, "TEXT", ANY, 0, MANY, "evaluation"),
    ),
    "evaluation": (
        Row(f"{BELOW}, as TID 1501 row 2", PROPERTIES, "TEXT", "112039 DCM", 0, 1),
        Row(f"{BELOW}, as TID 1501 row 3", PROPERTIES, "UIDREF", "112040 DCM", 0, 1),
        Row(f"{BELOW}, as TID 1501 row 3a", PROPERTIES, "CODE", "276214006 SCT", 0, 1),
        Row(f"{BELOW}, as TID 1501 row 6", MOD, "CODE", "363698007 SCT", 0, MANY, "site"),
        *(row._replace(least=0) for row in _algorithm(f"{BELOW}, as TID 1501 row 9b")),
        Row(f"{BELOW}, as TID 1501 row 10", PROPERTIES, "NUM", ANY, 0, MANY, "number"),
        Row(f"{BELOW}, as TID 1501 row 10b", INFERRED, "IMAGE", ANY, 0, MANY),
        Row(f"{BELOW}: the series of a finding on many images", INFERRED, "UIDREF", "112002 DCM",
            0, MANY),
        Row(f"{BELOW}, as TID 1501 row 11", PROPERTIES, "CODE", ANY, 0, MANY),
        Row(f"{BELOW}, as TID 1501 row 12", PROPERTIES, "TEXT", ANY, 0, MANY),
        Row("TID 1500 row 13b", MOD, "CODE", ANY, 0, MANY),
    ),
    "1501": (
        *_tracking("1501"),
        Row("TID 1501 row 5", MOD, "CODE", "370129005 SCT", 0, 1),
        Row("TID 1501 row 6", MOD, "CODE", "363698007 SCT", 0, MANY, "site"),
        *_algorithm("TID 1501 row 9b"),
        Row("TID 1501 row 9c", CONTAINS, "IMAGE", "121200 DCM", 0, 1),
        Row("TID 1501 row 9d", CONTAINS, "IMAGE", "130401 DCM", 0, MANY),
        Row("TID 300 row 1, by TID 1501 row 10", CONTAINS, "NUM", ANY, 0, MANY, "number"),
        Row("TID 1501 row 10b", CONTAINS, "IMAGE", ANY, 0, MANY),
        Row("TID 1501 row 10c", CONTAINS, "SCOORD", ANY, 0, MANY, "coordinates of group"),
        Row("extension of TID 1501: the series of a finding on many images", CONTAINS, "UIDREF",
            "112002 DCM", 0, MANY),
        Row("TID 1501 row 11", CONTAINS, "CODE", ANY, 0, MANY, "modifiers"),
        Row("TID 1501 row 12", CONTAINS, "TEXT", ANY, 0, MANY),
    ),
    "1410": (
        *_tracking("1410"),
        Row("TID 1410 row 3c", CONTAINS, "CODE", "130400 DCM", 0, 1, None, _codes("cid219")),
        Row("TID 1410 row 5", CONTAINS, "SCOORD", "111030 DCM", 0, 1, "region"),
        Row("TID 1410 row 7", CONTAINS, "IMAGE", "121214 DCM", 0, 1),
        Row("TID 1410 row 8", CONTAINS, "IMAGE", "121233 DCM", 0, 1),
        Row("TID 1410 row 9", CONTAINS, "IMAGE", "121200 DCM", 0, 1),
        Row("TID 1410 row 9b", CONTAINS, "IMAGE", "130401 DCM", 0, MANY),
        *_of_region("1410"),
        Row("TID 1410 row 12", CONTAINS, "CODE", ANY, 0, MANY, "modifiers"),
        Row("TID 1410 row 13", CONTAINS, "TEXT", ANY, 0, MANY),
    ),
    "1411": (
        *_tracking("1411"),
        Row("TID 1411 row 3c", CONTAINS, "CODE", "130400 DCM", 0, 1, None, _codes("cid219")),
        Row("TID 1411 row 5", CONTAINS, "SCOORD", "111030 DCM", 0, MANY, "region"),
        Row("TID 1411 row 7", CONTAINS, "IMAGE", "121191 DCM", 0, 1),
        Row("TID 1411 row 11", CONTAINS, "IMAGE", "121233 DCM", 0, MANY),
        Row("TID 1411 row 12", CONTAINS, "UIDREF", "121232 DCM", 0, 1),
        Row("TID 1411 row 13", CONTAINS, "IMAGE", "121200 DCM", 0, MANY),
        Row("TID 1411 row 13b", CONTAINS, "IMAGE", "130401 DCM", 0, MANY),
        *_of_region("1411"),
        Row("TID 1411 row 16", CONTAINS, "CODE", ANY, 0, MANY, "modifiers"),
        Row("TID 1411 row 17", CONTAINS, "TEXT", ANY, 0, MANY),
    ),
    "site": (
        Row("TID 1501 row 7", MOD, "CODE", "272741003 SCT", 0, 1, None, LATERALITIES),
        Row("TID 1501 row 8", MOD, "CODE", "106233006 SCT", 0, 1),
    ),
    "site of region": (
        Row("TID 1419 row 3", MOD, "CODE", "272741003 SCT", 0, 1, None, LATERALITIES),
        Row("TID 1419 row 4", MOD, "CODE", "106233006 SCT", 0, 1),
    ),
    "number": (
        Row("TID 301 row 3, by TID 300 row 1b", MOD, "CODE", "370129005 SCT", 0, 1),
        Row("TID 301 row 4, by TID 300 row 1b", MOD, "CODE", "121401 DCM", 0, 1),
        Row("TID 320 row 1, by TID 301 row 13", INFERRED, "IMAGE", ANY, 0, MANY),
        Row("TID 320 row 3, by TID 301 row 13", INFERRED, "SCOORD", ANY, 0, MANY, "coordinates"),
        Row("TID 320 row 6, by TID 301 row 13", INFERRED, "SCOORD3D", ANY, 0, MANY),
    ),
    "number of region": (
        Row("TID 1419 row 7", MOD, "CODE", "370129005 SCT", 0, 1),
        Row("TID 1419 row 8", MOD, "CODE", "121401 DCM", 0, 1),
        Row("TID 1419 row 14b", INFERRED, "CODE", ANY, 0, MANY),
        Row("TID 1419 row 14c", INFERRED, "TEXT", ANY, 0, MANY),
        Row("extension of TID 1419: the image that a number holds for", INFERRED, "IMAGE", ANY, 0,
            MANY),
        Row("extension of TID 1419: the line that a length was measured on", INFERRED, "SCOORD",
            ANY, 0, MANY, "coordinates"),
    ),
    "coordinates": (Row("TID 320 row 4", SELECTED, "IMAGE", ANY, 1, 1),),
    "coordinates of group": (Row("TID 1501 row 10d", SELECTED, "IMAGE", ANY, 1, 1),),
    "region": (Row("TID 1410 and TID 1411 row 6", SELECTED, "IMAGE", ANY, 1, 1),),
    "modifiers": (
        Row("TID 1410 row 12b, TID 1411 row 16b, TID 1501 row 11b", MOD, "CODE",
            ANY, 0, MANY),
    ),
}  # fmt: skip
GROUPS = ("1410", "1411", "1501")

Counts = Counter[str]
CONDITIONS: dict[str, tuple[tuple[str, Callable[[Counts], bool]], ...]] = {
    "1500": (
        (
            "TID 1500 rows 6, 10 and 12: at least one of them",
            lambda n: n["TID 1500 row 6"] + n["TID 1500 row 12"] > 0,
        ),
    ),
    "1410": (
        (
            "TID 1410 rows 5, 7, 7b and 8b: just one of them",
            lambda n: n["TID 1410 row 5"] + n["TID 1410 row 7"] == 1,
        ),
        (
            "TID 1410 row 8: if and only if row 7",
            lambda n: bool(n["TID 1410 row 8"]) == bool(n["TID 1410 row 7"]),
        ),
    ),
    "1411": (
        (
            "TID 1411 rows 5, 7, 10 and 12b: just one of them",
            lambda n: bool(n["TID 1411 row 5"]) + bool(n["TID 1411 row 7"]) == 1,
        ),
        (
            "TID 1411 rows 11 and 12: just one of them, if and only if row 7 or 10",
            lambda n: (
                bool(n["TID 1411 row 11"]) + bool(n["TID 1411 row 12"]) == n["TID 1411 row 7"]
            ),
        ),
    ),
}
"""Of the rows of one table: what the standard says of them together."""

ORDERED = ("TID 1002", "TID 1004", "TID 1204", "TID 4019")
"""Included templates whose order is significant (PS3.16 6.2.1)."""


def complaints(report: Dataset) -> list[str]:
    """What the report breaks; empty for a good one."""
    found: list[str] = []
    if _template(report) != "1500":
        found.append("root: no ContentTemplateSequence 1500 (PS3.3 C.18.8)")
    measures = bool(groups(report))
    if concept(report) not in TITLES and (measures or concept(report) != OTHER_TITLE):
        found.append(f"root: title {concept(report)} is not of CID 7021 (PS3.16 TID 1500 row 1)")
    _check(report, "1500", "root", found)
    return found


def concept(item: Dataset) -> str:
    """Code value and scheme of the concept name; empty without one."""
    sequence = item.get("ConceptNameCodeSequence")
    return _code(sequence[0]) if sequence else ""


def children(
    item: Dataset, value_type: str | None = None, name: str | None = None
) -> list[Dataset]:
    """The content items directly below, of one type and concept if asked."""
    return [
        child
        for child in item.get("ContentSequence") or []
        if value_type in (None, child.ValueType) and name in (None, concept(child))
    ]


def descendants(item: Dataset, value_type: str | None = None) -> list[Dataset]:
    """All content items below."""
    found = []
    for child in children(item):
        if value_type in (None, child.ValueType):
            found.append(child)
        found += descendants(child, value_type)
    return found


def groups(report: Dataset, template: str | None = None) -> list[Dataset]:
    """The measurement groups, of one template if asked."""
    return [
        group
        for measurements in children(report, "CONTAINER", "126010 DCM")
        for group in children(measurements)
        if template in (None, _template(group))
    ]


def evaluations(report: Dataset) -> list[Dataset]:
    """What stands below Qualitative Evaluations."""
    return [
        item
        for container in children(report, "CONTAINER", "C0034375 UMLS")
        for item in children(container)
    ]


def _code(item: Dataset) -> str:
    return f"{item.get('CodeValue')} {item.get('CodingSchemeDesignator')}"


def _template(item: Dataset) -> str | None:
    sequence = item.get("ContentTemplateSequence")
    if not sequence or sequence[0].MappingResource != "DCMR":
        return None
    return str(sequence[0].TemplateIdentifier)


def _check(item: Dataset, table: str, path: str, found: list[str]) -> None:
    """Each child has a row, each row its count, and rows that depend on each other agree."""
    rows = TEMPLATES[table]
    counts: Counts = Counter()
    last: dict[str, int] = {}
    for child in children(item):
        here = f"{path} > {child.ValueType} {concept(child)}"
        index = _row_of(child, rows)
        if index is None:
            found.append(f"{here}: no row of {table} allows it ({child.RelationshipType})")
            continue
        row = rows[index]
        counts[row.where] += 1
        included = row.where.partition(" row ")[0]
        if included in ORDERED:
            if index < last.get(included, 0):
                found.append(f"{here}: out of order (PS3.16 {row.where})")
            last[included] = index
        found += [f"{here}: {wrong} (PS3.16 {row.where})" for wrong in _wrong(child, row)]
        _check_below(child, row, here, found)
    for row in rows:
        if not row.least <= counts[row.where] <= row.most:
            found.append(
                f"{path}: {counts[row.where]} of {row.relationship} {row.value_type} "
                f"{row.concept or ''} where {row.least} to {row.most if row.most < MANY else 'n'} "
                f"should be (PS3.16 {row.where})"
            )
    for where, holds in CONDITIONS.get(table, ()):
        if not holds(counts):
            found.append(f"{path}: not so (PS3.16 {where})")


def _check_below(child: Dataset, row: Row, here: str, found: list[str]) -> None:
    below = row.below
    if below == "group":
        below = _template(child)
        if below not in GROUPS:
            found.append(f"{here}: template {below} (PS3.16 {row.where})")
            return
    if below:
        _check(child, below, here, found)
    elif child.get("ContentSequence"):
        found.append(f"{here}: has children (PS3.16 {row.where})")


def _row_of(child: Dataset, rows: tuple[Row, ...]) -> int | None:
    """The row that a content item fills; one that names its concept goes first."""
    fits = [
        index
        for index, row in enumerate(rows)
        if (row.relationship, row.value_type) == (child.RelationshipType, child.ValueType)
        and row.concept in (ANY, concept(child))
    ]
    return min(fits, key=lambda index: rows[index].concept is ANY, default=None)


def _wrong(child: Dataset, row: Row) -> list[str]:
    """What a row says of the value itself."""
    found = []
    if row.values is not None and _code(child.ConceptCodeSequence[0]) not in row.values:
        found.append(f"value {_code(child.ConceptCodeSequence[0])}")
    if child.ValueType == "IMAGE":
        reference = child.ReferencedSOPSequence[0]
        frames = _number_of_values(reference, "ReferencedFrameNumber")
        segments = _number_of_values(reference, "ReferencedSegmentNumber")
        # TID 1410 row 7 asks for a segment and a frame, PS3.3 C.18.4 forbids the two together;
        # we keep the latter, as DCMTK does.
        if frames and segments:
            found.append("frame and segment numbers together")
        if row.where == "TID 1410 row 7" and frames > 1:
            found.append(f"{frames} frames where a single one is to be named")
        if row.where == "TID 1411 row 7" and segments != 1:
            found.append(f"{segments} segments where a single one is to be named")
    return found


def _number_of_values(dataset: Dataset, keyword: str) -> int:
    return int(dataset[keyword].VM) if keyword in dataset else 0
