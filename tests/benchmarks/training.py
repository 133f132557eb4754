"""Measures what learning costs beside the forward and backward pass that nobody can avoid.

``python -m tests.benchmarks.training`` teaches networks with drawn pictures, with everything that
a recipe switches on (augmentation, normalisation, AdamW, averaged weights, clipping), and compares
its images a second with the bare forward and backward pass of the same network and loss on one
ready batch. Both are measured in turn, so that what else the machine does hits both; medians. The
last columns are what making the batches alone costs, per image and as a share of the bare pass; on
a GPU, threads make them beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from tests.benchmarks.machine import machine, table
from tests.unit.training.learning import recipe, samples
from training.finetune import Lesson
from training.prepare import Prepared, prepare
from training.recipe import Recipe
from training.state import State
from training.team import Team, settled
from training.validate import as_input, as_truth

HEAD = [
    "network",
    "pixels",
    "bare images/s",
    "training images/s",
    "ratio",
    "loader ms/image",
    "loader share",
]


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """How long it takes until the device is done."""
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def row(plan: Recipe, ready: Prepared, device: torch.device, repeat: int) -> list[object]:
    """One network at one size."""
    state = State.of(plan, None, device)
    lesson = Lesson(plan, ready, None, Team(0, 1, device), lambda _: None)
    layout = torch.channels_last if plan.training.channels_last else torch.contiguous_format
    x = as_input(ready.images[: lesson.batch], plan.bundle.preprocessing, device)
    x = x.contiguous(memory_format=layout)
    truth = as_truth([ready.truth(i) for i in range(lesson.batch)], device)
    narrow = plan.training.precision == "bfloat16"

    def bare() -> None:
        state.network.train()
        for _ in range(lesson.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
                found = state.network(x)
            lesson.minimise(found.float(), truth).backward()
            state.network.zero_grad(set_to_none=True)

    def epoch() -> None:
        lesson.epoch(state)

    def loader() -> None:
        for _ in lesson.batches(0):
            pass

    images = lesson.steps * lesson.batch
    with settled():
        taken = [
            [seconds(action, device) for action in (bare, epoch, loader)] for _ in range(repeat + 1)
        ][1:]
    passes, epochs, loads = (statistics.median(times) for times in zip(*taken, strict=True))
    ratio = statistics.median(one / other for one, other, _ in taken)
    return [
        f"{plan.bundle.architecture.name} on {plan.bundle.architecture.backbone}",
        plan.bundle.preprocessing.size[0],
        f"{images / passes:.1f}",
        f"{images / epochs:.1f}",
        f"{ratio:.2f}",
        f"{1000 * loads / images:.2f}",
        f"{loads / passes:.3f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument(
        "--task", choices=["classification", "segmentation"], default="classification"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="batches of an epoch")
    parser.add_argument("--repeat", type=int, default=3, help="epochs of each, after one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    told = machine()
    if device.type == "cuda":
        told += f"; {torch.cuda.get_device_name(device)}"
    found = samples(chosen.task, chosen.batch * chosen.steps)
    rows = []
    for backbone in chosen.backbones:
        for size in chosen.sizes:
            plan = recipe(
                chosen.task,
                backbone=backbone,
                activation="sigmoid",
                size=size,
                batch=chosen.batch,
                epochs=1000,
                precision=chosen.precision,
                ema=0.98,
            )
            rows.append(row(plan, prepare(found, plan.bundle), device, chosen.repeat))
    print(f"{told}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        f"{chosen.task}, batches of {chosen.batch}, {chosen.precision}, {device.type}; median of "
        f"{chosen.repeat} epochs of {chosen.steps} batches\n"
    )
    print(table(HEAD, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
