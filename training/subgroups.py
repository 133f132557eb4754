"""Owns into which classes an attribute parts samples; knows nothing of figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

AGES = (0, 20, 40, 60, 80)
MANY = 6  # different numbers of an attribute from which on they are put into classes


def classed(attribute: str, values: Sequence[str]) -> list[str]:
    """Values of an attribute; where they are many numbers, the classes that they fall into.

    Ages (also as DICOM writes them, ``063Y``) in steps of twenty years, others in thirds.
    """
    numbers = [_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    told = [value for value in values if value]
    if len(known) < len(told) or len(set(known)) <= MANY:
        return list(values)
    if "age" in attribute.lower():
        edges = [float(age) for age in AGES[1:]]
    else:
        edges = [float(edge) for edge in np.quantile(known, [1 / 3, 2 / 3])]
    ends = [f"{edge:g}" for edge in edges]
    names = [f"under {ends[0]}"]
    names += [f"{low} to {high}" for low, high in pairwise(ends)]
    names.append(f"{ends[-1]} and more")
    return [
        "" if number is None else names[int(np.searchsorted(edges, number, side="right"))]
        for number in numbers
    ]


def _number(value: str) -> float | None:
    years = value[:-1] if value[-1:] == "Y" else value
    try:
        return float(years)
    except ValueError:
        return None


def natural(value: str) -> tuple[bool, float, str]:
    """Under 20, 20 to 40, ...; words by the alphabet; what is not told last."""
    first = next((_number(word) for word in value.split() if _number(word) is not None), None)
    order = 0.0 if first is None else first - value.startswith("under") / 2
    return (not value, order, value)
