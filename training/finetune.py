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
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from training import strategy
from training import weights as pretrained
from training.augment import Varied, augment, generator, seed_of
from training.errors import Diverged, RecipeError
from training.losses import drawing, objective
from training.prepare import Prepared, ahead, check_classes, prepare, workers
from training.recipe import Recipe
from training.run import Progress, Report, Run
from training.samples import Sample
from training.state import Row, State, layout
from training.team import Team, processes, settled
from training.validate import HEADLINES, Verdict, as_input, as_truth, validate

CLIP = 5.0  # norm of a gradient; in practice only what is about to diverge exceeds it
OFTEN = 20  # writing checkpoints takes about one part in so many of the time
SYNC = 16  # steps between two looks at a GPU's losses, as each look waits for it
ORDER, DROPOUT = 1, 2  # tell apart draws of one epoch


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
        x = x.contiguous(memory_format=layout(self.recipe))
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
