"""Owns the failure gallery: which cases are shown, and what is drawn of them.

It shows pictures of patients: it stays in the run folder. Refuses to judge why a case failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.preprocessing import scaled
from inference.runner import Runner
from training.boxes import Matches
from training.metrics import Scheme
from training.outcomes import Outcome
from training.samples import Sample


@dataclass(frozen=True)
class Case:
    """One frame with what is true and what was said.

    Attributes:
        set: title of the set that it was measured in.
        caption: name, truth and output in words.
        picture: ``(rows, columns)`` or ``(rows, columns, 3)`` in 0..1, as windowed for the network.
        aspect: height of a pixel by its width.
        true: outlines ``(rows, columns)`` bool by label.
        found: the same, as said.
        true_boxes: (kind, left, top, right, bottom).
        found_boxes: the same with their score behind, those that count.
    """

    set: str
    caption: str
    picture: NDArray[np.float32]
    aspect: float = 1.0
    true: tuple[NDArray[np.bool_], ...] = ()
    found: tuple[NDArray[np.bool_], ...] = ()
    true_boxes: tuple[tuple[float, ...], ...] = ()
    found_boxes: tuple[tuple[float, ...], ...] = ()


def worst(said: Sequence[Outcome], of: Scheme, count: int) -> list[Outcome]:
    """The worst cases first.

    Classification: wrong verdicts, the most confident first; grading: by grades between verdict
    and truth, then by confidence; segmentation: the lowest Dice; detection: most objects missed
    and boxes on nothing. What is right is no failure and is not shown.
    """
    if not said:
        return []
    bad = _FAULTS[of.task](said, of)
    order = np.argsort(-bad, kind="stable")[:count]
    return [said[i] for i in order if bad[i] > 0]


def _of_classes(said: Sequence[Outcome], of: Scheme) -> NDArray[np.float64]:
    def fault(one: Outcome) -> float:
        wrong = [name for name in of.names if one.verdict[name] != one.truth[name]]
        return max((abs(one.output[name] - one.truth[name]) for name in wrong), default=0.0)

    return np.array([fault(one) for one in said])


def _of_grades(said: Sequence[Outcome], of: Scheme) -> NDArray[np.float64]:
    def fault(one: Outcome) -> float:
        grade = one.truth["grade"]
        apart = abs(one.verdict["grade"] - grade)
        chances = [one.output[f">= {name}"] for name in of.names[1:]]
        miss = [abs(p - (grade >= k + 1)) for k, p in enumerate(chances)]
        return apart + float(np.mean(miss)) if apart else 0.0

    return np.array([fault(one) for one in said])


def _of_masks(said: Sequence[Outcome], of: Scheme) -> NDArray[np.float64]:
    return np.array([1 - np.mean([one.output[f"Dice {n}"] for n in of.names]) for one in said])


def _of_boxes(said: Sequence[Outcome], of: Scheme) -> NDArray[np.float64]:
    bad = np.zeros(len(said))
    for part in Matches(said, len(of.names)).boxes:
        hit = part.of_samples(part.matched[0])
        bad += part.objects - hit + part.of_samples(~part.matched[0])
        bad += (hit - part.of_samples(part.iou)) / 1000  # among equals the looser box first
    return bad


_FAULTS: dict[str, Callable[[Sequence[Outcome], Scheme], NDArray[np.float64]]] = {
    "classification": _of_classes,
    "grading": _of_grades,
    "segmentation": _of_masks,
    "detection": _of_boxes,
}


# --- what is drawn -----------------------------------------------------------------------------


def case(runner: Runner, sample: Sample, said: Outcome, of: Scheme) -> Case:
    """A sample with its outcome, on the frame where it shows best."""
    stack = sample.read()
    frame, true, found = len(stack.pixels) // 2, [], []
    if of.task == "segmentation" and sample.truth.masks is not None:
        truth = sample.truth.masks()
        (prediction,) = runner.predict([stack])
        channels = [label.channel for label in runner.manifest.labels]
        pairs = list(zip(truth[channels], prediction.segments, strict=True))
        wrong = sum((there ^ segment.mask).sum((1, 2)) for there, segment in pairs)
        frame = int(np.argmax(wrong))
        true = [there[frame] for there, _ in pairs]
        found = [segment.mask[frame] for _, segment in pairs]
    boxes, said_boxes = said.truth.get("boxes", []), said.output.get("boxes", [])
    counts = said.verdict.get("boxes", [])
    kept = [box for box, counted in zip(said_boxes, counts, strict=True) if counted]
    if boxes or kept:
        frame = int((boxes or kept)[0][1])
    x = scaled(stack, runner.manifest.preprocessing, slice(frame, frame + 1))[0].cpu().numpy()
    colour = runner.manifest.preprocessing.colour == "rgb"
    height, width = stack.spacing or (1.0, 1.0)
    return Case(
        set=said.set,
        caption=caption(said, of),
        picture=np.moveaxis(x, 0, -1) if colour else x[len(x) // 2],
        aspect=height / width,
        true=tuple(true),
        found=tuple(found),
        true_boxes=tuple((b[0], *b[2:6]) for b in boxes if b[1] == frame),
        found_boxes=tuple((b[0], *b[2:7]) for b in kept if b[1] == frame),
    )


def caption(said: Outcome, of: Scheme) -> str:
    """Name, truth and output in words."""
    if of.task == "classification":
        true = [name for name in of.names if said.truth[name]] or ["none"]
        told = ", ".join(f"{name} {said.output[name]:.2f}" for name in of.names)
        return f"{said.name}\ntrue: {', '.join(true)}\nsaid: {told}"
    if of.task == "grading":
        told = of.names[said.verdict["grade"]]
        chance = ", ".join(f"{name} {p:.2f}" for name, p in said.output.items())
        return f"{said.name}\ntrue: {of.names[said.truth['grade']]}\nsaid: {told} ({chance})"
    if of.task == "segmentation":
        told = ", ".join(f"{name} {said.output[f'Dice {name}']:.3f}" for name in of.names)
        return f"{said.name}\nDice: {told}"
    return f"{said.name}\n{len(said.truth['boxes'])} true, {sum(said.verdict['boxes'])} said"
