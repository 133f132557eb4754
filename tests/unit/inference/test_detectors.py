"""Boxes: torchvision's detectors see our input untouched, and count kinds from 0."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save

from inference.detectors import MOST, Detector
from inference.errors import BundleError
from inference.pyramid import Pyramid

NAMES = ("fasterrcnn", "retinanet")


@pytest.fixture(scope="module", params=NAMES)
def detector(request):
    torch.manual_seed(0)
    return Detector(request.param, Pyramid("mobilenet_v2", 1), 2)


def favouring(detector, kind):
    """A copy whose every box is of one kind."""
    network = copy.deepcopy(detector)
    with torch.no_grad():
        if hasattr(network.model, "roi_heads"):
            bias = network.model.roi_heads.box_predictor.cls_score.bias
            bias.zero_()[kind + 1] = 9
        else:
            bias = network.model.head.classification_head.cls_logits.bias
            bias.fill_(-9).view(-1, 2)[:, kind] = 9
    return network


def target(kind, *box):
    return {"boxes": torch.tensor([box]).float().reshape(-1, 4), "labels": torch.tensor([kind])}


NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


@pytest.mark.parametrize("kind", [0, 1])
def test_kinds_count_from_0_in_what_comes_out(detector, kind):
    with torch.no_grad():
        (found,) = favouring(detector, kind).eval()(torch.rand(1, 1, 64, 96))
    assert len(found["boxes"])
    assert set(found["labels"].tolist()) == {kind}


def test_kinds_count_from_0_in_what_is_learnt(detector):
    losses = []
    for kind in (0, 1):
        torch.manual_seed(1)
        network = favouring(detector, 0)
        told = network(torch.rand(2, 1, 64, 64), [target(kind, 8, 8, 40, 40)] * 2)
        losses.append(float(sum(told.values()).detach()))
    assert losses[0] < losses[1]


def test_the_input_is_neither_resized_nor_normalised(detector):
    network = copy.deepcopy(detector).eval()
    x, seen = torch.rand(2, 1, 64, 96), []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(x)
    assert torch.equal(seen[0], x)


def test_boxes_lie_in_the_input_the_best_first_and_are_not_too_many(detector):
    with torch.no_grad():
        found = favouring(detector, 1).eval()(torch.rand(2, 1, 64, 96))
    for one in found:
        assert 0 < len(one["boxes"]) <= MOST
        assert bool((one["scores"].diff() <= 0).all())
        assert bool((one["boxes"] >= 0).all())
        assert float(one["boxes"][:, [0, 2]].max()) <= 96
        assert float(one["boxes"][:, [1, 3]].max()) <= 64


def test_every_parameter_learns_also_where_a_picture_holds_nothing(detector):
    network = copy.deepcopy(detector)
    told = network(torch.rand(2, 1, 64, 64), [target(1, 4, 4, 60, 60), NOTHING])
    sum(told.values()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None]
    assert still == []


def test_targets_are_left_as_they_were(detector):
    given = target(0, 8, 8, 40, 40)
    copy.deepcopy(detector)(torch.rand(1, 1, 64, 64).repeat(2, 1, 1, 1), [given, given])
    assert given["labels"].tolist() == [0]


def test_no_tensor_is_written_twice(detector):
    names = list(detector.state_dict())
    assert sum("stages.0" in name for name in names) == sum(
        name.startswith("encoder.stages.0") for name in names
    )
    assert save({k: v.contiguous() for k, v in detector.state_dict().items()})


def test_a_copy_uses_its_own_encoder(detector):
    network = copy.deepcopy(detector).eval()
    with torch.no_grad():
        before = detector.eval().model.backbone(torch.ones(1, 1, 64, 64))["0"]
        for parameter in network.encoder.parameters():
            parameter.zero_()
        assert torch.equal(before, detector.model.backbone(torch.ones(1, 1, 64, 64))["0"])
        assert not torch.equal(before, network.model.backbone(torch.ones(1, 1, 64, 64))["0"])


@pytest.mark.parametrize("name", NAMES)
def test_another_backbone_is_refused_by_both_names(name):
    with pytest.raises(BundleError, match=f"{name}.*squeezenet1_1"):
        Detector(name, Pyramid("squeezenet1_1", 3), 1)
