"""Learning what training data are like: from few samples and from many, the same way twice."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from inference.familiarity import score
from tests.unit.inference.test_familiarity import samples
from training.check import MOST_COMPONENTS, fit
from training.errors import DataError


@pytest.mark.parametrize("count", [4, 12, 61, 700])
def test_fewer_samples_than_features_are_enough_to_tell_others(count):
    familiar = fit(samples(count, 1, 256))
    assert all(bool(torch.isfinite(value).all()) for value in familiar.values())
    same, other = score(samples(60, 2, 256), familiar), score(torch.rand(60, 256), familiar)
    assert float((other[:, None] > same).float().mean()) > 0.99


def test_the_same_features_give_the_same_bytes():
    assert save(fit(samples(61, 1))) == save(fit(samples(61, 1).clone()))


def test_what_travels_with_a_bundle_is_small():
    familiar = fit(samples(1000, 1, 1280, 100))
    assert len(familiar["components"]) == MOST_COMPONENTS
    assert {value.dtype for value in familiar.values()} == {torch.float32}
    assert len(save(familiar)) < 400_000


def test_features_that_never_vary_give_numbers():
    still = torch.ones(20, 16)
    familiar = fit(still)
    assert bool(torch.isfinite(score(still, familiar)).all())
    assert float(score(still + 1, familiar).min()) > float(score(still, familiar).max())


def test_the_level_comes_from_samples_that_were_left_out():
    """Within the fit, 61 samples of 1280 features lie much closer than any other sample can."""
    familiar = fit(samples(61, 1, 1280, 40))
    assert float(score(samples(200, 2, 1280, 40), familiar).median()) == pytest.approx(1.1, abs=0.4)


def test_too_few_samples_and_broken_features_are_named():
    with pytest.raises(DataError, match="input_check = false"):
        fit(torch.rand(3, 8))
    with pytest.raises(DataError, match="not finite"):
        fit(torch.full((20, 8), float("nan")))


def test_what_lies_towards_wrong_pictures_stands_out_where_distance_alone_does_not():
    towards = torch.zeros(256)
    towards[::8] = 0.03
    right, other = samples(200, 1, 256), samples(100, 2, 256)
    plain, learnt = fit(right), fit(right, [samples(200, 1, 256) + towards])
    limit = [float(score(other, known).quantile(0.98)) for known in (plain, learnt)]
    found = [score(samples(100, 3, 256) + towards, known) for known in (plain, learnt)]
    assert float((found[0] > limit[0]).float().mean()) < 0.5
    assert float((found[1] > limit[1]).float().mean()) > 0.95


def test_samples_that_were_held_out_set_the_level():
    """A network that knows its training data by heart sees others further away."""
    right, held = samples(200, 1), samples(100, 2) + 0.2 * torch.rand(100, 64)
    by_left_out, by_held = fit(right), fit(right, held=held)
    assert float(score(held, by_left_out).median()) > 1.5
    assert float(score(held, by_held).median()) == pytest.approx(1.1, abs=0.3)
