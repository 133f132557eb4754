"""Owns what a model's outputs are called; refuses to know what they mean."""

from __future__ import annotations

from inference.manifest import FindingLabel, Label, Manifest
from training.recipe import Bundle


def channels(said: Bundle | Manifest) -> tuple[str, ...]:
    """Of each channel of the network, what a recipe or a manifest calls it."""
    labels: list[Label | FindingLabel] = [*said.labels, *said.findings]
    told = {label.channel: label.label for label in labels}
    return tuple(told.get(i, f"class {i}") for i in range(said.architecture.classes))


def grades(said: Bundle | Manifest) -> tuple[str, ...]:
    """Of a grading, the lowest first; empty for any other task."""
    return tuple(grade.label for grade in said.grading.grades) if said.grading else ()


def steps(said: Bundle | Manifest) -> tuple[str, ...]:
    """Of each output of a grading, ``P(grade >= k)``: ``>= GRADE``."""
    return tuple(f">= {name}" for name in grades(said)[1:])
