"""Owns the generated parts of the pages here: settings.md, and the tables in conformance.md.

``python deploy/pages.py`` writes them anew from the code; a test fails where they differ from it.
Refuses to know prose: between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is ours, the rest
is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydicom.uid import UID

from dicom_node.dimse import status
from dicom_node.dimse.contexts import TRANSFER_SYNTAXES, storage_classes
from dicom_node.domain import delivery
from dicom_node.settings import Settings

HERE = Path(__file__).parent
PAGES = ("settings.md", "conformance.md")
_GENERATED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """A page with its generated parts made anew."""
    return _GENERATED.sub(lambda m: m[1] + "\n".join(PARTS[m[2]]()) + "\n" + m[3], text)


def statuses() -> Iterator[str]:
    """The table in the docstring of ``dimse.status``."""
    yield "| status | meaning |"
    yield "|---|---|"
    for code, meaning in re.findall(r"^(0x[0-9A-F]{4}) +(.+)$", status.__doc__ or "", re.MULTILINE):
        yield f"| {code} | {meaning} |"


def transfer_syntaxes() -> Iterator[str]:
    """What the listener accepts."""
    yield "| transfer syntax | UID |"
    yield "|---|---|"
    yield from (f"| {UID(uid).name} | {uid} |" for uid in TRANSFER_SYNTAXES)


def storage() -> Iterator[str]:
    """Every storage SOP class, by name."""
    yield "| SOP class | UID |"
    yield "|---|---|"
    yield from sorted(f"| {UID(uid).name} | {uid} |" for uid in storage_classes())


def delivery_states() -> Iterator[str]:
    """What each state of a delivery means, and where it leads."""
    yield "| state | meaning | then |"
    yield "|---|---|---|"
    for state, meaning in delivery.MEANINGS.items():
        steps = [
            f"{event}: {result}"
            for event, (before, result) in delivery.TRANSITIONS.items()
            if state in before
        ]
        yield f"| {state} | {meaning} | {'; '.join(steps)} |"


def settings() -> Iterator[str]:
    """A table for each section of the settings."""
    plain = {k: f for k, f in Settings.model_fields.items() if not _section(f)}
    yield from _table("", plain)
    for name, field in Settings.model_fields.items():
        if section := _section(field):
            yield from ("", f"## {name}", "", cleandoc(section.__doc__ or ""), "")
            yield from _table(f"{name}.", section.model_fields)
            for key, entry in _entries(section):
                yield from ("", f"Each entry of `{name}.{key}`: {entry.__doc__}", "")
                yield from _table("", entry.model_fields, variables=False)


def _table(prefix: str, fields: dict[str, FieldInfo], variables: bool = True) -> Iterator[str]:
    yield "| setting | default | meaning |" + (" variable |" if variables else "")
    yield "|---|---|---|" + ("---|" if variables else "")
    for name, field in fields.items():
        path = f"{prefix}{name}"
        variable = f" `DICOM_NODE_{path.replace('.', '__').upper()}` |" if variables else ""
        yield f"| `{path}` | {_default(field)} | {field.description} |{variable}"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.is_required():
        return "none: to be given"
    if value is None or value == "":
        return "empty"
    if value == ():
        return "none"
    if isinstance(value, tuple) and isinstance(value[0], BaseModel):
        rows = (item.model_dump(exclude_none=True).values() for item in value)
        return ", ".join(" ".join(map(_plain, row)) for row in rows)
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    return _plain(value)


def _plain(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text.lower() if isinstance(value, bool) else text}`"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _entries(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for key, field in section.model_fields.items():
        if isinstance(field.default, tuple) and isinstance(
            next(iter(field.default), None), BaseModel
        ):
            yield key, type(field.default[0])


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "statuses": statuses,
    "transfer-syntaxes": transfer_syntaxes,
    "storage-classes": storage,
    "settings": settings,
    "delivery-states": delivery_states,
}

if __name__ == "__main__":
    for page in PAGES:
        path = HERE / page
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
