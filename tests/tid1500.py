"""Checks the content of a report against the rows of its templates; trusts nothing of `report.py`.

``dciodvfy`` and ``dsrdump`` know value types and relationships, not templates. The rows below are
those of PS3.16 that we use (TID 300/320, 1001/1004, 1204, 1410, 1411, 1500, 1501, 1600, 4019),
each as (relationship, value type, concept or ANY, least, most).
"""

from __future__ import annotations

from pydicom.dataset import Dataset

ANY = None
MANY = 10**6
Row = tuple[str, str, str | None, int, int]

ALGORITHM: list[Row] = [
    ("HAS CONCEPT MOD", "TEXT", "111001 DCM", 1, 1),
    ("HAS CONCEPT MOD", "TEXT", "111003 DCM", 1, 1),
    ("HAS CONCEPT MOD", "TEXT", "122405 DCM", 0, 1),
    ("HAS CONCEPT MOD", "TEXT", "111002 DCM", 0, MANY),
]
GROUP: list[Row] = [
    ("HAS OBS CONTEXT", "TEXT", "112039 DCM", 1, 1),
    ("HAS OBS CONTEXT", "UIDREF", "112040 DCM", 1, 1),
    ("CONTAINS", "CODE", "276214006 SCT", 0, 1),
    ("CONTAINS", "CODE", "121071 DCM", 0, 1),
    ("HAS CONCEPT MOD", "CODE", "363698007 SCT", 0, MANY),
    *ALGORITHM,
]
EVALUATIONS: list[Row] = [
    ("CONTAINS", "CODE", ANY, 0, MANY),
    ("CONTAINS", "TEXT", ANY, 0, MANY),
]
TEMPLATES: dict[str, list[Row]] = {
    "1500": [
        ("HAS CONCEPT MOD", "CODE", "121049 DCM", 0, 1),
        ("HAS OBS CONTEXT", "CODE", "121005 DCM", 1, 1),
        ("HAS OBS CONTEXT", "UIDREF", "121012 DCM", 1, 1),
        *(("HAS OBS CONTEXT", "TEXT", f"{v} DCM", 0, 1) for v in (121013, 121014, 121015, 121016)),
        ("HAS CONCEPT MOD", "CODE", "121058 DCM", 1, MANY),
        ("CONTAINS", "CONTAINER", "111028 DCM", 1, 1),
        ("CONTAINS", "CONTAINER", "126010 DCM", 1, 1),
        ("CONTAINS", "CONTAINER", "C0034375 UMLS", 0, 1),
    ],
    "library": [("CONTAINS", "CONTAINER", "126200 DCM", 1, MANY)],
    "library group": [
        ("HAS ACQ CONTEXT", "CODE", "121139 DCM", 0, 1),
        ("HAS ACQ CONTEXT", "UIDREF", "112227 DCM", 0, 1),
        ("CONTAINS", "IMAGE", ANY, 1, MANY),
    ],
    "measurements": [("CONTAINS", "CONTAINER", "125007 DCM", 1, MANY)],
    "evaluations": EVALUATIONS,
    "1501": [
        *GROUP,
        ("CONTAINS", "NUM", ANY, 0, MANY),
        ("CONTAINS", "IMAGE", "121112 DCM", 0, MANY),
        ("CONTAINS", "UIDREF", "112002 DCM", 0, MANY),  # an extension: the template is extensible
        *EVALUATIONS,
    ],
    "1410": [
        *GROUP,
        ("CONTAINS", "IMAGE", "121214 DCM", 1, 1),
        ("CONTAINS", "IMAGE", "121233 DCM", 1, MANY),
        ("CONTAINS", "NUM", ANY, 0, MANY),
        *EVALUATIONS,
    ],
    "1411": [
        *GROUP,
        ("CONTAINS", "IMAGE", "121191 DCM", 1, 1),
        ("CONTAINS", "UIDREF", "121232 DCM", 1, 1),
        ("CONTAINS", "NUM", ANY, 0, MANY),
        *EVALUATIONS,
    ],
    "NUM": [
        ("INFERRED FROM", "SCOORD", "121112 DCM", 0, MANY),
        ("INFERRED FROM", "IMAGE", "121112 DCM", 0, MANY),
    ],
    "SCOORD": [("SELECTED FROM", "IMAGE", ANY, 1, 1)],
    "site": [("HAS CONCEPT MOD", "CODE", "272741003 SCT", 0, 1)],
}
BY_CONCEPT = {
    "111028 DCM": "library",
    "126200 DCM": "library group",
    "126010 DCM": "measurements",
    "C0034375 UMLS": "evaluations",
    "363698007 SCT": "site",
}


def complaints(report: Dataset) -> list[str]:
    """What the report breaks; empty for a good one."""
    found: list[str] = []
    if _template(report) != "1500":
        found.append("the root has no ContentTemplateSequence 1500")
    _check(report, "1500", "root", found)
    return found


def concept(item: Dataset) -> str:
    """Code value and scheme of the concept name."""
    name = item.ConceptNameCodeSequence[0]
    return f"{name.CodeValue} {name.CodingSchemeDesignator}"


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
    (measurements,) = children(report, "CONTAINER", "126010 DCM")
    return [g for g in children(measurements) if template in (None, _template(g))]


def _template(item: Dataset) -> str | None:
    sequence = item.get("ContentTemplateSequence")
    if not sequence or sequence[0].MappingResource != "DCMR":
        return None
    return str(sequence[0].TemplateIdentifier)


def _check(item: Dataset, template: str, path: str, found: list[str]) -> None:
    counts = [0] * len(TEMPLATES[template])
    for child in children(item):
        here = f"{path} > {child.ValueType} {concept(child)}"
        for row, (relationship, value_type, name, _, _) in enumerate(TEMPLATES[template]):
            if (relationship, value_type) == (child.RelationshipType, child.ValueType) and name in (
                ANY,
                concept(child),
            ):
                counts[row] += 1
                break
        else:
            found.append(f"{here}: no row of {template} allows it ({child.RelationshipType})")
        below = _below(child)
        if below:
            _check(child, below, here, found)
        elif child.get("ContentSequence"):
            found.append(f"{here}: has children")
    for count, row_ in zip(counts, TEMPLATES[template], strict=True):
        if not row_[3] <= count <= row_[4]:
            found.append(f"{path}: {count} of {row_}")


def _below(child: Dataset) -> str | None:
    if child.ValueType in ("NUM", "SCOORD"):
        return str(child.ValueType)
    if concept(child) == "125007 DCM":
        return _template(child) or "1501"
    return BY_CONCEPT.get(concept(child))
