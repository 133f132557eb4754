"""Owns a table of labels: a CSV with one line for each image. Refuses to decode an image."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import cast, get_args

from inference.errors import ReadingError
from training.errors import DataError, RecipeError
from training.readers.common import (
    Problems,
    Source,
    Unusable,
    attributes,
    by_licence,
    channels,
    labels,
    one_hot,
    opened,
    patient,
    study,
)
from training.recipe import Bundle, Table
from training.samples import Part, Sample, Samples, Truth

FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
"""A column of a table may hold whole numbers that a spreadsheet wrote as fractions."""

UNKNOWN = "labels that the recipe does not know (it knows {}; correct them or name them there)"


def read(data: Table, bundle: Bundle, root: Path, problems: Problems) -> Samples:
    """Classes or grades of DICOM files, series folders, JPEG and PNG.

    The group is the column's, else the hashed Patient ID of DICOM files, else the line itself.

    Raises:
        DataError: the file is missing, no CSV in UTF-8, or lacks a column.
        RecipeError: a table tells neither boxes nor masks; or its columns fit no channels.
    """
    _check(data, bundle)
    file = root / data.file
    folder = root / data.folder if data.folder else file.parent
    found = []
    for number, row in enumerate(_rows(file, data), start=2):
        name = row[data.path]
        if not name:
            problems.add("lines without a path (fill it in or leave them out)", f"line {number}")
            continue
        if (sample := _sample(row, folder, data, bundle, problems)) is not None:
            found.append(sample)
    return by_licence(found, data.licences)


def _check(data: Table, bundle: Bundle) -> None:
    if bundle.task not in ("classification", "grading"):
        raise RecipeError(
            f"data.kind: a table tells classes or grades, not what {bundle.task} needs: "
            "coco and dicom-sr tell boxes, dicom-seg tells masks"
        )
    wanted = {1} if bundle.task == "grading" else {1, bundle.architecture.classes}
    if len(data.label) not in wanted:
        raise RecipeError(
            f"data.label: {len(data.label)} columns, but {bundle.task} with "
            f"{bundle.architecture.classes} channels takes {' or '.join(map(str, sorted(wanted)))}"
        )


def _rows(file: Path, data: Table) -> list[dict[str, str]]:
    """Lines by column, stripped; a comma or a semicolon parts columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            mark = ";" if ";" in first and "," not in first else ","
            table = csv.DictReader(lines, delimiter=mark, restval="")
            rows = [
                {str(k): v.strip() for k, v in row.items() if isinstance(v, str)} for row in table
            ]
            there = table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"data.file: {data.file} is no CSV in UTF-8 that can be read: {type(error).__name__}"
        ) from error
    named = [data.path, *data.label, *data.attributes]
    named += [c for c in (data.group, data.study, data.licence_column, data.part) if c]
    absent = [column for column in named if column not in there]
    if absent:
        raise DataError(f"{data.file} has no column {', '.join(absent)}; it has {', '.join(there)}")
    return rows


def _sample(
    row: dict[str, str], folder: Path, data: Table, bundle: Bundle, problems: Problems
) -> Sample | None:
    """A line's sample; None when something is wrong with it, all of which is told."""
    name = row[data.path]
    source: Source | None = None
    truth: Truth | None = None
    try:
        source = opened(folder / name, name, data)
    except Unusable as error:
        problems.add(str(error), name)
    try:
        truth = _truth(row, data, bundle)
    except Unusable as error:
        problems.add(str(error), f"{name} ({', '.join(row[column] for column in data.label)})")
    part = row[data.part].lower() if data.part else ""
    if part and part not in get_args(Part):
        problems.add("parts other than train, val, test (correct them)", f"{name} ({part})")
    if data.group and not row[data.group]:
        problems.add(f"lines without a {data.group} (fill it in: who is unknown leaks)", name)
    if source is None or truth is None:
        return None
    header = source.header
    told = {column: row[column] for column in data.attributes if row[column]}
    try:
        return Sample(
            name=name,
            group=row[data.group] if data.group else patient(header, name) if header else name,
            read=source.read,
            truth=truth,
            licence=row[data.licence_column] if data.licence_column else data.licence,
            study=row[data.study] if data.study else study(header) if header else "",
            attributes=(attributes(header) if header else {}) | told,
            part=cast(Part, part) if part else None,
        )
    except ReadingError:
        problems.add("DICOM files that are damaged (replace them)", name)
        return None


def _truth(row: dict[str, str], data: Table, bundle: Bundle) -> Truth:
    """What a line says; raises `Unusable` if the recipe does not know it."""
    values = [row[column] for column in data.label]
    if not all(values):
        raise Unusable("lines without a label (fill it in or leave them out)")
    if bundle.grading:
        return Truth(grade=_grade(values[0], [g.label for g in bundle.grading.grades]))
    known = channels(bundle)
    if len(values) == 1 and values[0].casefold() in known:
        return Truth(classes=one_hot(known[values[0].casefold()], bundle))
    if len(values) == bundle.architecture.classes and all(v in FLAGS for v in values):
        return Truth(classes=tuple(FLAGS[v] for v in values))
    said = "0 and 1" if len(values) > 1 else labels(bundle)
    raise Unusable(UNKNOWN.format(said if bundle.architecture.classes > 1 else said + ", 0, 1"))


def _grade(value: str, grades: list[str]) -> int:
    """The grade of that label, else of that number, counted from 0."""
    names = [label.casefold() for label in grades]
    if value.casefold() in names:
        return names.index(value.casefold())
    try:
        number = float(value)
    except ValueError:
        number = -1
    if number not in range(len(grades)):
        raise Unusable(UNKNOWN.format(f"{', '.join(grades)}, or 0 to {len(grades) - 1}"))
    return int(number)
