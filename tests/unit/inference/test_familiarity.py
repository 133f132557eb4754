"""How unlike an input is: about 1 for what was learnt from, more the further it is from that."""

from __future__ import annotations

import pytest
import torch

from inference.errors import BundleError
from inference.familiarity import score
from training.check import fit


def samples(count, seed, size=64, directions=6):
    """Features that vary in a few directions, and a little in all."""
    torch.manual_seed(0)
    basis = torch.rand(directions, size)
    torch.manual_seed(seed)
    return torch.rand(count, directions) @ basis + 0.05 * torch.rand(count, size)


def test_samples_of_the_same_kind_score_about_1_and_others_more():
    familiar = fit(samples(200, 1))
    same, other = score(samples(100, 2), familiar), score(torch.rand(100, 64), familiar)
    assert same.dtype == torch.float32
    assert float(same.median()) == pytest.approx(1.1, abs=0.2)
    assert float(same.quantile(0.95)) < 2
    assert float(other.min()) > float(same.max())


def test_what_leaves_the_subspace_and_what_goes_too_far_in_it_are_both_told():
    familiar = fit(samples(200, 1))
    usual = score(samples(100, 2), familiar).quantile(0.99)
    far = samples(100, 2) * 4
    beside = samples(100, 2) + 0.6 * torch.rand(100, 64)
    assert float(score(far, familiar).median()) > float(usual)
    assert float(score(beside, familiar).median()) > float(usual)


def test_each_sample_is_scored_by_itself():
    familiar = fit(samples(50, 1))
    some = samples(5, 3)
    torch.testing.assert_close(
        score(some, familiar), torch.cat([score(one[None], familiar) for one in some])
    )


def test_no_samples_have_no_scores():
    assert score(torch.zeros(0, 64), fit(samples(50, 1))).shape == (0,)


def test_the_check_of_another_network_is_refused():
    familiar = fit(samples(50, 1))
    with pytest.raises(BundleError, match="not of this network"):
        score(torch.rand(2, 65), familiar)
    with pytest.raises(BundleError, match="levels"):
        score(torch.rand(2, 64), {k: v for k, v in familiar.items() if k != "levels"})
