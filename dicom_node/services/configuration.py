"""Owns the text of a new configuration file, made from the settings themselves.

Every field stands in it with its default and its description, so that file, code and
documentation cannot differ.
"""

from __future__ import annotations

import os
import secrets
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dicom_node.errors import ConfigurationError, Unavailable
from dicom_node.settings import Settings

ROUTES_NAME = "routes.toml"
EXAMPLE_RULES = """\
# Which studies go to which models, and where their results go.
#
#   dicom-node routes test FOLDER --rules routes.toml    tries it on your own images
#   dicom-node routes apply routes.toml                  puts it in force
#
# Everything under `when` must hold; a list means any of its values. Known are
#   words     modality sop_class body_part view laterality image_type calling_ae called_ae station
#   patterns  series_description study_description protocol kernel manufacturer
#             (regular expressions, found anywhere in the text, whatever the case)
#   numbers   thickness_mm instances frames rows columns
#             (a number, or { min = 0.5, max = 3.0 })
#   any = [ {...}, {...} ], all = [ {...}, {...} ], not = {...}

[[rule]]
name = "chest radiographs"
models = ["cxr-lungs"]           # by name: the active version; by name@version: that one
destinations = ["pacs"]          # by the names of `dicom-node destinations list`
[rule.when]
modality = ["DX", "CR"]
not = { view = ["LL", "RL", "LATERAL"] }

# The same from the emergency department runs first:
#
# [[rule]]
# name = "emergency chest"
# models = ["cxr-lungs"]
# destinations = ["pacs"]
# priority = "stat"              # default: routine
# expect_instances = 1           # matching instances that make the study complete
# enabled = true
# [rule.when]
# modality = ["DX", "CR"]
# station = ["ER1", "ER2"]
"""


def write_configuration(path: Path, force: bool = False) -> dict[str, Any]:
    """Write a new configuration file, and example rules beside it where there are none.

    The salt of a file that is replaced stays: results keep the UIDs that they would have had.

    Args:
        path: of the TOML file; readable by its owner only, for a database URL may hold a password.
        force: replace a file that is there.

    Returns:
        ``configuration`` and ``rules`` (paths), ``kept_salt``, ``kept_rules``.

    Raises:
        ConfigurationError: the file is there and ``force`` is not given.
        Unavailable: it cannot be written.
    """
    if path.exists() and not force:
        raise ConfigurationError(f"{path} is there already; --force replaces it")
    salt, rules = _salt_of(path), path.parent / ROUTES_NAME
    kept_rules = rules.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_private(path, configuration_text(salt or secrets.token_hex(16)))
        if not kept_rules:
            rules.write_text(EXAMPLE_RULES, encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error
    return {
        "configuration": path,
        "rules": rules,
        "kept_salt": bool(salt),
        "kept_rules": kept_rules,
    }


def configuration_text(salt: str) -> str:
    """The TOML text: every setting with its default, explained."""
    lines = [
        "# Configuration of dicom-node. Every setting stands here with its default.",
        "# Environment variables win: DICOM_NODE_<SECTION>__<FIELD>, as",
        "# DICOM_NODE_LISTENER__PORT=104. Unknown keys are refused.",
        "",
        *_field("node_salt", Settings.model_fields["node_salt"], salt),
    ]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += ["", *_comment(section.__doc__ or ""), f"[{name}]"]
            lines += _section(name, section)
    return "\n".join(lines) + "\n"


def _section(path: str, section: type[BaseModel]) -> Iterator[str]:
    tables = []  # TOML has them after the plain values, which would else belong to them
    for name, field in section.model_fields.items():
        if isinstance(field.default, tuple) and isinstance(
            next(iter(field.default), None), BaseModel
        ):
            tables.append((name, field))
        else:
            yield from _field(name, field, field.default)
    for name, field in tables:
        entry = type(field.default[0])
        yield ""
        yield from _comment(f"{entry.__doc__} Each entry may have")
        for key, about in entry.model_fields.items():
            yield from _comment(f"  {key}: {about.description}")
        for item in field.default:
            yield f"[[{path}.{name}]]"
            for key, value in item.model_dump(exclude_none=True).items():
                yield f"{key} = {_value(value)}"


def _field(name: str, field: FieldInfo, value: Any) -> Iterator[str]:
    yield from _comment(f"{field.description} (default: {_value(field.default)})")
    yield f"{name} = {_value(value)}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, 96, subsequent_indent="  " * text.startswith("  "))]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _salt_of(path: Path) -> str:
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("node_salt", ""))
    except (OSError, ValueError):
        return ""


def _write_private(path: Path, text: str) -> None:
    """Under another name first: half a configuration must not replace a whole one."""
    waiting = path.with_name(f"{path.name}.new")
    waiting.unlink(missing_ok=True)
    descriptor = os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    waiting.replace(path)
