"""Owns running a model: weights on a device, batches through them, predictions out.

Refuses to know where bundles are stored, which studies want them, or what DICOM makes of a
prediction. Only this module and ``networks`` put torch to work in the service.

The same stack on the same machine gives the same prediction: nothing is drawn, no autotuner
chooses between kernels, and reduced precision is off unless the manifest asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference import measure, postprocessing, suitability
from inference.bundle import Bundle, load_tensors, load_weights
from inference.errors import BundleError, OutOfMemory, UnsuitableInput
from inference.manifest import Manifest
from inference.networks import build, fused
from inference.preprocessing import Geometry, geometry, prepare
from inference.types import FrameRef, ImageStack, Prediction

GOLDEN_STORAGE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture: a golden input has no origin


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


class Runner:
    """A network with weights in memory, ready to predict; what ``Engine`` and evaluation share.

    Args:
        manifest: how to prepare, run and finish.
        weights: the state dict in any floating point precision; it runs in float32.
        device: where.

    Raises:
        BundleError: the weights are not those of the network that the manifest names.
    """

    def __init__(
        self, manifest: Manifest, weights: dict[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        _settle()
        self.manifest = manifest
        self.device = torch.device(device)
        network = build(manifest.architecture)
        try:
            network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise BundleError(f"{manifest.weights}: {str(error)[:500]}") from error
        network = fused(network.float()).requires_grad_(False)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack device with memory_format
        self.batch = manifest.batch
        self.bytes = sum(
            tensor.numel() * tensor.element_size() for tensor in self.network.state_dict().values()
        )

    def predict(
        self, stacks: Sequence[ImageStack], keep_probability: bool = False
    ) -> list[Prediction]:
        """Look at each stack; frames of all of them share batches.

        Args:
            stacks: of one study or of several.
            keep_probability: let segments carry their probability maps.

        Returns:
            One prediction per stack, in order. A stack that breaks the manifest's contract comes
            back with ``not_analysed``, and the others go on. ``timings`` gives seconds of
            ``prepare``, ``forward`` (both shared out by frames where a batch was shared) and
            ``finish``.

        Raises:
            OutOfMemory: the device could not hold half of the manifest's batch.
        """
        tasks: list[_Task | Prediction] = []
        for stack in stacks:
            try:
                suitability.check(stack, self.manifest)
            except UnsuitableInput as error:
                tasks.append(Prediction(not_analysed=error.reason))
            else:
                tasks.append(_Task.of(stack, self.manifest))
        self._run([task for task in tasks if isinstance(task, _Task)])
        return [
            task if isinstance(task, Prediction) else self._finish(task, keep_probability)
            for task in tasks
        ]

    def prepared(self, stack: ImageStack) -> tuple[Tensor, Geometry]:
        """All frames as the network takes them, on the device, and the way back."""
        return prepare(stack, self.manifest.preprocessing, device=self.device)

    def probabilities(self, x: Tensor) -> Tensor:
        """``(n, c, r, c)`` prepared input to ``(n, classes, r, c)`` float32 on the device."""
        with torch.inference_mode():
            x = x.to(self.device).contiguous(memory_format=torch.channels_last)
            logits = self.network(x).float()
            if self.manifest.activation == "sigmoid":
                return torch.sigmoid(logits)
            return torch.softmax(logits, 1)

    def golden_output(self, pixels: NDArray[np.generic]) -> Tensor:
        """``(frames, rows, columns)`` to probabilities ``(classes, frames, r, c)`` on the CPU.

        On the network's grid, before any cleaning.
        """
        stack = ImageStack(
            pixels=pixels,
            unit=self.manifest.input.unit,
            modality=self.manifest.select.modality[0],
            frames=tuple(FrameRef("", GOLDEN_STORAGE, i + 1) for i in range(len(pixels))),
        )
        x, _ = prepare(stack, self.manifest.preprocessing, device=self.device)
        found = [
            self.probabilities(x[i : i + self.batch]).cpu() for i in range(0, len(x), self.batch)
        ]
        return torch.cat(found).transpose(0, 1).contiguous()

    def _run(self, tasks: Sequence[_Task]) -> None:
        waiting = [(task, frame) for task in tasks for frame in range(len(task.probability))]
        first = 0
        while first < len(waiting):
            pieces = list(_pieces(waiting[first : first + self.batch]))
            try:
                self._forward(pieces)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._lean(error)
                continue
            first += sum(frames.stop - frames.start for _, frames in pieces)

    def _forward(self, pieces: Sequence[tuple[_Task, slice]]) -> None:
        """One batch: prepare, run, and lay the result into the tasks that it belongs to."""
        started = perf_counter()
        spec = self.manifest.preprocessing
        inputs = [prepare(task.stack, spec, frames, self.device)[0] for task, frames in pieces]
        x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        prepared = perf_counter()
        found = self.probabilities(x).cpu().numpy()
        done = perf_counter()
        at = 0
        for task, frames in pieces:
            count = frames.stop - frames.start
            task.probability[frames] = found[at : at + count]
            at += count
            task.timings["prepare"] += (prepared - started) * count / len(found)
            task.timings["forward"] += (done - prepared) * count / len(found)

    def _lean(self, error: RuntimeError) -> None:
        """After an allocation failed: half the batch, for good; a second failure is final."""
        if not _is_out_of_memory(error):
            raise error
        if self.batch < self.manifest.batch or self.batch == 1:
            raise OutOfMemory(f"{self.device} cannot hold a batch of {self.batch}") from error
        self.batch = max(1, self.manifest.batch // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _finish(self, task: _Task, keep_probability: bool) -> Prediction:
        started = perf_counter()
        with torch.inference_mode():
            segments = postprocessing.segments(
                task.probability,
                task.stack,
                task.where,
                self.manifest,
                device=self.device,
                keep_probability=keep_probability,
            )
        task.timings["finish"] = perf_counter() - started
        return Prediction(
            segments=segments, notes=measure.notes(task.stack), timings=dict(task.timings)
        )


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
        super().__init__(bundle.manifest, load_weights(bundle), device)

    def check_golden(self) -> float:
        """Run the bundle's golden example.

        Returns:
            The largest difference from the probabilities that were exported with it.

        Raises:
            BundleError: it is larger than the manifest's tolerance, or the example is malformed.
        """
        golden = self.manifest.golden
        pixels = load_tensors(self.bundle, golden.input).get("pixels")
        expected = load_tensors(self.bundle, golden.output).get("probability")
        if pixels is None or pixels.ndim != 3 or not len(pixels):
            raise BundleError(f"{golden.input}: needs 'pixels' (frames, rows, columns)")
        found = self.golden_output(pixels.float().numpy())
        if expected is None or expected.shape != found.shape:
            raise BundleError(f"{golden.output}: needs 'probability' {tuple(found.shape)}")
        difference = float((found - expected.float()).abs().max())
        if not difference <= golden.tolerance:  # a NaN is not
            raise BundleError(
                f"{golden.output}: this machine's result differs by {difference:.3g}, "
                f"over {golden.tolerance:.3g}"
            )
        return difference


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


@dataclass
class _Task:
    """One stack on its way through the network."""

    stack: ImageStack
    where: Geometry
    probability: NDArray[np.float32]
    timings: dict[str, float] = field(default_factory=lambda: {"prepare": 0.0, "forward": 0.0})

    @classmethod
    def of(cls, stack: ImageStack, manifest: Manifest) -> _Task:
        where = geometry(stack, manifest.preprocessing)
        shape = (len(stack.pixels), manifest.architecture.classes, *where.size)
        return cls(stack, where, np.empty(shape, np.float32))


def _pieces(batch: Sequence[tuple[_Task, int]]) -> Iterator[tuple[_Task, slice]]:
    """Runs of frames of one task within a batch."""
    start = 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or batch[i][0] is not batch[start][0]:
            task, first = batch[start]
            yield task, slice(first, first + i - start)
            start = i


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _settle() -> None:
    """Choose repeatable kernels in full precision; torch keeps these for the whole process."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
