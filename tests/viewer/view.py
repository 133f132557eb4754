"""Results to look at: a study through the node, then study and results in OHIF on this machine.

``python -m tests.viewer.view [FOLDER]`` runs the installed command's demo on a folder of DICOM
files (the demo's own drawn patients without one), puts what was sent and what came back into an
Orthanc, serves OHIF beside it and prints the addresses to open; it runs until interrupted. Owns
the order of these steps and nothing of what they do.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from tests.viewer import ohif


def main() -> int:
    parser = argparse.ArgumentParser(prog="make view", description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, help="a folder of DICOM files")
    parser.add_argument("--port", type=int, default=0, help="of the viewer; a free one without it")
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    told = parser.parse_args()
    if told.study and not told.study.is_dir():
        parser.error(f"{told.study} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix="view") as folder:
            _view(told.study, told.output, Path(folder), told.port)
    except KeyboardInterrupt:
        print("\nstopped")
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:  # as `tests.servers` says it
        print(f"{missing.msg}. `make services` installs Orthanc and its DICOMweb plugin (as root);")
        print("OHIF comes by npm at the first run. Without them: `make demo` draws pictures.")
        return 1
    return 0


def _view(study: Path | None, output: Path, folder: Path, port: int) -> None:
    with ohif.archive(folder) as archive, ohif.viewer(archive, port) as address:
        command = [sys.executable, "-m", "dicom_node.cli.main", "demo", "--output", str(output)]
        if study:
            command += ["--study", str(study)]
        if subprocess.run(command, check=False).returncode:
            print("the demo failed; what it did send and receive is shown all the same")
        studies: dict[str, str] = {}
        for source in (study or output / "sent", output / "pacs"):
            for uid, title, data in _instances(source):
                ohif.keep(archive, data)
                studies.setdefault(uid, title)
        print("\nOpen, and double-click the SEG or the SR on the left:")
        for uid, title in studies.items():
            print(f"  {address}/viewer?StudyInstanceUIDs={uid}  {title}")
        print("Ctrl-C ends it.", flush=True)
        threading.Event().wait()


def _instances(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Study, what it is, and bytes of every DICOM instance in a folder."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        with suppress(InvalidDicomError, AttributeError):
            header = dcmread(io.BytesIO(data), stop_before_pixels=True)
            title = f"{header.Modality} {header.get('StudyDescription', '')}".strip()
            yield str(header.StudyInstanceUID), title, data


if __name__ == "__main__":
    sys.exit(main())
