"""Owns the way of stacks through a network: batches in, predictions out.

Refuses to know bundles and their files, which studies want a model, or what DICOM makes of a
prediction.

The same stack on the same machine gives the same prediction: nothing is drawn, no autotuner
chooses between kernels, and reduced precision is off unless the manifest asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference import familiarity, findings, measure, postprocessing, saliency, suitability
from inference.detectors import MOST
from inference.errors import BundleError, OutOfMemory, UnsuitableInput
from inference.manifest import Manifest
from inference.networks import build, fused
from inference.preprocessing import Geometry, geometry, prepare
from inference.types import FrameRef, ImageStack, Prediction

FEATURES, UNFAMILIAR = "features", "unfamiliar"
GOLDEN_STORAGE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture: a golden input has no origin

Raw = dict[str, NDArray[Any]]


class Runner:
    """A network with weights in memory, ready to predict; what ``Engine`` and evaluation share.

    Args:
        manifest: how to prepare, run and finish.
        weights: the state dict in any floating point precision; it runs in float32.
        device: where.
        familiar: what training data are like, for ``manifest.input_check``; without it, or without
            the manifest's, every suitable input is looked at.

    Raises:
        BundleError: the weights are not those of the network that the manifest names.
    """

    def __init__(
        self,
        manifest: Manifest,
        weights: dict[str, Tensor],
        device: torch.device | str = "cpu",
        familiar: Mapping[str, Tensor] | None = None,
    ) -> None:
        _settle()
        self.manifest = manifest
        self.familiar = familiar if manifest.input_check else None
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
            One prediction per stack, in order. A stack that breaks the manifest's contract, or is
            unlike what the model learnt from, comes back with ``not_analysed``, and the others go
            on. ``timings`` gives seconds of
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
        self._run([task for task in tasks if isinstance(task, _Task)], self.answer)
        return [
            task if isinstance(task, Prediction) else self._finish(task, keep_probability)
            for task in tasks
        ]

    def raw(self, stacks: Sequence[ImageStack]) -> list[Raw]:
        """What the network says of every frame, unsuitable and unlike inputs too.

        Returns:
            For each stack, on the network's grid, float32: ``probability (frames, classes, rows,
            columns)`` of a segmentation, ``(frames, classes)`` of a classification, ``(frames,
            grades - 1)`` of a grading, which is ``P(grade >= k)``; of a detection ``boxes (frames,
            K, 4)``, ``scores (frames, K)`` and ``kinds (frames, K)`` int64, best first, those that
            there are not with score 0.
        """
        tasks = [_Task.of(stack, self.manifest) for stack in stacks]
        self._run(tasks, self.answer)
        return [{k: v for k, v in task.raw.items() if k != FEATURES} for task in tasks]

    def features(self, stacks: Sequence[ImageStack]) -> NDArray[np.float32]:
        """``(frames of all stacks, F)``: the means over each of the encoder's maps."""
        tasks = [_Task.of(stack, self.manifest) for stack in stacks]
        self._run(tasks, self._described)
        found = [task.raw[FEATURES] for task in tasks]
        empty = np.zeros((0, sum(self.network.encoder.channels)), np.float32)
        return np.concatenate([empty, *found])

    def prepared(self, stack: ImageStack) -> tuple[Tensor, Geometry]:
        """All frames as the network takes them, on the device, and the way back."""
        return prepare(stack, self.manifest.preprocessing, device=self.device)

    def answer(self, x: Tensor) -> dict[str, Tensor]:
        """One forward pass.

        Args:
            x: ``(n, c, r, c)`` prepared input.

        Returns:
            As ``raw``, n frames, on the device; with ``features (n, F)`` where inputs are checked.
        """
        seen: list[Tensor] = []
        with torch.inference_mode():
            handle = self.network.encoder.register_forward_hook(
                lambda _module, _inputs, maps: seen.extend(maps)
            )
            try:
                found = self._told(self.network(self._on_device(x)))
            finally:
                handle.remove()
            if self.familiar is not None:
                found[FEATURES] = familiarity.described(seen)
        return found

    def golden_output(self, pixels: NDArray[np.generic]) -> dict[str, Tensor]:
        """What the network says of ``(frames, rows, columns[, 3])``, on the CPU, before cleaning.

        As ``raw``, but a segmentation's ``probability`` is ``(classes, frames, r, c)`` and boxes
        are shares of the input's width and height; with ``unfamiliar (frames,)``, the score of the
        input check, where there is one.
        """
        stack = ImageStack(
            pixels=pixels,
            unit=self.manifest.input.unit,
            modality=self.manifest.select.modality[0],
            frames=tuple(FrameRef("", GOLDEN_STORAGE, i + 1) for i in range(len(pixels))),
        )
        x, where = self.prepared(stack)
        parts = [self.answer(x[i : i + self.batch]) for i in range(0, len(x), self.batch)]
        found = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        if self.manifest.task == "segmentation":
            found["probability"] = found["probability"].transpose(0, 1).contiguous()
        if "boxes" in found:
            rows, columns = where.size
            found["boxes"] = found["boxes"] / torch.tensor([columns, rows, columns, rows])
        if FEATURES in found and self.familiar is not None:
            found[UNFAMILIAR] = familiarity.score(found.pop(FEATURES), self.familiar)
        return found

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device).contiguous(memory_format=torch.channels_last)

    def _described(self, x: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {FEATURES: familiarity.described(self.network.encoder(self._on_device(x)))}

    def _told(self, out: Any) -> dict[str, Tensor]:
        """The network's answer as numbers that mean something."""
        if self.manifest.task == "detection":
            return {
                "boxes": _padded([found["boxes"].float() for found in out]),
                "scores": _padded([found["scores"].float() for found in out]),
                "kinds": _padded([found["labels"] for found in out]),
            }
        logits = out.float() / self.manifest.temperature
        if self.manifest.activation == "sigmoid":
            return {"probability": torch.sigmoid(logits)}
        return {"probability": torch.softmax(logits, 1)}

    def _run(self, tasks: Sequence[_Task], ask: Callable[[Tensor], dict[str, Tensor]]) -> None:
        waiting = [(task, frame) for task in tasks for frame in range(len(task.stack.pixels))]
        first = 0
        while first < len(waiting):
            pieces = list(_pieces(waiting[first : first + self.batch]))
            try:
                self._forward(pieces, ask)
            except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
                self._lean(error)
                continue
            first += sum(frames.stop - frames.start for _, frames in pieces)

    def _forward(
        self, pieces: Sequence[tuple[_Task, slice]], ask: Callable[[Tensor], dict[str, Tensor]]
    ) -> None:
        """One batch: prepare, run, and lay the result into the tasks that it belongs to."""
        started = perf_counter()
        spec = self.manifest.preprocessing
        inputs = [prepare(task.stack, spec, frames, self.device)[0] for task, frames in pieces]
        x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        prepared = perf_counter()
        found = {name: values.cpu().numpy() for name, values in ask(x).items()}
        done = perf_counter()
        at = 0
        for task, frames in pieces:
            count = frames.stop - frames.start
            for name, values in found.items():
                if name not in task.raw:
                    shape = (len(task.stack.pixels), *values.shape[1:])
                    task.raw[name] = np.empty(shape, values.dtype)
                task.raw[name][frames] = values[at : at + count]
            at += count
            task.timings["prepare"] += (prepared - started) * count / len(x)
            task.timings["forward"] += (done - prepared) * count / len(x)

    def _lean(self, error: MemoryError | RuntimeError) -> None:
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
        try:
            suitability.check_score(self._unfamiliar(task), self.manifest)
        except UnsuitableInput as error:
            return Prediction(not_analysed=error.reason, timings=dict(task.timings))
        if self.manifest.task == "segmentation":
            told = self._segmented(task, keep_probability)
        else:
            told = self._found(task)
        task.timings["finish"] = perf_counter() - started
        return replace(told, timings=dict(task.timings))

    def _unfamiliar(self, task: _Task) -> float | None:
        """The median over the frames, so that one odd slice refuses no volume."""
        if self.familiar is None:
            return None
        features = torch.from_numpy(task.raw[FEATURES])
        return float(familiarity.score(features, self.familiar).median())

    def _segmented(self, task: _Task, keep_probability: bool) -> Prediction:
        with torch.inference_mode():
            segments = postprocessing.segments(
                task.raw["probability"],
                task.stack,
                task.where,
                self.manifest,
                device=self.device,
                keep_probability=keep_probability,
            )
        return Prediction(segments=segments, notes=measure.notes(task.stack))

    def _found(self, task: _Task) -> Prediction:
        def look(frame: int, channel: int) -> NDArray[np.float32] | None:
            if self._places is None:
                return None
            spec = self.manifest.preprocessing
            x, where = prepare(task.stack, spec, slice(frame, frame + 1), self.device)
            x = x.contiguous(memory_format=torch.channels_last)
            heat = saliency.grad_cam(self.network, self._places, x, channel)
            return np.asarray(saliency.on_source(heat, where)[0])

        found, notes = findings.findings(task.raw, task.stack, task.where, self.manifest, look)
        measured = measure.notes(task.stack) if any(f.boxes for f in found) else ()
        return Prediction(findings=found, notes=(*notes, *measured))

    @cached_property
    def _places(self) -> nn.Module | None:
        """The layer whose maps show where the network looked, if it gives any.

        A transformer's one convolution cuts the picture into patches and has seen nothing yet.
        """
        if sum(isinstance(m, nn.Conv2d) for m in self.network.modules()) < 2:
            return None
        spec = self.manifest.preprocessing
        x = torch.zeros(1, self.manifest.architecture.in_channels, *spec.size, device=self.device)
        try:
            return saliency.last_convolution(self.network, x)
        except ValueError:  # no map of more than one pixel
            return None


@dataclass
class _Task:
    """One stack on its way through the network."""

    stack: ImageStack
    where: Geometry
    raw: Raw = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=lambda: {"prepare": 0.0, "forward": 0.0})

    @classmethod
    def of(cls, stack: ImageStack, manifest: Manifest) -> _Task:
        return cls(stack, geometry(stack, manifest.preprocessing))


def _pieces(batch: Sequence[tuple[_Task, int]]) -> Iterator[tuple[_Task, slice]]:
    """Runs of frames of one task within a batch."""
    start = 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or batch[i][0] is not batch[start][0]:
            task, first = batch[start]
            yield task, slice(first, first + i - start)
            start = i


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """``(n, MOST, ...)``: each row filled up with zeros."""
    whole = rows[0].new_zeros((len(rows), MOST, *rows[0].shape[1:]))
    for filled, row in zip(whole, rows, strict=True):
        filled[: len(row)] = row
    return whole


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _settle() -> None:
    """Choose repeatable kernels in full precision; torch keeps these for the whole process."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
