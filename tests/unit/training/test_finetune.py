"""Learning: it does learn, from what is given, the same way each time."""

from __future__ import annotations

import pickle

import pytest
import torch
from torchvision.models import get_model

from tests.unit.training.recipes import drawn, small_recipe
from training.finetune import finetune, pretrained, start


def test_the_loss_falls_and_every_epoch_is_reported():
    told = []
    recipe = small_recipe(epochs=6)
    finetune(recipe, drawn(8), None, report=lambda *numbers: told.append(numbers))
    assert [(epoch, of) for epoch, of, _ in told] == [(i, 6) for i in range(1, 7)]
    assert told[-1][2] < told[0][2]


def test_the_same_recipe_gives_the_same_weights():
    one, two = (finetune(small_recipe(epochs=1), drawn(4), None) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_seed_gives_other_weights():
    one, two = (finetune(small_recipe(epochs=1, seed=s), drawn(4), None) for s in (1, 2))
    assert not torch.equal(one["head.weight"], two["head.weight"])


def test_learning_starts_from_the_pretrained_backbone():
    torch.manual_seed(5)
    original = get_model("mobilenet_v2", weights=None).state_dict()
    network = start(small_recipe(), original)
    assert torch.equal(
        network.encoder.state_dict()["stages.0.0.0.weight"], original["features.0.0.weight"]
    )


def test_the_backbone_moves_less_than_the_decoder_when_its_rate_is_nought():
    recipe = small_recipe(epochs=1, encoder_rate=1e-12, weight_decay=0.0, ema=0.0)
    before = start(recipe, None).state_dict()
    after = finetune(recipe, drawn(4), None)
    weights = [name for name in before if name.endswith("weight")]
    moved = {n: float((after[n] - before[n]).abs().max()) for n in weights}
    assert max(v for n, v in moved.items() if n.startswith("encoder")) < 1e-6
    assert moved["head.weight"] > 1e-4


def test_a_weight_file_with_code_in_it_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        pretrained(tmp_path / "bad.pth")


def test_half_precision_weights_come_up_as_floats(tmp_path):
    torch.save({"w": torch.ones(2).half(), "n": torch.tensor(3)}, tmp_path / "w.pth")
    state = pretrained(tmp_path / "w.pth")
    assert state["w"].dtype == torch.float32
    assert state["n"].dtype == torch.int64
