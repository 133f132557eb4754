"""The generated pages say what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from pydantic import BaseModel

from dicom_node.dimse import status
from dicom_node.settings import Settings

DEPLOY = Path(__file__).parents[3] / "deploy"
PAGES = runpy.run_path(str(DEPLOY / "pages.py"))


@pytest.mark.parametrize("page", PAGES["PAGES"])
def test_a_page_is_what_the_code_would_write_now(page: str) -> None:
    text = (DEPLOY / page).read_text()
    assert text.count("<!-- generated: ") == text.count("<!-- end -->") > 0
    assert text == PAGES["rendered"](text), "run `python deploy/pages.py`"


def test_every_setting_has_a_row_with_its_variable() -> None:
    text = (DEPLOY / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            assert f"| `{name}` |" in text
            continue
        for key, entry in kind.model_fields.items():
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name}.{key}` |"))
            assert f"`DICOM_NODE_{name}__{key}`".replace(name, name.upper(), 1).upper() in row
            assert entry.description
            assert entry.description in row


def test_the_table_of_statuses_holds_every_one_that_the_listener_gives() -> None:
    text = (DEPLOY / "conformance.md").read_text()
    part = text[text.index("generated: statuses") :]
    part = part[: part.index("<!-- end -->")]
    told = {int(code, 16) for code in re.findall(r"^\| (0x[0-9A-F]{4}) \|", part, re.MULTILINE)}
    given = {status.SUCCESS, status.SOP_CLASS_NOT_SUPPORTED, *status._STATUS_OF.values()}
    assert told == given
