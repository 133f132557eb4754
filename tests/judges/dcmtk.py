"""Asks DCMTK's readers of structured reports, which know value types and relationships.

``dsrdump`` reads every content item, ``dsr2html`` writes the page that a reader would see.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset

from inference.types import Prediction
from tests.judges.types import NotApplicable, Origin, Verdict, kind_of, parse
from tests.servers import lacking
from tests.tid1500 import groups

NO_REPORT = NotApplicable("reads structured reports only")
UNHEEDED = ("VR checker does not support",)
"""Of DCMTK's warnings: it checks no text in the character sets that it does not know."""


def dsrdump(data: bytes, origin: Origin) -> Verdict:
    """It reads the report without an error or a warning."""
    if kind_of(parse(data)) != "sr":
        return NO_REPORT
    return run("dsrdump", data)[1]


def dsr2html(data: bytes, origin: Origin) -> Verdict:
    """The page is UTF-8 and has the words of every finding in it."""
    report = parse(data)
    if kind_of(report) != "sr":
        return NO_REPORT
    page, found = run("dsr2html", data)
    if not page:
        return found
    try:
        text = " ".join(html.unescape(page.decode()).split())
    except UnicodeDecodeError as error:
        return [*found, f"dsr2html: no UTF-8: {error}"]
    if "charset=UTF-8" not in text:
        found.append("dsr2html: the page does not say that it is UTF-8")
    # Where one code holds structure and side, "Lung" is "Right lung".
    folded = text.casefold()
    missing = [word for word in _words(report, origin) if word.casefold() not in folded]
    return found + [f"dsr2html: not on the page: {word!r}" for word in missing]


def run(program: str, data: bytes) -> tuple[bytes, list[str]]:
    """What it wrote, and what it complained of; skips where it is not installed."""
    tool = shutil.which(program)
    if tool is None:
        lacking(f"DCMTK's {program} is not installed")
    options = ["+Pl"] if program == "dsrdump" else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.dcm")
        path.write_bytes(data)
        done = subprocess.run([tool, *options, "+U8", path], capture_output=True, check=False)
    said = (done.stderr + (done.stdout if program == "dsrdump" else b"")).decode(errors="replace")
    found = [
        f"{program}: {line}"
        for line in said.splitlines()
        if line.startswith(("E:", "W:", "F:")) and not any(word in line for word in UNHEEDED)
    ]
    if done.returncode:
        found.append(f"{program}: ended with {done.returncode}")
    return done.stdout, found


def _words(report: Dataset, origin: Origin) -> Iterator[str]:
    """What a reader must find: what was found or not found, why not, and the notes."""
    referring = groups(report, "1410") + groups(report, "1411")
    prediction: Prediction = origin.prediction
    yield from prediction.notes
    if prediction.not_analysed is not None:
        yield prediction.not_analysed
        return
    for segment in prediction.segments:
        yield segment.type.meaning
        # Its label is the tracking identifier of the group that refers to the segmentation; what
        # is only drawn may be named after the viewer's tool.
        if segment.empty or referring:
            yield segment.label
    for finding in prediction.findings:
        yield finding.label
        yield finding.code.meaning
        yield "Present" if finding.present else "Absent"
        if finding.severity:
            yield finding.severity.meaning
        if finding.site:
            yield finding.site.meaning
