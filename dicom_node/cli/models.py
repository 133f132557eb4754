"""``dicom-node models``: list, show, add, activate, retire; keygen and sign, for who makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.audit.messages import SOFTWARE_CONFIGURATION
from dicom_node.cli.audit import changed
from dicom_node.cli.output import Json, console, print_json, print_rows, say
from dicom_node.cli.state import node
from dicom_node.domain.model import ModelState
from dicom_node.errors import ConfigurationError
from dicom_node.services import models, trust

app = typer.Typer(help="The models that the node runs.", no_args_is_help=True)
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="the key's passphrase in a file, for scripts; else it is asked for"),
]
Name = Annotated[str, typer.Argument(help="name@version, or the name where one version is known")]


def register(command: typer.Typer) -> None:
    """Add the commands."""
    command.add_typer(app, name="models")


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
    say((told["trust"], "" if told["trusted"] else "red"))
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
    """Verify a bundle, signature and golden example included, and keep it as staged."""
    if not bundle.exists() and (models.SHIPPED / bundle).is_dir():
        bundle = models.SHIPPED / bundle
    with console.status(f"verifying {bundle}"):
        added = models.add_model(node(), bundle)
    title = f"{added['name']}@{added['version']}"
    changed(SOFTWARE_CONFIGURATION, f"models/{title}", "added" + " and activated" * activate)
    if activate:
        models.set_state(node(), title, ModelState.ACTIVE)
    if json:
        print_json(added)
        return
    say(added["trust"])
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
    changed(SOFTWARE_CONFIGURATION, f"models/{name}", "shadowed" if shadow else "activated")


@app.command()
def retire(name: Name) -> None:
    """No longer run a version; its results stay."""
    models.set_state(node(), name, ModelState.RETIRED)
    changed(SOFTWARE_CONFIGURATION, f"models/{name}", "retired")


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="where the private key goes, readable by you only")],
    name: Annotated[str, typer.Option(help="what the nodes call the key")],
    encrypt: Annotated[bool, typer.Option("--encrypt", help="under a passphrase")] = False,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make a key pair to sign bundles with; needs no node."""
    secret = None
    if passphrase_file is not None:
        secret = _from_file(passphrase_file)
    elif encrypt:
        secret = typer.prompt("passphrase", hide_input=True, confirmation_prompt=True).encode()
    made = trust.generate(file, name, secret)
    if json:
        print_json(made)
        return
    say("wrote ", (made["file"], "bold"), f", the private half of key {made['key']}: keep it")
    say("each node that shall run what it signs has in its configuration")
    say((f'[models]\ntrusted_keys = ["{made["setting"]}"]', "cyan"))


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="the bundle's folder", exists=True)],
    key: Annotated[Path, typer.Option(help="the private key that `models keygen` made")],
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Answer for a bundle: manifest.sig is written beside its manifest; needs no node."""
    opened = models.open_to_sign(bundle)
    told = trust.sign(
        opened,
        trust.load_key(
            key,
            lambda: (
                _from_file(passphrase_file)
                if passphrase_file
                else typer.prompt("passphrase", hide_input=True, err=True).encode()
            ),
        ),
    )
    title = f"{opened.manifest.name}@{opened.manifest.version}"
    if json:
        print_json({"model": title, "digest": opened.digest, "key": told})
    else:
        say(f"{title}, digest {opened.digest}, is signed by key {told}")


def _from_file(path: Path) -> bytes:
    """Its first line."""
    try:
        secret = path.read_bytes().partition(b"\n")[0]
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if not secret:
        raise ConfigurationError(f"{path}: no passphrase in it")
    return secret
