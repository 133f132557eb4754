"""Owns the learning itself; refuses to know where samples come from or what becomes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inference.networks import UNet, build
from inference.preprocessing import normalise
from training.augment import augment
from training.datasets import Sample, tensors
from training.losses import segmentation_loss
from training.recipe import Recipe

Report = Callable[[int, int, float], None]
"""Told after each epoch: epoch, of how many, mean loss."""


def pretrained(file: Path) -> dict[str, Tensor]:
    """A torchvision state dict from disk, floating point numbers as float32.

    Only tensors are unpickled (``weights_only``): a file that holds anything else is refused.

    Raises:
        pickle.UnpicklingError: the file holds more than tensors.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def start(recipe: Recipe, weights: dict[str, Tensor] | None) -> UNet:
    """The recipe's network: decoder at random from the recipe's seed, encoder from ``weights``."""
    torch.manual_seed(recipe.training.seed)
    network = build(recipe.bundle.architecture)
    assert isinstance(network, UNet)  # noqa: S101  # the one architecture that there is
    if weights is not None:
        network.encoder.load_state_dict(network.encoder.from_torchvision(weights), strict=True)
    return network


def finetune(
    recipe: Recipe,
    samples: Sequence[Sample],
    weights: dict[str, Tensor] | None,
    device: torch.device | str = "cpu",
    report: Report = lambda *_: None,
) -> dict[str, Tensor]:
    """Learn from samples.

    AdamW with a lower rate for what was pretrained, one cosine from a short warm-up to nothing,
    and an exponential mean of the weights, which is what is returned. On one CPU and number of
    threads the same recipe and samples give the same weights.

    Args:
        recipe: what and how.
        samples: all are learnt from; validation belongs to the caller.
        weights: pretrained backbone under torchvision's names; None starts at random.
        device: to learn on.
        report: hears of each epoch.

    Returns:
        The network's state dict, float32 on the CPU.
    """
    how = recipe.training
    spec = recipe.bundle.preprocessing
    images, truths = tensors(samples, spec)
    network = start(recipe, weights).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack device with memory_format
    average = get_ema_multi_avg_fn(how.ema)  # type: ignore[no-untyped-call]  # torch's own
    mean = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    decoder = [*network.steps.parameters(), *network.head.parameters()]
    rates = [how.encoder_rate, how.decoder_rate]
    optimiser = torch.optim.AdamW(
        [
            {"params": list(network.encoder.parameters()), "lr": rates[0]},
            {"params": decoder, "lr": rates[1]},
        ],
        weight_decay=how.weight_decay,
    )
    steps = max(1, len(images) // how.batch) * how.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=rates, total_steps=steps + 1, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(how.seed)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=how.autocast)

    network.train()
    for epoch in range(how.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        whole = len(order) - len(order) % how.batch or len(order)
        batches = [order[i : i + how.batch] for i in range(0, whole, how.batch)]
        for batch in batches:
            image, truth = augment(images[batch], truths[batch], how, generator)
            x = normalise(image.to(device), spec).contiguous(memory_format=torch.channels_last)
            with autocast:
                logits = network(x)
            loss = segmentation_loss(logits.float(), truth.to(device), recipe.bundle.activation)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimiser.step()
            schedule.step()
            mean.update_parameters(network)
            total += loss.item()
        report(epoch + 1, how.epochs, total / len(batches))
    return _plain(mean.module)


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().contiguous(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
