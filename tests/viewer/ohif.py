"""Owns the OHIF viewer as a page to open: its built files, and one origin for it and an archive.

The files are those of the npm package, of one pinned version, unpacked once into a folder that git
ignores. A small server hands them out with a configuration of ours and passes ``/dicom-web`` on to
Orthanc, because a browser lets a page speak to its own origin only. Refuses to know browsers and
what is shown.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import Request, urlopen

from tests.servers import Orthanc, lacking, need, orthanc

VERSION = "3.13.2"
_ROOT = Path(__file__).parents[2]
_CACHE = _ROOT / ".cache" / f"ohif-{VERSION}"
_DICOM_WEB = "/dicom-web"
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
"""Headers between two neighbours; each connection has its own (RFC 9110 7.6.1)."""

CONFIGURATION: dict[str, Any] = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": [{"ohif.tours": {"$set": []}}],  # a tour lies over the images
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "showLoadingIndicator": True,
    "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False,
    "strictZSpacingForVolumeViewport": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "archive",
                "wadoUriRoot": "/wado",
                "qidoRoot": _DICOM_WEB,
                "wadoRoot": _DICOM_WEB,
                "qidoSupportsIncludeField": False,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
                "omitQuotationForMultipartRequest": True,
            },
        }
    ],
}
"""OHIF's own defaults but for the archive and for words that would hide the images."""


def files() -> Path:
    """The built viewer; fetched by npm at the first call. Skips where there is no npm."""
    built = _CACHE / "dist"
    if built.is_dir():
        return built
    npm = need("npm")
    _CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE.parent) as name:
        folder = Path(name)
        package = f"@ohif/app@{VERSION}"
        done = subprocess.run(
            [npm, "pack", package, "--silent"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        packed = sorted(folder.glob("*.tgz"))
        if done.returncode or not packed:
            lacking(f"npm does not give {package}: {done.stderr.strip()[-300:]}")
        _unpack(packed[0], folder)
        _CACHE.mkdir(exist_ok=True)
        # At once and last, so that nobody finds half a viewer; another process may have been first.
        with suppress(OSError):
            (folder / "package" / "dist").rename(built)
    return built


def _unpack(packed: Path, folder: Path) -> None:
    """The built viewer's files; by hand, since Debian 12's tarfile has no filter of its own."""
    with tarfile.open(packed) as archive:
        for member in archive.getmembers():
            target = (folder / member.name).resolve()
            inside = target.is_relative_to((folder / "package" / "dist").resolve())
            content = archive.extractfile(member) if member.isfile() and inside else None
            if content is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


@contextmanager
def archive(folder: Path) -> Iterator[Orthanc]:
    """An Orthanc that speaks DICOMweb; skips where Debian's plugin is not installed."""
    found = [p for place in _PLUGINS for p in Path(place).glob("libOrthancDicomWeb.so*")]
    if not found:
        lacking("orthanc-dicomweb is not installed")
    web = {"Enable": True, "Root": f"{_DICOM_WEB}/", "EnableWado": True, "WadoRoot": "/wado"}
    threads = {"HttpThreadsCount": 8, "OverwriteInstances": True}
    with orthanc(folder, Plugins=[str(found[0])], DicomWeb=web, **threads) as running:
        yield running


def keep(running: Orthanc, data: bytes) -> None:
    """Put a Part 10 file into the archive."""
    request = Request(f"{running.url}/instances", data, method="POST")  # noqa: S310 - ourselves
    with urlopen(request, timeout=60):  # noqa: S310 - likewise
        pass


@contextmanager
def viewer(running: Orthanc, port: int = 0) -> Iterator[str]:
    """The viewer beside an archive, on loopback; gives its address, such as ``http://...:8000``."""
    handler = partial(_Handler, orthanc=running.http_port, directory=str(files()))
    with _Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a browser opens several connections at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a page drops what it asked for; nothing is wrong with that."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def __init__(self, *args: Any, orthanc: int, directory: str) -> None:
        self.orthanc = orthanc
        super().__init__(*args, directory=directory)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith((_DICOM_WEB, "/wado")):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(f"window.config = {json.dumps(CONFIGURATION)};".encode())
        else:
            # Every address of the application itself is a route inside its one page.
            if not (Path(self.directory) / path.lstrip("/")).is_file():
                self.path = "/index.html"
            super().do_GET()

    def do_POST(self) -> None:
        self._pass_on()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self) -> None:
        """Ask Orthanc the same, and hand on its answer as it comes."""
        length = int(self.headers.get("Content-Length") or 0)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        # Orthanc writes its own address into answers; it must be the one that the browser knows.
        headers["Host"] = self.headers["Host"]
        upstream = HTTPConnection("127.0.0.1", self.orthanc, timeout=60)
        try:
            body = self.rfile.read(length) or None
            upstream.request(self.command, _undecoded(self.path), body, headers)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            size = answer.getheader("Content-Length")
            if size is None:
                self.close_connection = True
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", size)
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile, 1 << 18)
        finally:
            upstream.close()

    def end_headers(self) -> None:
        # What bears a digest in its name never changes: a second page need not fetch it again.
        if ".bundle." in self.path or self.path.endswith((".wasm", ".woff2")):
            self.send_header("Cache-Control", "max-age=31536000, immutable")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def _undecoded(path: str) -> str:
    """A request as Orthanc's plugin reads it: it decodes no query, and finds no "A%20B".

    What cannot stand in an address as it is becomes a wildcard for one character.
    """
    place, mark, query = path.partition("?")
    return place + mark + re.sub(r"[^!-~]", "?", unquote(query))
