"""Owns the command ``train``: recipes in, bundles out. Parses, calls, prints; decides nothing.

Torch is loaded by the commands that need it, not by asking for their help.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.recipe import Recipe, read

if TYPE_CHECKING:
    from torch import Tensor

    from training.evaluate import Row
    from training.finetune import Report

app = typer.Typer(
    help="Fine-tune, evaluate and export model bundles.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
console = Console(stderr=True)

RecipeFile = Annotated[Path, typer.Argument(help="a recipe, TOML", exists=True, dir_okay=False)]
DataFolder = Annotated[Path, typer.Option("--data", help="folder of the data", exists=True)]
OutFolder = Annotated[Path, typer.Option("--out", help="folder for what is made")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:n")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch")]

ROWS = "cross_validation.csv"
WEIGHTS = "weights.safetensors"


@app.command()
def train(
    recipe: RecipeFile,
    data: DataFolder,
    out: OutFolder,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Learn from all samples of a recipe; writes weights.safetensors (float32) into OUT."""
    from safetensors.torch import save_file

    from training import datasets
    from training.finetune import finetune

    plan = _begin(recipe, out, threads)
    samples = datasets.load(plan.data, data).learn
    with _progress() as bar:
        learnt = finetune(plan, samples, _backbone(plan, data), device, bar("train"))
    save_file(learnt, out / WEIGHTS)
    typer.echo(out / WEIGHTS)


@app.command("cross-validate")
def cross_validate(
    recipe: RecipeFile,
    data: DataFolder,
    out: OutFolder,
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Hold each patient out once; writes cross_validation.csv and .json into OUT.

    Run again after an interruption, it goes on with the folds that the .csv lacks; after a
    change of the recipe, remove the .csv.
    """
    from training import datasets, evaluate
    from training.export import draft

    plan = _begin(recipe, out, threads)
    samples = datasets.load(plan.data, data).learn

    def told(fold: int, rows: list[Row]) -> None:
        evaluate.write_rows(rows, out / ROWS)
        mine = evaluate.summary([row for row in rows if row.fold == fold])["dice"]
        console.print(f"fold {fold}: {json.dumps({k: v['mean'] for k, v in mine.items()})}")

    with _progress() as bar:
        rows = evaluate.cross_validate(
            plan,
            draft(plan),
            samples,
            _backbone(plan, data),
            known=evaluate.read_rows(out / ROWS) if (out / ROWS).is_file() else (),
            device=device,
            report=lambda fold: bar(f"fold {fold}"),
            finished=told,
        )
    figures = evaluate.summary(rows)
    (out / "cross_validation.json").write_text(json.dumps(figures, indent=1) + "\n")
    typer.echo(json.dumps(figures, indent=1))


@app.command()
def export(
    recipe: RecipeFile,
    data: DataFolder,
    out: OutFolder,
    bundle: Annotated[Path, typer.Option(help="folder of the bundle, new or empty")],
) -> None:
    """Make a bundle of what ``train`` and, where it ran, ``cross-validate`` left in OUT."""
    import torch
    import torchvision
    from safetensors.torch import load_file

    from training import datasets, evaluate
    from training.export import export as write

    plan = read(recipe)
    rows = out / ROWS
    written = write(
        plan,
        load_file(out / WEIGHTS),
        bundle,
        datasets.load(plan.data, data),
        cross_validation=evaluate.read_rows(rows) if rows.is_file() else [],
        made={
            "recipe": recipe.name,
            "seed": plan.training.seed,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    )
    typer.echo(f"{written.path} {written.digest}")


def _begin(recipe: Path, out: Path, threads: int) -> Recipe:
    import torch

    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    return read(recipe)


def _backbone(plan: Recipe, data: Path) -> dict[str, Tensor]:
    from training.finetune import pretrained

    return pretrained(data / plan.training.weights)


@contextmanager
def _progress() -> Iterator[Callable[[str], Report]]:
    """A bar per name on a terminal; elsewhere a line for every tenth of the epochs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def bar(name: str) -> Report:
            task = progress.add_task(name, total=None, loss=float("nan"))

            def report(epoch: int, epochs: int, loss: float) -> None:
                progress.update(task, completed=epoch, total=epochs, loss=loss)
                if not console.is_terminal and epoch % max(1, epochs // 10) == 0:
                    console.print(f"{name}: epoch {epoch} of {epochs}, loss {loss:.4f}")

            return report

        yield bar


def register(command: typer.Typer) -> None:
    """Add these as ``dicom-node training ...``; the service finds us by our entry point."""
    command.add_typer(app, name="training")


if __name__ == "__main__":
    app()
