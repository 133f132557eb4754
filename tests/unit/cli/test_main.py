import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from dicom_node.cli.main import PARTS
from dicom_node.cli.main import command as the_command

HEAVY = ("torch", "torchvision", "celery", "highdicom", "pynetdicom")


def test_the_command_loads_nothing_heavy_before_it_is_needed() -> None:
    code = f"import sys, dicom_node.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (
            ("listener.node", "listener.server"),
            ("torch", "highdicom", "scipy", "celery", "inference"),
        ),
        (("services.schedule",), ("torch", "highdicom", "scipy")),
        (("worker.tasks",), ("torch", "highdicom", "scipy")),
    ],
    ids=["listener", "scheduler", "worker"],
)
def test_a_process_loads_nothing_heavy_that_it_can_do_without(
    modules: tuple[str, ...], without: tuple[str, ...]
) -> None:
    names = ", ".join(f"dicom_node.{module}" for module in ("cli.run", *modules))
    code = f"import sys, {names}; print([m for m in {without} if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def commands(group: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined] # a group has them
        if hasattr(command, "commands"):
            found += commands(command, (*path, name))
        else:
            found.append(((*path, name), command))
    return found


app = the_command()
ALL = commands(get_command(app))


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_says_what_it_does_and_every_option_what_it_means(
    path: tuple[str, ...], command: object
) -> None:
    assert command.help, path  # type: ignore[attr-defined] # every command has the attribute
    for parameter in command.params:  # type: ignore[attr-defined] # as above
        bare = parameter.name in ("uid", "job", "name", "number") or getattr(
            parameter, "hidden", False
        )
        assert bare or getattr(parameter, "help", None), (path, parameter.name)


@pytest.mark.parametrize("part", PARTS)
def test_a_word_loads_the_module_of_its_command_and_no_other(part: str) -> None:
    by_extensions = {path[0] for path, _ in ALL}.difference(*PARTS.values())
    for word in PARTS[part]:
        loaded = commands(get_command(the_command(["--config", "x", word, "--help"])))
        assert {path[0] for path, _ in loaded} - by_extensions == PARTS[part]


def test_every_listing_has_json() -> None:
    lists = [(path, command) for path, command in ALL if path[-1] in ("list", "show", "why")]
    assert len(lists) >= 10
    for path, command in lists:
        names = {parameter.name for parameter in command.params}  # type: ignore[attr-defined]
        assert "json" in names, path


@pytest.mark.parametrize(
    "wrong",
    [
        ("nothing",),
        ("jobs", "list", "--state", "lost"),
        ("jobs", "list", "--limit", "0"),
        ("jobs", "show", "first"),
        ("destinations", "add", "x", "--host", "h"),
        ("destinations", "add", "x", "--folder", "f", "--port", "1"),
        ("destinations", "add", "x", "--url", "https://h", "--port", "1"),
        ("destinations", "add", "x", "--user", "u"),
        ("modalities", "add", "AE", "--host", "h"),
        ("instances", "resolve", "1", "--keep", "both"),
        ("instances", "resolve", "1"),
        ("send", "/no/such/file"),
        ("routes", "test", "x", "--rules", "/no/such/file"),
    ],
)
def test_wrong_use_is_told_and_is_exit_code_2(wrong: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(wrong))
    assert done.exit_code == 2, done.output
    assert done.stderr
