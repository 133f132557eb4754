"""Strategies: who learns when and how fast, as tables; and that the others hold still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.training.learning import recipe
from training.state import start
from training.strategy import encoder, enter, factor, groups, rates, stages, thawed


def how(**changes):
    return recipe(**changes).training


@pytest.mark.parametrize(
    ("strategy", "learning"),
    [("full", [4, 4, 4, 4, 4]), ("frozen", [0, 0, 0, 0, 0]), ("gradual", [0, 0, 1, 1, 2])],
)
def test_each_strategy_thaws_by_its_table(strategy, learning):
    plan = how(strategy=strategy, unfreeze_every=2)
    assert [thawed(plan, 4, epoch) for epoch in range(5)] == learning


def test_gradual_unfreezing_ends_with_all_stages():
    assert thawed(how(strategy="gradual", unfreeze_every=1), 3, 100) == 3


def test_rates_fall_with_the_distance_from_the_head():
    plan = how(encoder_rate=8e-4, layer_decay=0.5)
    assert rates(plan, 4) == pytest.approx([1e-4, 2e-4, 4e-4, 8e-4])
    assert rates(how(encoder_rate=8e-4), 3) == [8e-4] * 3


def test_rates_rise_shortly_and_fall_to_nothing():
    table = [factor(step, 100) for step in range(100)]
    assert table[0] < 0.2
    assert max(table) == table[9] == 1
    assert table[:10] == sorted(table[:10])
    assert table[9:] == sorted(table[9:], reverse=True)
    assert 0 < table[-1] < 0.001
    assert factor(0, 1) == 1


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v2"])
def test_every_parameter_learns_at_the_rate_of_its_place_once(backbone):
    plan = recipe(backbone=backbone, layer_decay=0.5, encoder_rate=1e-3, head_rate=5e-3)
    network = start(plan, None)
    found = groups(network, plan.training)
    held = [id(p) for group in found for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    by_parameter = {id(p): group["lr"] for group in found for p in group["params"]}
    levels = stages(network)
    for i, stage in enumerate(levels):
        expected = 1e-3 * 0.5 ** (len(levels) - 1 - i)
        assert {by_parameter[id(p)] for p in stage.parameters()} == {expected}
    inside = {id(p) for p in encoder(network).parameters()}
    outside = {by_parameter[id(p)] for p in network.parameters() if id(p) not in inside}
    assert outside == {5e-3}


def test_biases_and_normalisations_are_not_decayed():
    plan = recipe(backbone="mobilenet_v2", weight_decay=0.1)
    network = start(plan, None)
    decayed = {
        id(p) for g in groups(network, plan.training) if g["weight_decay"] for p in g["params"]
    }
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert id(module.weight) not in decayed
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert id(module.weight) in decayed
            assert module.bias is None or id(module.bias) not in decayed


def test_a_stage_that_does_not_learn_is_in_evaluation_and_has_no_gradient():
    plan = recipe(backbone="mobilenet_v2", strategy="gradual")
    network = start(plan, None)
    count = len(stages(network))
    for learning in range(count + 1):
        enter(network, plan.training, learning)
        for i, stage in enumerate(stages(network)):
            learns = i >= count - learning
            assert stage.training == learns
            assert all(p.requires_grad == learns for p in stage.parameters())
        assert network.training


def test_a_frozen_encoder_builds_no_graph():
    plan = recipe(backbone="mobilenet_v2", strategy="frozen")
    network = start(plan, None)
    enter(network, plan.training, 0)
    assert not encoder(network)(torch.rand(2, 3, 64, 64))[-1].requires_grad
    assert network(torch.rand(2, 3, 64, 64)).requires_grad


def test_kept_normalisation_stays_in_evaluation_while_its_stage_learns():
    plan = recipe("segmentation", backbone="mobilenet_v2", batch_norm="keep")
    network = start(plan, None)
    enter(network, plan.training, len(stages(network)))
    inside = [m for m in encoder(network).modules() if isinstance(m, nn.BatchNorm2d)]
    outside = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m not in inside]
    assert not any(m.training for m in inside)
    assert outside
    assert all(m.training for m in outside)
    assert all(m.weight.requires_grad for m in inside)
