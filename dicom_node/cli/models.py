"""``dicom-node models``: list, show, add, activate, retire."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.output import Json, console, print_json, print_rows
from dicom_node.cli.state import node
from dicom_node.domain.model import ModelState
from dicom_node.services import models

app = typer.Typer(help="The models that the node runs.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="name@version, or the name where one version is known")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List every version with its state."""
    print_rows(models.list_models(node()), ("name", "version", "state", "task", "title"), json)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show a version's manifest and model card."""
    told = models.show_model(node(), name)
    if json:
        print_json(told)
        return
    manifest = told["manifest"]
    console.print(f"[bold]{told['name']}@{told['version']}[/]  {told['state']}  {told['title']}")
    console.print(f"digest {told['digest']}")
    console.print(
        f"takes {manifest['select']['unit']}s of {', '.join(manifest['select']['modality'])}"
    )
    console.print(f"finds {', '.join(label['label'] for label in manifest['labels'])}\n")
    console.print(told["card"], markup=False)


@app.command()
def add(
    bundle: Annotated[
        Path, typer.Argument(help="the bundle: a folder, a zip, or the name of one that we ship")
    ],
    activate: Annotated[bool, typer.Option(help="activate it at once")] = False,
    json: Json = False,
) -> None:
    """Verify a bundle, golden example included, and keep it as staged."""
    if not bundle.exists() and (models.SHIPPED / bundle).is_dir():
        bundle = models.SHIPPED / bundle
    with console.status(f"verifying {bundle}"):
        added = models.add_model(node(), bundle)
    title = f"{added['name']}@{added['version']}"
    if activate:
        models.set_state(node(), title, ModelState.ACTIVE)
    if json:
        print_json(added)
        return
    console.print(
        f"added {title}: golden example differs by {added['golden_difference']:.1e}, "
        f"loads in {added['load_seconds']:.1f} s"
    )
    if not activate:
        console.print(f"it is staged; `dicom-node models activate {title}` puts it to work")


@app.command()
def activate(
    name: Name,
    shadow: Annotated[
        bool, typer.Option(help="run it beside the active one; deliver nothing")
    ] = False,
) -> None:
    """Put a version to work; the active one of its name retires."""
    models.set_state(node(), name, ModelState.SHADOW if shadow else ModelState.ACTIVE)


@app.command()
def retire(name: Name) -> None:
    """No longer run a version; its results stay."""
    models.set_state(node(), name, ModelState.RETIRED)
