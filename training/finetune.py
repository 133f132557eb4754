"""Owns the learning itself; refuses to know where samples come from or what becomes of weights.

On one machine, device and number of threads the same recipe and samples give the same weights, and
so does a run that was killed and started again: every draw comes from (seed, epoch, place), and a
checkpoint holds all else. On a GPU a few of torch's kernels know no fixed order (the backward pass
of bilinear enlarging, RoIAlign); there runs agree up to rounding.

After each epoch the averaged weights are judged on validation samples: by their loss, and in
detection, whose networks tell a loss only while they learn, by the mean average precision. The
best epoch's weights are what is learnt.

With several processes (torchrun) each takes every n-th sample of a batch, and gradients are
averaged. Batch normalisation and soft Dice then see a process's share, not the whole batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from inference.networks import build
from training import strategy
from training import weights as pretrained
from training.augment import Varied, augment, generator, seed_of
from training.errors import Diverged, RecipeError
from training.losses import drawing, objective
from training.prepare import Prepared, ahead, check_classes, prepare, workers
from training.recipe import Recipe
from training.run import Checkpoint, Progress, Report, Run
from training.samples import Sample
from training.validate import HEADLINES, Verdict, as_input, as_truth, validate

CLIP = 5.0  # norm of a gradient; in practice only what is about to diverge exceeds it
OFTEN = 20  # writing checkpoints takes about one part in so many of the time
SYNC = 16  # steps between two looks at a GPU's losses, as each look waits for it
ORDER, DROPOUT = 1, 2  # tell apart draws of one epoch

Row = dict[str, Any]
"""A line of ``metrics.csv``."""


def finetune(
    recipe: Recipe,
    train: Sequence[Sample],
    val: Sequence[Sample],
    run: Run,
    *,
    weights: dict[str, Tensor] | None,
    device: torch.device | str = "cpu",
    report: Report = lambda _: None,
) -> dict[str, Tensor]:
    """Prepare samples and learn from them (``learn``).

    Args:
        recipe: what and how.
        train: learnt from.
        val: decide which epoch is best; none: the last is.
        run: where it is kept and goes on.
        weights: pretrained, under torchvision's names; None starts at random.
        device: ``cpu`` or ``cuda``; under torchrun each process takes a GPU of its own.
        report: hears of samples, steps and epochs.

    Returns:
        The network's state dict, float32 on the CPU.

    Raises:
        DataError: samples cannot be read, or never show a class.
        RecipeError: the recipe asks for what its task cannot do.
        WeightsError: the weights are not those of the backbone.
        RunError: the folder holds another run.
        Diverged: the loss is no number any more.
    """
    with processes(device) as team:
        parts: dict[str, Prepared] = {}
        for part, samples in (("train", train), ("val", val)):
            if samples or part == "train":

                def told(done: int, total: int, part: str = part) -> None:
                    report(Progress("prepare", done, total, part=part))

                name = f"{part}-{team.rank}"
                parts[part] = prepare(samples, recipe.bundle, run.folder, name, told=told)
        return learn(
            recipe,
            parts["train"],
            parts.get("val"),
            run,
            weights=weights,
            device=device,
            report=report,
        )


def learn(
    recipe: Recipe,
    train: Prepared,
    val: Prepared | None,
    run: Run,
    *,
    weights: dict[str, Tensor] | None,
    device: torch.device | str = "cpu",
    report: Report = lambda _: None,
) -> dict[str, Tensor]:
    """Learn from prepared samples; as ``finetune``.

    AdamW, one warm-up and cosine over all steps, an exponential mean of the weights. A finished
    run is not learnt again: its weights are returned.
    """
    with processes(device) as team, settled():
        how = recipe.training
        check(recipe, train, team)
        run.environment(team.device)
        run.data({"train": train} if val is None else {"train": train, "val": val})
        if run.finished:
            report(Progress("finished", how.epochs, how.epochs, how.epochs, how.epochs))
            return run.weights()
        state = State.of(recipe, weights, team.device)
        if kept := run.load():
            state.restore(kept)
        lesson = Lesson(recipe, train, val, team, report)
        written = time.monotonic()
        cost = 0.0
        while not state.over(how.epochs, how.patience):
            lesson.epoch(state)
            run.metrics(state.history)
            now = time.monotonic()
            if now - written >= OFTEN * cost:
                run.save(state.checkpoint())
                written = time.monotonic()
                cost = written - now
        run.finish(state.best)
        report(Progress("finished", state.done, how.epochs, state.done, how.epochs))
        return state.best


def start(recipe: Recipe, weights: dict[str, Tensor] | None) -> nn.Module:
    """The recipe's network: head at random from the recipe's seed, encoder from ``weights``."""
    torch.manual_seed(seed_of(recipe.training.seed))
    network = build(recipe.bundle.architecture, recipe.training.dropout)
    pretrained.into(network, weights, recipe.bundle.architecture.backbone)
    return network


@dataclass(frozen=True)
class Team:
    """This process among those that learn together.

    Attributes:
        rank: counts from 0; 0 writes and judges.
        size: how many there are.
        device: this process's own.
    """

    rank: int
    size: int
    device: torch.device


@contextmanager
def processes(device: torch.device | str) -> Iterator[Team]:
    """Join those that torchrun started, if it did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own = torch.device(device)
    if size == 1:
        yield Team(0, 1, own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    joined = not distributed.is_initialized()
    if joined:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Team(distributed.get_rank(), size, own)
    finally:
        if joined:
            distributed.destroy_process_group()


@contextmanager
def settled() -> Iterator[None]:
    """Repeatable kernels while we learn, and what the process had before afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    kernels: Any = torch.utils.deterministic
    filled = kernels.fill_uninitialized_memory
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.benchmark, cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    kernels.fill_uninitialized_memory = False  # costs time, finds bugs only
    # Gradients of boxes that are surely background are so small that processors trip over them.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.use_deterministic_algorithms(before[2], warn_only=only_warns)
        kernels.fill_uninitialized_memory = filled
        torch.set_flush_denormal(False)


@dataclass
class State:
    """All that changes while a run learns; ``checkpoint`` and ``restore`` are each other's inverse.

    Attributes:
        network: what learns.
        mean: its exponential mean.
        optimiser: over ``strategy.groups``.
        done: epochs that are over.
        best: the best epoch's averaged weights.
        score: of those; higher is better.
        stale: epochs since.
        history: a row an epoch.
    """

    network: nn.Module
    mean: AveragedModel
    optimiser: torch.optim.AdamW
    done: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    score: float = -math.inf
    stale: int = 0
    history: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, weights: dict[str, Tensor] | None, device: torch.device) -> State:
        """Before the first epoch."""
        how = recipe.training
        network = start(recipe, weights)
        network = network.to(device, memory_format=_layout(recipe))  # type: ignore[call-overload]  # torch's overloads lack device with memory_format
        average = get_ema_multi_avg_fn(how.ema)  # type: ignore[no-untyped-call]  # torch's own
        mean = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        optimiser = torch.optim.AdamW(strategy.groups(network, how), fused=True)
        return cls(network, mean, optimiser)

    def over(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or too many brought nothing."""
        return self.done >= epochs or bool(patience and self.stale >= patience)

    def judged(self, verdict: Verdict | None) -> None:
        """Keep the averaged weights if they are the best so far; without a verdict they are."""
        if verdict is None or verdict.score > self.score or not self.best:
            self.best = _plain(self.mean.module.state_dict())
            self.score = self.score if verdict is None else verdict.score
            self.stale = 0
        else:
            self.stale += 1

    def checkpoint(self) -> Checkpoint:
        """As a run folder keeps it."""
        held = {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "best": self.best,
        }
        tensors = {f"{part}/{k}": v for part, state in held.items() for k, v in state.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": v for k, v in state.items()}
        names = ("done", "score", "stale", "history")
        return Checkpoint(_plain(tensors), {name: getattr(self, name) for name in names})

    def restore(self, kept: Checkpoint) -> None:
        """Go on where a checkpoint was made."""
        parts: dict[str, dict[str, Tensor]] = {
            "network": {},
            "mean": {},
            "best": {},
            "optimiser": {},
        }
        for name, tensor in kept.tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
        self.network.load_state_dict(parts["network"])
        self.mean.load_state_dict(parts["mean"])
        self.best = parts["best"]
        known = self.optimiser.state_dict()
        own = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = _laid_as(own[int(index)], tensor)
        self.optimiser.load_state_dict(known | {"state": moments})
        for name, value in kept.scalars.items():
            setattr(self, name, value)


class Lesson:
    """What stays the same from epoch to epoch, and how one is learnt."""

    def __init__(
        self, recipe: Recipe, train: Prepared, val: Prepared | None, team: Team, report: Report
    ) -> None:
        self.recipe, self.train, self.val = recipe, train, val
        self.team, self.report = team, report
        self.batch = min(recipe.training.batch, len(train) // team.size * team.size)
        self.steps = len(train) // self.batch
        self.minimise = objective(recipe, train)
        self.judge = objective(recipe, train, judging=True)
        self.drawn = drawing(recipe, train)

    def epoch(self, state: State) -> None:
        """Learn from every sample once, or as often as it is drawn, and judge the outcome."""
        how, began = self.recipe.training, time.monotonic()
        torch.manual_seed(seed_of(how.seed, state.done, DROPOUT, self.team.rank))
        learning = strategy.thawed(how, len(strategy.stages(state.network)), state.done)
        strategy.enter(state.network, how, learning)
        model = self._shared(state.network)
        total, pending = 0.0, []
        for step, (images, truths) in enumerate(self.batches(state.done)):
            _set_rates(state.optimiser, state.done * self.steps + step, self.steps * how.epochs)
            pending.append(self._step(model, state, images, truths))
            if (
                len(pending) == (1 if self.team.device.type == "cpu" else SYNC)
                or step + 1 == self.steps
            ):
                values = torch.stack(pending).tolist()
                self._finite(values, state, step + 1 - len(values))
                total += sum(values)
                pending = []
                told = state.done + 1, how.epochs
                self.report(Progress("learn", step + 1, self.steps, *told, loss=values[-1]))
        self._even(state)
        verdict = self._verdict(state)
        state.judged(verdict)
        state.done += 1
        row = self._row(state, total / self.steps, verdict, time.monotonic() - began)
        state.history.append(row)
        measures = {} if verdict is None else {k: row[k] for k in list(row)[-2:]}
        self.report(
            Progress(
                "epoch",
                state.done,
                how.epochs,
                state.done,
                how.epochs,
                loss=row["train_loss"],
                measures=measures,
            )
        )

    def order(self, epoch: int) -> list[int]:
        """Which frames an epoch shows, in which order; whole batches only."""
        draw = generator(self.recipe.training.seed, epoch, ORDER)
        if self.drawn is None:
            chosen = torch.randperm(len(self.train), generator=draw)
        else:
            chosen = torch.multinomial(self.drawn, len(self.train), True, generator=draw)
        return [int(i) for i in chosen[: self.steps * self.batch]]

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, list[Any]]]:
        """This process's share of each batch, varied: images ``(n, C, r, c)``, truths.

        For a GPU threads prepare the next ones meanwhile; the CPU has no core to spare for it.
        """
        order = self.order(epoch)
        shares = [
            range(first + self.team.rank, first + self.batch, self.team.size)
            for first in range(0, len(order), self.batch)
        ]

        def made(places: range) -> tuple[Tensor, list[Any]]:
            return self._collate([self._varied(order[i], (epoch, i)) for i in places])

        if self.team.device.type == "cpu":
            yield from map(made, shares)
        else:
            with workers() as pool:
                yield from ahead(pool, made, shares)

    def _varied(self, frame: int, place: tuple[int, int]) -> tuple[Tensor, Any]:
        bundle, truth = self.recipe.bundle, self.train.truth(frame)
        masks = truth if bundle.task == "segmentation" else None
        boxes = truth if bundle.task == "detection" else None
        one = augment(
            Varied(self.train.images[frame], masks, boxes),
            self.recipe.augment,
            (self.recipe.training.seed, *place),
            rgb=bundle.preprocessing.colour == "rgb",
        )
        if bundle.task == "segmentation":
            truth = one.masks
        if bundle.task == "detection":
            truth = one.boxes
        return one.image, truth

    def _collate(self, shown: list[tuple[Tensor, Any]]) -> tuple[Tensor, list[Any]]:
        images = torch.stack([image for image, _ in shown])
        if self.team.device.type == "cuda":
            images = images.pin_memory()
        return images, [truth for _, truth in shown]

    def _step(self, model: nn.Module, state: State, images: Tensor, truths: list[Any]) -> Tensor:
        """One batch; gives its loss, which may not be computed yet."""
        device = self.team.device
        x = as_input(images, self.recipe.bundle.preprocessing, device)
        x = x.contiguous(memory_format=_layout(self.recipe))
        truth = as_truth(truths, device)
        wide = self.recipe.training.precision == "float32"
        with torch.autocast(device.type, torch.bfloat16, enabled=not wide):
            found = model(x, truth) if self.recipe.bundle.task == "detection" else model(x)
        loss = self.minimise(found.float() if isinstance(found, Tensor) else found, truth)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        clip_grad_norm_(model.parameters(), CLIP)
        state.optimiser.step()
        state.mean.update_parameters(state.network)
        return loss.detach()

    def _shared(self, network: nn.Module) -> nn.Module:
        """The network, averaging gradients where several learn; anew, as other layers may learn."""
        if self.team.size == 1:
            return network
        return DistributedDataParallel(network)

    def _even(self, state: State) -> None:
        """Statistics of batch normalisation as the first process saw them."""
        if self.team.size > 1:
            for module in (state.network, state.mean):
                for buffer in module.buffers():
                    distributed.broadcast(buffer, 0)

    def _verdict(self, state: State) -> Verdict | None:
        """By the first process, told to all; None without validation samples."""
        if self.val is None:
            return None
        told: list[Any] = [None]
        if self.team.rank == 0:
            batch = max(self.batch, self.recipe.bundle.batch)
            told = [
                validate(
                    state.mean.module,
                    self.val,
                    self.judge,
                    self.recipe.bundle,
                    self.team.device,
                    batch,
                )
            ]
        if self.team.size > 1:
            distributed.broadcast_object_list(told, 0)
        verdict: Verdict = told[0]
        if math.isinf(verdict.loss) or (
            math.isnan(verdict.loss) and self.recipe.bundle.task != "detection"
        ):
            self._diverged("the validation loss", verdict.loss, state, self.steps)
        return verdict

    def _finite(self, values: list[float], state: State, first: int) -> None:
        for i, value in enumerate(values):
            if not math.isfinite(value):
                self._diverged("the loss", value, state, first + i + 1)

    def _diverged(self, what: str, value: float, state: State, step: int) -> None:
        rates = {group["name"]: group["lr"] for group in state.optimiser.param_groups}
        wide = self.recipe.training.precision == "float32"
        narrow = "" if wide else ', or take precision = "float32"'
        raise Diverged(
            f"{what} is {value} in epoch {state.done + 1}, step {step} of {self.steps}, at rates "
            f"of {rates['head']:.2g} (head) and {max(rates.values()):.2g} (highest); lower "
            "training.head_rate and training.encoder_rate"
            f"{narrow}, and train into another --out"
        )

    def _row(self, state: State, loss: float, verdict: Verdict | None, seconds: float) -> Row:
        how = self.recipe.training
        by = strategy.factor(state.done * self.steps - 1, self.steps * how.epochs)
        row: Row = {
            "epoch": state.done,
            "seconds": round(seconds, 2),
            "encoder_rate": how.encoder_rate * by,
            "head_rate": how.head_rate * by,
            "stages": strategy.thawed(how, len(strategy.stages(state.network)), state.done - 1),
            "train_loss": loss,
        }
        if verdict is not None:
            row |= {"val_loss": verdict.loss, HEADLINES[self.recipe.bundle.task]: verdict.headline}
        return row


def check(recipe: Recipe, train: Prepared, team: Team) -> None:
    """Refuse what cannot be learnt before anything is.

    Raises:
        RecipeError: the normalisation is not the weights', or a batch cannot be shared out.
        DataError: a class is never shown.
    """
    pretrained.check(recipe)
    check_classes(train, recipe.bundle)
    if recipe.training.batch % team.size or len(train) < team.size:
        raise RecipeError(
            f"training.batch: {recipe.training.batch} of {len(train)} samples cannot be shared "
            f"evenly by {team.size} processes; take a multiple of {team.size}"
        )


def _set_rates(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["highest"] * strategy.factor(step, steps)


def _laid_as(parameter: Tensor, moment: Tensor) -> Tensor:
    """The fused step wants a parameter's moments in its own layout; a count of steps has none."""
    if moment.shape != parameter.shape:
        return moment
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)


def _layout(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.training.channels_last else torch.contiguous_format


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, rows last, floats as they are."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
