"""Owns reading a delivered report back into words, from the DICOM object and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pydicom import Dataset

from dicom_node.results.words import quantity
from inference.types import Code

_TOLD_ONCE = {"Comment", "Conclusion", "Description"}
_MEASURED = {"Area"}


@dataclass(frozen=True)
class Finding:
    """One thing that a report speaks of, by its Tracking Unique Identifier.

    Attributes:
        name: of the finding, with its side.
        phrases: what is said of it: measurements and evaluations.
    """

    name: str
    phrases: tuple[str, ...]

    @property
    def measures(self) -> str:
        """The phrases in one, volumes first: then an area is that of the largest slice."""
        volumes = [phrase for phrase in self.phrases if phrase.startswith("volume")]
        rest = [phrase for phrase in self.phrases if phrase not in volumes]
        areas = [f"largest {p}" if volumes and p.startswith("area") else p for p in rest]
        return ", ".join(volumes + areas)

    @property
    def sentence(self) -> str:
        """In one line."""
        return f"{self.name}: {self.measures}" if self.phrases else self.name


def findings(report: Dataset) -> dict[str, Finding]:
    """What a TID 1500 report says of each tracked finding; several groups may share one.

    Of a finding that is told as a whole its parts are left out, and so is an area of a part.
    """
    groups = [(group, _named(group)) for group in _groups(report)]
    whole = {named.uid: _names(group) for group, named in groups if _template(group) != "1501"}
    told_whole = {named.name for _, named in groups if named.uid in whole}
    found: dict[str, Finding] = {}
    for group, (uid, name) in groups:
        if uid not in whole and name in told_whole:
            continue
        again = whole.get(uid, set()) if _template(group) == "1501" else set()
        earlier = found[uid].phrases if uid in found else ()
        items = [item for item in group.ContentSequence if _concept(item) not in again & _MEASURED]
        found[uid] = Finding(name, (*earlier, *filter(None, map(_phrase, items))))
    for item in _evaluations(report):
        uid = next(
            (str(c.UID) for c in item.get("ContentSequence", ()) if c.ValueType == "UIDREF"), ""
        )
        if item.ValueType == "CODE" and uid:
            verdict = _meaning(item.ConceptCodeSequence).lower()
            numbers = [_phrase(c) for c in item.ContentSequence if c.ValueType == "NUM"]
            found[uid] = Finding(_concept(item), (verdict, *numbers))
    return found


def remarks(report: Dataset) -> list[str]:
    """Texts that stand outside the measurement groups: research use, notes, what is missing."""
    texts = [item for item in _evaluations(report) if item.ValueType == "TEXT"]
    return [str(item.TextValue) for item in texts if _concept(item) in _TOLD_ONCE]


class _Named(NamedTuple):
    uid: str
    name: str


def _named(group: Dataset) -> _Named:
    items = {_concept(item): item for item in group.ContentSequence}
    name = _with_modifiers(items["Finding"]) if "Finding" in items else "Finding"
    return _Named(str(items["Tracking Unique Identifier"].UID), name)


def _names(group: Dataset) -> set[str]:
    return {_concept(item) for item in group.ContentSequence}


def _template(group: Dataset) -> str:
    return str(group.ContentTemplateSequence[0].TemplateIdentifier)


def _evaluations(report: Dataset) -> list[Dataset]:
    """The items of Qualitative Evaluations (TID 1500 row 12)."""
    return [
        item
        for container in report.get("ContentSequence", ())
        if _concept(container) == "Qualitative Evaluations"
        for item in container.ContentSequence
    ]


def _phrase(item: Dataset) -> str:
    """A measurement or an evaluation in words; empty for what only identifies."""
    name = _concept(item).lower()
    if item.ValueType == "NUM":
        return f"{name} {_number(item)}"
    if item.ValueType == "CODE" and not name.startswith("finding"):
        return f"{name} {_meaning(item.ConceptCodeSequence).lower()}"
    if item.ValueType == "TEXT" and not name.startswith(("tracking", "algorithm")):
        return str(item.TextValue)
    return ""


def _number(item: Dataset) -> str:
    measured = item.MeasuredValueSequence[0]
    unit = measured.MeasurementUnitsCodeSequence[0]
    code = Code(str(unit.CodeValue), str(unit.CodingSchemeDesignator), str(unit.CodeMeaning))
    return quantity(float(measured.NumericValue), code)


def _with_modifiers(item: Dataset) -> str:
    sides = [_meaning(m.ConceptCodeSequence) for m in item.get("ContentSequence", ())]
    return " ".join([*sides, _meaning(item.ConceptCodeSequence)])


def _groups(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if _concept(child) == "Measurement Group":
            yield child
        else:
            yield from _groups(child)


def _concept(item: Dataset) -> str:
    return _meaning(item.get("ConceptNameCodeSequence"))


def _meaning(sequence: object) -> str:
    return str(sequence[0].CodeMeaning) if sequence else ""  # type: ignore[index] # pydicom Sequence
