"""``dicom-node demo``: the main job on this machine, to be looked at."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node.cli.output import Json, console, many, print_json

if TYPE_CHECKING:
    from dicom_node.demo.run import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    study: Annotated[
        Path | None, typer.Option(help="a folder of DICOM files of your own", exists=True)
    ] = None,
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="draws the generated patients")] = 3,
    right_lung: Annotated[
        float, typer.Option(help="size of the drawn right lung", min=0.5, max=1.1)
    ] = 1.0,
    left_lung: Annotated[
        float, typer.Option(help="size of the drawn left lung", min=0.5, max=1.1)
    ] = 1.0,
    ct_lungs: Annotated[
        float, typer.Option(help="size of the lungs in the CT", min=0.3, max=1.1)
    ] = 1.0,
    json: Json = False,
) -> None:
    """Push two generated studies through a node of their own and show what comes back."""
    from dicom_node.demo.patients import Drawing
    from dicom_node.demo.run import forget_environment, run

    forget_environment()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
        signal.signal(number, signal.default_int_handler)  # stop all that was started then too
    started = time.monotonic()
    drawing = Drawing(seed=seed, lungs=(right_lung, left_lung), air=ct_lungs)
    with console.status("") as status:

        def say(text: str) -> None:
            if json:
                return
            seconds = time.monotonic() - started
            console.print(f"[bright_black]{seconds:5.1f} s[/]  {text}")
            status.update(text)

        outcomes = run(output.absolute(), study, drawing, say)
    told = [
        _tell(outcome, output, number, quiet=json) for number, outcome in enumerate(outcomes, 1)
    ]
    if json:
        print_json(told)
        return
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Everything lies in {output}/.")
    if not all(row["report"] for row in told):
        raise typer.Exit(1)


def _tell(outcome: Outcome, output: Path, number: int, quiet: bool) -> dict[str, object]:
    """Read what the PACS received; print it and draw it."""
    from pydicom import dcmread

    from dicom_node.demo.pictures import draw
    from dicom_node.demo.report import findings, remarks

    header = dcmread(outcome.sources[0], stop_before_pixels=True)
    title = f"{header.get('Modality', '')} study, {many(len(outcome.sources), 'instance')}"
    reports = [dcmread(path) for path in outcome.reports]
    tracked = {uid: finding for report in reports for uid, finding in findings(report).items()}
    found = [finding.sentence for finding in tracked.values()]
    found += dict.fromkeys(line for report in reports for line in remarks(report))
    measures = {uid: finding.measures for uid, finding in tracked.items()}
    pictures = []
    for count, path in enumerate(outcome.segmentations, 1):
        picture = output / f"{number}-{header.get('Modality', 'XX')}-{count}.png"
        series = str(dcmread(path, stop_before_pixels=True).SeriesDescription)
        picture.write_bytes(draw(path, outcome.sources, series, measures))
        pictures.append(picture)
    if not quiet:
        console.print(f"\n[bold]{title}[/]", highlight=False)
        if outcome.state:
            console.print(f"  {outcome.state}")
        for line in found:
            console.print(f"  {line}", markup=False)
        if outcome.seconds is not None:
            late = f"at the PACS {outcome.seconds:.1f} s after the last image was sent"
            console.print(f"  [bright_black]{late}[/]")
        for kind, files in (
            ("SR", outcome.reports),
            ("SEG", outcome.segmentations),
            ("capture", outcome.captures),
            ("picture", pictures),
        ):
            for file in files:
                console.print(f"  [cyan]{kind:8}[/]{_near(file)}")
    return {
        "study": outcome.study,
        "modality": header.get("Modality", ""),
        "instances": len(outcome.sources),
        "state": outcome.state,
        "report": [str(path) for path in outcome.reports],
        "segmentation": [str(path) for path in outcome.segmentations],
        "captures": [str(path) for path in outcome.captures],
        "pictures": [str(path) for path in pictures],
        "found": found,
        "seconds": outcome.seconds,
    }


def _near(path: Path) -> Path:
    """As seen from here, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
