"""Owns how numbers and verdicts are written for people; refuses to know where they will stand."""

from __future__ import annotations

from inference.types import Code, Finding

_SUFFIXES = {
    "1": "",
    "{pixels}": " pixels",
    "mm": " mm",
    "mm2": " mm²",
    "mm3": " mm³",
    "cm2": " cm²",
    "ml": " ml",
    "[hnsf'U]": " HU",
}


def quantity(value: float, unit: Code) -> str:
    """A measured number for people: no more digits than it deserves, large areas in cm²."""
    if unit.value == "1":
        return f"{value:.3g}"
    if unit.value == "mm2" and abs(value) >= 1000:
        value, unit = value / 100, Code("cm2", "UCUM", "square centimeter")
    if unit.value == "{pixels}" or abs(value) >= 100:
        number = f"{value:,.0f}"
    else:
        number = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    return number + _SUFFIXES.get(unit.value, f" {unit.value}")


def percentages(probability: float, threshold: float | None) -> tuple[str, str | None]:
    """Both in percent, with as many digits as it takes to tell which of them is higher.

    Neither 0 % nor 100 % is said of what is only close to it.
    """
    if threshold is None:
        return _percent(probability, 0), None
    pairs = [(_percent(probability, digits), _percent(threshold, digits)) for digits in range(5)]
    told = next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])
    return (told if probability != threshold else pairs[0])[0], f"{100 * threshold:.4g} %"


def _percent(share: float, digits: int) -> str:
    text = f"{100 * share:.{digits}f}"
    if share > 0 and float(text) == 0:
        return f"< {10.0**-digits:g} %"
    if share < 1 and float(text) == 100:
        return f"> {100 - 10.0**-digits:g} %"
    return f"{text} %"


def graded(finding: Finding) -> str:
    """A grade with the number behind it; empty without."""
    grade = [finding.severity.meaning.lower()] if finding.severity else []
    grade += [f"score {finding.score:.3g}"] if finding.score is not None else []
    return f"severity {', '.join(grade)}" if grade else ""


def verdict(finding: Finding) -> str:
    """A finding in one sentence."""
    told = ["present" if finding.present else "absent"]
    if finding.probability is not None:
        chance, least = percentages(finding.probability, finding.threshold)
        told.append(f"probability {chance}" + (f" (threshold {least})" if least else ""))
    if grade := graded(finding):
        told.append(grade)
    return f"{finding.label}: {', '.join(told)}."
