"""Owns reading a delivered report back into words, from the DICOM object and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

_UNITS = {"1": "", "{pixels}": " pixels", "mm2": " mm²", "mm3": " mm³", "ml": " ml"}
_TOLD_ONCE = {"Comment", "Conclusion", "Description"}


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
    """What a TID 1500 report says of each tracked finding; several groups may share one."""
    found: dict[str, Finding] = {}
    for group in _groups(report):
        items = {_concept(item): item for item in group.ContentSequence}
        uid = str(items["Tracking Unique Identifier"].UID)
        name = _with_modifiers(items["Finding"]) if "Finding" in items else "Finding"
        earlier = found[uid].phrases if uid in found else ()
        phrases = (phrase for item in group.ContentSequence if (phrase := _phrase(item)))
        found[uid] = Finding(name, (*earlier, *phrases))
    return found


def remarks(report: Dataset) -> list[str]:
    """Texts that stand outside the measurement groups: research use, notes, what is missing."""
    outside = [item for item in _walk(report) if item.get("ValueType") == "TEXT"]
    return [str(item.TextValue) for item in outside if _concept(item) in _TOLD_ONCE]


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
    unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
    value = float(measured.NumericValue)
    if unit == "mm2" and value >= 1000:
        return f"{value / 100:.0f} cm²"
    return f"{value:,.0f}{_UNITS[unit]}" if unit in _UNITS and unit != "1" else f"{value:.3g}"


def _with_modifiers(item: Dataset) -> str:
    sides = [_meaning(m.ConceptCodeSequence) for m in item.get("ContentSequence", ())]
    return " ".join([*sides, _meaning(item.ConceptCodeSequence)])


def _groups(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if _concept(child) == "Measurement Group":
            yield child
        else:
            yield from _groups(child)


def _walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if _concept(child) != "Measurement Group":
            yield child
            yield from _walk(child)


def _concept(item: Dataset) -> str:
    return _meaning(item.get("ConceptNameCodeSequence"))


def _meaning(sequence: object) -> str:
    return str(sequence[0].CodeMeaning) if sequence else ""  # type: ignore[index] # pydicom Sequence
