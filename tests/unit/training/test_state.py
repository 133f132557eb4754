"""The mean of weights that is judged and kept."""

from __future__ import annotations

import pytest
import torch

from training.state import averaging


def after(steps: int, decay: float) -> float:
    """The mean, begun at 0, of weights that are 1 from the first step on."""
    mean, average = torch.zeros(1), averaging(decay)
    for step in range(1, steps + 1):
        average([mean], [torch.ones(1)], step)
    return float(mean)


def test_a_run_of_few_steps_does_not_end_near_its_random_start():
    assert after(20, 0.99) > 0.99
    assert 1 - 0.99**20 < 0.2  # as a plain one would


def test_after_its_beginning_the_mean_is_the_exponential_one():
    mean, average = torch.zeros(1), averaging(0.5)
    average([mean], [torch.ones(1)], 100)
    assert float(mean) == pytest.approx(0.5)
