"""Verdicts: one number a class, and grades that keep their order whatever the weights say."""

from __future__ import annotations

import pytest
import torch

from inference.classifiers import Classifier, Ordinal
from inference.pyramid import Pyramid


@pytest.fixture(scope="module")
def pyramid():
    torch.manual_seed(0)
    return Pyramid("squeezenet1_1", 1)


def test_a_higher_grade_is_never_more_probable_than_a_lower_one(pyramid):
    network = Ordinal(pyramid, 6, 0.0).eval()
    x = torch.randn(4, 1, 64, 64)
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            network.gaps.copy_(torch.randn(5) * 10)
            network.first.copy_(torch.randn(1) * 10)
            reached = network(x).sigmoid()
        assert reached.shape == (4, 6)
        assert bool((reached.diff(dim=1) <= 0).all())


def test_thresholds_begin_evenly_around_nothing(pyramid):
    torch.testing.assert_close(Ordinal(pyramid, 3, 0.0).thresholds, torch.tensor([-1.0, 0.0, 1.0]))


def test_one_step_is_an_ordinary_yes_or_no(pyramid):
    network = Ordinal(pyramid, 1, 0.0)
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 1)
    assert network.thresholds.tolist() == [0.0]


def test_score_and_every_threshold_learn(pyramid):
    network = Ordinal(pyramid, 3, 0.0)
    network(torch.randn(2, 1, 64, 64)).sigmoid().square().sum().backward()
    for parameter in (network.head.weight, network.first, network.gaps):
        assert bool((parameter.grad != 0).all() if parameter.ndim == 1 else parameter.grad.any())


def test_dropout_draws_in_training_alone(pyramid):
    network = Classifier(pyramid, 2, 0.5)
    network.encoder.eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_dropout_changes_no_name(pyramid):
    dropped, plain = Classifier(pyramid, 2, 0.5), Classifier(pyramid, 2, 0.0)
    assert dropped.state_dict().keys() == plain.state_dict().keys()


def test_the_size_of_the_input_is_free(pyramid):
    network = Classifier(pyramid, 3, 0.0).eval()
    for size in (64, 96, 128):
        assert network(torch.zeros(1, 1, size, size)).shape == (1, 3)
