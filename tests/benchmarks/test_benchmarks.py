"""The benchmarks run and print what they promise; their figures are judged by people."""

from __future__ import annotations

import pytest

from tests.benchmarks import ingest, segmentation, training, whole_way


def rows(printed: str) -> list[list[str]]:
    """The body of the Markdown table."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_ingest_is_compared_with_three_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert ingest.main(["--instances", "16", "--repeat", "1"]) == 0
    printed = capsys.readouterr().out
    assert "cores" in printed
    told = rows(printed)
    assert [row[0] for row in told] == ["1", "4", "16"]
    assert all(float(cell.rpartition(":")[2]) > 0 for row in told for cell in row[2:])
    assert "memory of the listener" in printed


def test_a_segmentation_is_measured_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert segmentation.main(["--frames", "2", "4", "--repeat", "1"]) == 0
    told = rows(capsys.readouterr().out)
    assert {row[0] for row in told} == set(segmentation.FORMS)
    assert all(float(row[2]) > 0 for row in told)


def test_training_is_held_against_the_bare_passes(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--sizes", "64", "--batch", "4", "--steps", "2", "--repeat", "1"]
    assert training.main(["--backbones", "squeezenet1_1", *few]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[0].endswith("squeezenet1_1")


@pytest.mark.slow
def test_the_whole_way_is_longer_than_its_forward_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert whole_way.main(["--repeat", "1", "--slices", "4"]) == 0
    for row in rows(capsys.readouterr().out):
        total, forward = (float(cell.split("/")[1]) for cell in row[1:3])
        assert 0 < forward < total
