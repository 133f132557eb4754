"""Owns the language of routing rules: conditions on a candidate, and why each holds or not.

Refuses to know where rules are kept and what follows from a match. The written form is a table;
its entries must all hold, a list of values means any of them::

    modality = ["DX", "CR"]
    thickness_mm = { max = 3.0 }
    any = [ { body_part = "CHEST" }, { series_description = "chest|thorax" } ]
    not = { view = ["LL", "RL"] }
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dicom_node.domain.study import Candidate
from dicom_node.errors import ConfigurationError

WORDS = frozenset(
    "modality sop_class body_part view laterality image_type calling_ae called_ae station".split()
)
PATTERNS = frozenset("series_description study_description protocol kernel manufacturer".split())
NUMBERS = frozenset("thickness_mm instances frames rows columns".split())


@dataclass(frozen=True)
class Verdict:
    """Whether a condition holds, in words, with the verdicts that it rests on."""

    holds: bool
    text: str
    parts: tuple[Verdict, ...] = ()

    def lines(self, depth: int = 0) -> list[str]:
        """The tree as indented lines, for a person."""
        own = f"{'  ' * depth}{'✓' if self.holds else '✗'} {self.text}"
        return [own, *(line for part in self.parts for line in part.lines(depth + 1))]


@dataclass(frozen=True)
class Among:
    """A word of the header is one of ``values``, whatever its case."""

    field: str
    values: tuple[str, ...]

    def judge(self, candidate: Candidate) -> Verdict:
        """Hold when any instance's value is among ours."""
        found = sorted(candidate.values(self.field))
        wanted = {value.upper() for value in self.values}
        holds = any(value.upper() in wanted for value in found)
        return Verdict(holds, f"{self.field} is {_or(self.values)} (here {_or(found)})")


@dataclass(frozen=True)
class Matches:
    """A text of the header contains a match of ``pattern``, whatever its case."""

    field: str
    pattern: re.Pattern[str]

    def judge(self, candidate: Candidate) -> Verdict:
        """Hold when any instance's text matches."""
        found = sorted(candidate.values(self.field))
        holds = any(self.pattern.search(value) for value in found)
        # Descriptions are typed by people and may name a patient: the verdict does not repeat them.
        seen = "a value" if found else "no value"
        return Verdict(holds, f"{self.field} matches /{self.pattern.pattern}/ (here {seen})")


@dataclass(frozen=True)
class Within:
    """A number lies in a closed range; an absent one does not."""

    field: str
    low: float | None
    high: float | None

    def judge(self, candidate: Candidate) -> Verdict:
        """Hold when the number is told and lies within."""
        value = candidate.number(self.field)
        holds = (
            value is not None
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        here = "not told" if value is None else f"{value:g}"
        return Verdict(holds, f"{self.field} is {' and '.join(bounds)} (here {here})")


@dataclass(frozen=True)
class All:
    """Every part holds; without parts, always."""

    parts: tuple[Condition, ...]

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge every part, so that all reasons are told."""
        parts = tuple(part.judge(candidate) for part in self.parts)
        return Verdict(all(p.holds for p in parts), "all of" if parts else "always", parts)


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def judge(self, candidate: Candidate) -> Verdict:
        """Judge every part, so that all reasons are told."""
        parts = tuple(part.judge(candidate) for part in self.parts)
        return Verdict(any(p.holds for p in parts), "any of", parts)


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Condition

    def judge(self, candidate: Candidate) -> Verdict:
        """The opposite of the part's verdict."""
        inner = self.part.judge(candidate)
        return Verdict(not inner.holds, "not", (inner,))


Condition = Among | Matches | Within | All | AnyOf | Not


def parse(table: Mapping[str, Any], where: str = "when") -> Condition:
    """Read the written form.

    Args:
        table: as TOML gives it.
        where: its place, for messages ("rule 'chest': when").

    Raises:
        ConfigurationError: names the place, the key and what is wrong with it.
    """
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: a table is needed, not {table!r}")
    parts = tuple(_entry(key, value, f"{where}.{key}") for key, value in table.items())
    return parts[0] if len(parts) == 1 else All(parts)


def _entry(key: str, value: Any, where: str) -> Condition:
    if key in ("all", "any"):
        if not isinstance(value, list) or not value:
            raise ConfigurationError(f"{where}: a list of tables is needed")
        parts = tuple(parse(part, f"{where}[{n}]") for n, part in enumerate(value))
        return All(parts) if key == "all" else AnyOf(parts)
    if key == "not":
        return Not(parse(value, where))
    if key in WORDS:
        return Among(key, _words(value, where))
    if key in PATTERNS:
        try:
            return Matches(key, re.compile("|".join(_words(value, where)), re.IGNORECASE))
        except re.error as error:
            raise ConfigurationError(f"{where}: not a regular expression: {error}") from error
    if key in NUMBERS:
        return _within(key, value, where)
    known = ", ".join(sorted({"all", "any", "not"} | WORDS | PATTERNS | NUMBERS))
    raise ConfigurationError(f"{where}: unknown key; known are {known}")


def _words(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v for v in values):
        raise ConfigurationError(f"{where}: text or a list of texts is needed")
    return tuple(values)


def _within(key: str, value: Any, where: str) -> Within:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Within(key, value, value)
    numeric = isinstance(value, Mapping) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in value.values()
    )
    if not numeric or not value or not set(value) <= {"min", "max"}:
        raise ConfigurationError(f"{where}: a number or {{ min = …, max = … }} is needed")
    return Within(key, value.get("min"), value.get("max"))


def _or(values: tuple[str, ...] | list[str]) -> str:
    return " or ".join(values) if values else "not told"
