"""Owns a bundle's model on a device: loaded, held against its golden example, kept warm.

Refuses to know where bundles are stored and who wants them; ``runner`` is what runs them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inference.bundle import Bundle, load_tensors, load_weights
from inference.errors import BundleError
from inference.runner import UNFAMILIAR, Runner

TINY = 1e-6


def choose_device(wanted: str = "auto") -> torch.device:
    """``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        ValueError: the name is none of these, or this machine has no such device.
    """
    if wanted == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind == "cuda" and (not index or index.isdecimal()):
        number = int(index or 0)
        if torch.cuda.is_available() and number < torch.cuda.device_count():
            return torch.device("cuda", number)
        raise ValueError(f"this machine has no device {wanted!r}")
    raise ValueError(f"a device is auto, cpu, cuda or cuda:n, not {wanted!r}")


class Engine(Runner):
    """A bundle's model on a device.

    Args:
        bundle: opened; its weights are verified again as they are loaded.
        device: where.

    Raises:
        BundleError: the weights were altered or do not fit the manifest's network.
    """

    def __init__(self, bundle: Bundle, device: torch.device | str = "cpu") -> None:
        self.bundle = bundle
        self.digest = bundle.digest
        check = bundle.manifest.input_check
        familiar = load_tensors(bundle, check.file) if check else None
        super().__init__(bundle.manifest, load_weights(bundle), device, familiar)

    def check_golden(self) -> float:
        """Run the bundle's golden example.

        Returns:
            The largest difference from what was exported with it: of probabilities, of boxes as
            shares of the picture and their scores, and of the input check relative to its score.

        Raises:
            BundleError: it is larger than the manifest's tolerance, or the example is malformed.
        """
        golden = self.manifest.golden
        pixels = load_tensors(self.bundle, golden.input).get("pixels")
        expected = load_tensors(self.bundle, golden.output)
        colour = pixels is not None and pixels.ndim == 4 and pixels.shape[3] == 3
        if pixels is None or not len(pixels) or not (pixels.ndim == 3 or colour):
            raise BundleError(f"{golden.input}: needs 'pixels' (frames, rows, columns[, 3])")
        # Of colours a byte is a share of 255; everything else is as good as float.
        found = self.golden_output((pixels if colour else pixels.float()).numpy())
        for name, values in found.items():
            if name not in expected or expected[name].shape != values.shape:
                raise BundleError(f"{golden.output}: needs {name!r} {tuple(values.shape)}")
        if "boxes" in found:
            least = min(label.threshold for label in self.manifest.findings)
            difference = boxes_differ(found, expected, least)
        else:
            difference = _largest(found["probability"] - expected["probability"].float())
        if UNFAMILIAR in found:
            was = expected[UNFAMILIAR].float()
            relative = (found[UNFAMILIAR] - was) / was.abs().clamp_min(TINY)
            difference = _worse(difference, _largest(relative))
        if not difference <= golden.tolerance:  # a NaN is not
            raise BundleError(
                f"{golden.output}: this machine's result differs by {difference:.3g}, "
                f"over {golden.tolerance:.3g}"
            )
        return difference


def boxes_differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor], least: float) -> float:
    """The largest difference between the boxes of two answers, each with the nearest of its kind.

    By nearness and not by place in the list, since rounding may exchange two of equal score. Boxes
    under ``least`` are not missed where the other has none, but for the best of each picture.
    """
    worst = 0.0
    for mine, theirs in ((one, other), (other, one)):
        for frame, scores in enumerate(mine["scores"]):
            counted = scores >= min(least, float(scores.max()))
            for place in torch.nonzero(counted & ~(scores <= 0))[:, 0]:
                same = theirs["kinds"][frame] == mine["kinds"][frame][place]
                gaps = torch.maximum(
                    (theirs["boxes"][frame] - mine["boxes"][frame][place]).abs().amax(1),
                    (theirs["scores"][frame] - scores[place]).abs(),
                )[same]
                worst = _worse(worst, float(gaps.min()) if len(gaps) else 1.0)
    return worst


class Warm:
    """Engines that stay loaded, the least recently used leaving when the budget is full.

    Args:
        budget_bytes: for the weights of all of them; the newest stays even if it alone is more.
        device: where they run.
        make: builds an engine; tests and special devices pass their own.

    Attributes:
        loads: how often weights were loaded, so that a trace can show that they were not.
    """

    def __init__(
        self,
        budget_bytes: int,
        device: torch.device | str = "cpu",
        make: Callable[[Bundle, torch.device | str], Engine] = Engine,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.device = device
        self.loads = 0
        self._make = make
        self._engines: OrderedDict[str, Engine] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._engines

    def get(self, bundle: Bundle) -> Engine:
        """The engine of this bundle, loaded now if it is not warm.

        Raises:
            BundleError: it cannot be loaded; what was warm stays warm.
        """
        if bundle.digest in self._engines:
            self._engines.move_to_end(bundle.digest)
            return self._engines[bundle.digest]
        engine = self._make(bundle, self.device)
        self.loads += 1
        self._engines[bundle.digest] = engine
        while len(self._engines) > 1 and self._held() > self.budget_bytes:
            self._engines.popitem(last=False)
        return engine

    def clear(self) -> None:
        """Let go of all, after the device ran out of memory."""
        self._engines.clear()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    def _held(self) -> int:
        return sum(engine.bytes for engine in self._engines.values())


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _worse(one: float, other: float) -> float:
    """The larger; what is no number is the worst (``max`` would lose it)."""
    return other if not other <= one else one
