"""Owns reading a delivered report back into sentences, from the DICOM object and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

_UNITS = {"1": "", "{pixels}": "pixels", "mm2": "mm²", "cm2": "cm²", "mm3": "mm³", "ml": "ml"}
_SILENT = {
    "Tracking Identifier",
    "Tracking Unique Identifier",
    "Algorithm Name",
    "Algorithm Version",
}


def sentences(report: Dataset) -> list[str]:
    """What a TID 1500 report says, one line a measurement group, then its texts."""
    lines = [line for group in _groups(report, "Measurement Group") if (line := _group(group))]
    return lines + _texts(report)


def _group(group: Dataset) -> str:
    """``finding, site: measurement, ...``; empty for a group that only refers to a SEG."""
    finding, details = "", []
    for item in group.get("ContentSequence", ()):
        name = _meaning(item.get("ConceptNameCodeSequence"))
        if name == "Finding":
            finding = _meaning(item.ConceptCodeSequence)
            sides = [_meaning(m.ConceptCodeSequence) for m in item.get("ContentSequence", ())]
            finding = " ".join([*sides, finding])
        elif name in ("Finding Site", "Laterality") and item.ValueType == "CODE":
            sides = [
                _meaning(m.ConceptCodeSequence)
                for m in item.get("ContentSequence", ())
                if m.ValueType == "CODE"
            ]
            details.append(" ".join([*sides, _meaning(item.ConceptCodeSequence)]).lower())
        elif item.ValueType == "NUM":
            details.append(f"{name.lower()} {_number(item)}")
        elif item.ValueType == "CODE" and name not in _SILENT:
            details.append(f"{name.lower()} {_meaning(item.ConceptCodeSequence).lower()}")
    return f"{finding}: {', '.join(details)}" if details else ""


def _number(item: Dataset) -> str:
    measured = item.MeasuredValueSequence[0]
    unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
    return f"{float(measured.NumericValue):.4g} {_UNITS.get(unit, unit)}".strip()


def _groups(item: Dataset, name: str) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        if _meaning(child.get("ConceptNameCodeSequence")) == name:
            yield child
        else:
            yield from _groups(child, name)


def _texts(item: Dataset) -> list[str]:
    found = []
    for child in item.get("ContentSequence", ()):
        if child.get("ValueType") == "TEXT" and _meaning(child.get("ConceptNameCodeSequence")) in (
            "Comment",
            "Conclusion",
            "Description",
            "Finding",
        ):
            found.append(str(child.TextValue))
        if _meaning(child.get("ConceptNameCodeSequence")) != "Measurement Group":
            found += _texts(child)
    return found


def _meaning(sequence: object) -> str:
    return str(sequence[0].CodeMeaning) if sequence else ""  # type: ignore[index] # pydicom Sequence
