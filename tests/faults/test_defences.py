"""The table of defences is kept: what it takes out is there, and its tests are."""

from __future__ import annotations

import ast
import re

import pytest

from tests.faults.defences import HERE, Defence, every, source_of


@pytest.mark.parametrize("defence", every(), ids=lambda d: f"{d.row} {d.out}")
def test_a_defence_that_can_be_taken_out_is_in_the_source_and_its_test_exists(
    defence: Defence,
) -> None:
    assert defence.fits(), f"the text is not in {defence.module} once: {defence.old!r}"
    for module, old, new in defence.alterations:
        ast.parse(source_of(module).replace(old, new))
    file, _, name = defence.test.partition("::")
    tree = ast.parse((HERE.parent / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in names
    row = re.match(r"test_row_(\d\d)_", name)
    assert row is None or int(row[1]) == defence.row


def test_every_row_of_the_matrix_has_tests_named_after_it_and_a_defence() -> None:
    rows = range(1, 33)
    tests = "".join(path.read_text() for path in HERE.parent.rglob("test_*.py"))
    named = {int(row) for row in re.findall(r"^def test_row_(\d\d)_", tests, re.MULTILINE)}
    assert named == set(rows)
    assert {defence.row for defence in every()} == set(rows)
