"""Owns pretrained weights: where they come from and whether they are a network's own.

Refuses to know how they are learnt on. Under torchvision's names they come in, and the network's
encoder maps them onto itself (``from_torchvision``). Its first convolution was learnt for three
colours; where the input has k other channels, each gets the sum over the colours divided by k, so
that a grey picture in all of them gives what it gave in three. The
input must then be normalised as the weights were learnt with, which ``check`` sees to.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from inference.errors import BundleError
from inference.manifest import Preprocessing
from training.errors import RecipeError, WeightsError
from training.recipe import Recipe

SHIFTED = ("googlenet", "inception_v3")
"""torchvision's networks of this name turn its usual normalisation into this one themselves; our
encoders, made of their layers, are given it."""
HALF = [0.5, 0.5, 0.5]
NEAR = 0.02


def load(spec: str, backbone: str, root: Path) -> dict[str, Tensor] | None:
    """A pretrained state dict under torchvision's names, floating point numbers as float32.

    Args:
        spec: ``none``; ``hub``, torchvision's best for this backbone, kept in its cache; or a
            file, absolute or below ``root``: safetensors, or a state dict that torch saved, also
            one wrapped as ``{"state_dict": ...}`` or learnt with several GPUs (``module.``).
        backbone: torchvision's name.
        root: the data folder.

    Raises:
        WeightsError: there are none, the hub is out of reach, or the file holds something else.
    """
    if spec == "none":
        return None
    state = _hub(backbone) if spec == "hub" else _file(root / spec)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def into(network: nn.Module, state: dict[str, Tensor] | None, backbone: str) -> None:
    """Put pretrained weights into a network's encoder; None leaves it at random.

    Raises:
        WeightsError: they are those of another architecture; names what does not fit.
    """
    if state is None:
        return
    encoder = cast(Any, network).encoder
    try:
        encoder.load_state_dict(encoder.from_torchvision(state), strict=True)
    except (BundleError, RuntimeError) as error:
        raise WeightsError(
            f"these weights are not those of a {backbone}: {str(error)[:1000]}; give the weights "
            "of that backbone in training.weights, or name theirs in bundle.architecture.backbone"
        ) from error


def normalisation(backbone: str, spec: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation per colour that weights expect; None where nobody can tell."""
    if spec != "hub":
        return None
    if backbone in SHIFTED:
        return HALF, HALF
    preset = _best(backbone).transforms()
    return list(preset.mean), list(preset.std)


def check(recipe: Recipe) -> None:
    """Refuse a recipe that normalises otherwise than its hub weights were learnt with.

    Where the input is not three channels, each is held against the mean of the three.

    Raises:
        RecipeError: it does; tells both.
    """
    architecture = recipe.bundle.architecture
    wanted = normalisation(architecture.backbone, recipe.training.weights)
    if wanted is None:
        return
    count = architecture.in_channels
    mean, std = (w if count == 3 else [sum(w) / 3] * count for w in wanted)
    if not _fits(recipe.bundle.preprocessing, mean, std):
        told = recipe.bundle.preprocessing
        raise RecipeError(
            f"bundle.preprocessing: {architecture.backbone}'s hub weights expect mean "
            f"{_said(mean)} and std {_said(std)}, not {_said(told.mean)} and {_said(told.std)}"
        )


def _fits(spec: Preprocessing, mean: list[float], std: list[float]) -> bool:
    both = zip([*spec.mean, *spec.std], [*mean, *std], strict=True)
    return all(abs(one - other) <= NEAR for one, other in both)


def _said(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


def _best(backbone: str) -> Any:
    """torchvision's default weights of a backbone."""
    try:
        return get_model_weights(backbone).DEFAULT
    except ValueError as error:
        raise WeightsError(f"torchvision has no network {backbone!r}") from error


def _hub(backbone: str) -> dict[str, Tensor]:
    best = _best(backbone)
    try:
        return best.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]  # torchvision has no types
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the hub gives no weights for {backbone} ({error}): fetch {best.url} where there is a "
            "network, and name the file in training.weights; or take none, from scratch"
        ) from error


def _file(path: Path) -> dict[str, Tensor]:
    """Only tensors are unpickled (``weights_only``): a file that holds code is refused."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"training.weights: there is no file {path.name!r} at its place below the data "
            "folder; hub and none are the other choices"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(
            f"{path.name} is no file of tensors: {str(error).splitlines()[0]}; save a state dict "
            "with safetensors or torch.save"
        ) from error
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{path.name} holds no state dict; save network.state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
