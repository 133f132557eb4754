"""Owns the commands of training: recipes in, bundles out. Parses, calls, prints; decides nothing.

Torch is loaded by the commands that need it, not by asking for their help.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from training.run import Progress as Step
    from training.steps import Parted

app = typer.Typer(
    help="Fine-tune, measure and export models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
console = Console(stderr=True)
PANEL = "Training"
RECIPES = Path(__file__).parent / "recipes"

RecipeFile = Annotated[
    Path, typer.Argument(help="a recipe (TOML), or the name of a shipped one", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(help="a run's folder", exists=True, file_okay=False)]
DataFolder = Annotated[
    Path, typer.Option("--data", help="folder of the data", exists=True, file_okay=False)
]
OutFolder = Annotated[Path, typer.Option("--out", help="folder for what is made")]
Edited = Annotated[
    Path | None,
    typer.Option("--recipe", help="with other words, labels' codes or card than the run's own"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch")]
AsJson = Annotated[bool, typer.Option("--json", help="for scripts")]

P = ParamSpec("P")
R = TypeVar("R")


def _said(command: Callable[P, R]) -> Callable[P, R]:
    """Errors that we know become one line and an exit code: 2 for a recipe, 1 for all else."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from inference.errors import InferenceError
        from training.errors import RecipeError, TrainingError

        try:
            return command(*args, **kwargs)
        except (TrainingError, InferenceError, ImportError) as error:
            if isinstance(error, ImportError) and error.name not in EXTRA:
                raise
            reason = str(error)
            if isinstance(error, ImportError):
                reason += ": training needs more packages, pip install 'dicom-node[training]'"
            console.print(f"[bold red]dicom-node:[/] {reason}", soft_wrap=True, highlight=False)
            raise typer.Exit(2 if isinstance(error, RecipeError) else 1) from error

    return wrapped


EXTRA = ("sklearn", "torchmetrics", "matplotlib", "pycocotools", "jinja2")


@app.command(rich_help_panel=PANEL)
@_said
def recipes(
    name: Annotated[str, typer.Argument(help="print this one, to begin your own with")] = "",
) -> None:
    """List the recipes that are shipped, or print one."""
    from training.recipe import read

    if name:
        typer.echo(_recipe(Path(name)).read_text())
        return
    table = Table(Column("recipe", no_wrap=True), "task", "network", "learns from", "gives")
    for path in sorted(RECIPES.glob("*.toml")):
        plan = read(path)
        network = f"{plan.bundle.architecture.name}, {plan.bundle.architecture.backbone}"
        table.add_row(path.stem, plan.bundle.task, network, plan.data.kind, plan.bundle.title)
    Console().print(table)


@app.command(rich_help_panel=PANEL)
@_said
def train(
    recipe: RecipeFile,
    data: DataFolder,
    out: OutFolder,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Learn what a recipe says; run again after an interruption, it goes on.

    With several GPUs: torchrun --nproc-per-node N -m training.cli train ...
    """
    from training import steps

    with _bars() as bars:
        on = _begin(device, threads)
        steps.train(_recipe(recipe), data, out, on, bars.learning, _tell_parts)
    console.print(f"learnt; now: dicom-node evaluate {out} --data {data}", soft_wrap=True)
    typer.echo(out / "weights.safetensors")


@app.command(rich_help_panel=PANEL)
@_said
def evaluate(
    run: RunFolder,
    data: DataFolder,
    recipe: Edited = None,
    folds: Annotated[
        Path | None,
        typer.Option("--cross-validation", help="a folder of cross-validate, told beside"),
    ] = None,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Choose thresholds on validation data, measure on what was held out, write report.html."""
    from training import page, steps

    with _bars() as bars:
        document = steps.evaluate(
            run,
            data,
            _begin(device, threads),
            file=recipe and _recipe(recipe),
            cross_validation=folds,
            report=bars.looking,
        )
    typer.echo(json.dumps(document["sets"]) if as_json else page.card_table(document))
    console.print(f"to look at: {run / 'report.html'}", soft_wrap=True)


@app.command("cross-validate", rich_help_panel=PANEL)
@_said
def cross_validate(
    recipe: RecipeFile,
    data: DataFolder,
    out: OutFolder,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Hold each patient out once, a fold at a time; run again, it goes on where it was."""
    from training import page, steps

    with _bars() as bars:
        document = steps.cross_validate(
            _recipe(recipe),
            data,
            out,
            _begin(device, threads),
            told=bars.learning,
            report=bars.looking,
        )
    typer.echo(json.dumps(document["sets"]) if as_json else page.card_table(document))


@app.command(rich_help_panel=PANEL)
@_said
def report(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", help="the HTML file")],
    pictures: Annotated[bool, typer.Option(help="show the worst cases, and name samples")] = True,
) -> None:
    """Write an evaluated run's report again, without pictures of patients if it shall travel."""
    from training import page

    page.again(run, out, gallery=pictures)
    typer.echo(out)


@app.command(rich_help_panel=PANEL)
@_said
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of evaluated runs", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Hold runs against each other on the same samples, with intervals of the differences."""
    from training import compare as comparing

    found = comparing.compare(runs)
    typer.echo(json.dumps(found) if as_json else comparing.table(found))


@app.command(rich_help_panel=PANEL)
@_said
def export(
    run: RunFolder,
    data: DataFolder,
    bundle: Annotated[Path, typer.Option(help="folder of the bundle, new or empty")],
    recipe: Edited = None,
) -> None:
    """Make a bundle of an evaluated run; refuse one that computes something else than training."""
    from training import steps

    written = steps.export(run, data, bundle, recipe and _recipe(recipe))
    console.print(
        f"now: dicom-node models sign {written.path} --key FILE, then models add", soft_wrap=True
    )
    typer.echo(f"{written.path} {written.digest}")


@app.command(rich_help_panel=PANEL)
@_said
def claims(
    grid: Annotated[Path, typer.Argument(help="a grid (TOML)", exists=True, dir_okay=False)],
    data: DataFolder,
    out: OutFolder,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Does transfer help? Pretrained against scratch, by backbone and share of the data."""
    from training import claims as asking
    from training import transfer

    plan = asking.read_grid(grid)
    with _bars() as bars:
        cells = asking.run(
            grid,
            data,
            out,
            device=_begin(device, threads),
            report=lambda done, total, cell: bars.looking(f"cells, last {cell}", done, total),
        )
    transfer.write(cells, plan, out)
    typer.echo((out / "summary.md").read_text())


def _recipe(path: Path) -> Path:
    """A recipe's file, or the shipped one of that name.

    Raises:
        RecipeError: there is none.
    """
    from training.errors import RecipeError

    shipped = RECIPES / f"{path.name.removesuffix('.toml')}.toml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    raise RecipeError(f"{path}: no such recipe; `dicom-node recipes` lists those that are shipped")


def _begin(device: str, threads: int) -> Any:
    """The device, after the threads are set."""
    import torch

    from inference.engine import choose_device

    if threads:
        torch.set_num_threads(threads)
    try:
        return choose_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def _tell_parts(parted: Parted) -> None:
    table = Table("part", "samples", "groups", title="data")
    for name, samples in [*parted.parts.items(), *parted.extra.items()]:
        groups = len({sample.group for sample in samples})
        table.add_row(name, str(len(samples)), str(groups))
    console.print(table)
    if apart := parted.leaks.get("near_duplicates_on_both_sides"):
        console.print(f"[yellow]{apart} near-duplicates lie on both sides of the published split")


class _Bars:
    """A bar for each thing that takes long on a terminal; elsewhere a line now and then."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, Any] = {}

    def looking(self, what: str, done: int, total: int) -> None:
        self._show(what.partition(",")[0], done, total, what.partition(",")[2].strip())
        if not console.is_terminal and done and (done == total or done % max(1, total // 4) == 0):
            console.print(f"{what}: {done} of {total}", soft_wrap=True)

    def learning(self, run: str, step: Step) -> None:
        if step.stage == "prepare":
            self.looking(f"{run}: reading, {step.part}", step.done, step.total)
            return
        told = {name: value for name, value in step.measures.items() if not isnan(value)}
        measures = ", ".join(f"{name} {value:.4f}" for name, value in told.items())
        if step.stage == "learn":
            share = (step.epoch - 1 + step.done / step.total) if step.total else 0
            self._show(f"{run}: epochs", share, step.epochs, f"loss {step.loss:.4f}")
        elif step.stage == "epoch":
            if not console.is_terminal:
                console.print(
                    f"{run}: epoch {step.done} of {step.epochs}, loss {step.loss:.4f} {measures}",
                    soft_wrap=True,
                    highlight=False,
                )
            else:
                self._show(f"{run}: epochs", step.done, step.epochs, measures)

    def _show(self, name: str, done: float, total: int, said: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, said="")
        self.progress.update(self.tasks[name], completed=done, total=total, said=said)


@contextmanager
def _bars() -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bars(progress)


def register(command: typer.Typer) -> None:
    """Add these to ``dicom-node``; the service finds us by our entry point."""
    command.registered_commands += app.registered_commands


if __name__ == "__main__":
    app()
