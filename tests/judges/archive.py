"""Asks Orthanc: it takes an object by C-STORE and by STOW-RS, and gives back what it took.

It proves transport, not content. By C-STORE through the node's own destination, by STOW-RS with a
plain POST of multipart/related (PS3.18 10.5).
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.destinations.types import Item, Sent
from dicom_node.errors import DeliveryFailed
from tests.judges.types import LABEL_MAP, NotApplicable, Origin, Verdict, parse
from tests.servers import Orthanc, lacking

PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins")
NO_LABEL_MAP = NotApplicable(
    "Orthanc 1.10.1 does not offer the Label Map class by C-STORE (it takes it by STOW-RS)"
)
BOUNDARY = "one-object"


def dicomweb() -> dict[str, Any]:
    """Orthanc's configuration with its DICOMweb plugin; skips where that is not installed."""
    for folder in PLUGINS:
        library = Path(folder, "libOrthancDicomWeb.so")
        if library.exists():
            return {"Plugins": [str(library)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
    lacking("orthanc-dicomweb is not installed")


class Archive:
    """An Orthanc as a judge; whatever it took is removed again, so that nothing is "already held".

    Args:
        orthanc: with the configuration of `dicomweb`.
    """

    def __init__(self, orthanc: Orthanc) -> None:
        self.orthanc = orthanc

    def c_store(self, data: bytes, _: Origin) -> Verdict:
        """It takes the object by C-STORE and gives back the same data set."""
        dataset = parse(data)
        uid = str(dataset.SOPInstanceUID)
        fates: list[Sent | DeliveryFailed] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "object.dcm")
            path.write_bytes(data)
            syntax = str(dataset.file_meta.TransferSyntaxUID)
            destination = DimseDestination(
                self.orthanc.ae_title, "127.0.0.1", self.orthanc.port, "JUDGE"
            )
            destination.send(
                [Item(path, str(dataset.SOPClassUID), uid, syntax)],
                lambda _item, fate: fates.append(fate),
            )
        (fate,) = fates
        if not isinstance(fate, Sent):
            if dataset.SOPClassUID == LABEL_MAP:
                return NO_LABEL_MAP
            return [f"C-STORE: {fate}"]
        if fate.status:
            return [f"C-STORE: status 0x{fate.status:04X}"]
        if fate.transfer_syntax != syntax:
            return [f"C-STORE: sent in {fate.transfer_syntax}"]
        held = parse(self._take(uid))
        return [] if held == dataset else ["C-STORE: Orthanc gives back another data set"]

    def stow(self, data: bytes, _: Origin) -> Verdict:
        """It takes the object by STOW-RS and gives back the same bytes."""
        uid = str(parse(data).SOPInstanceUID)
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + data + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        try:
            answer = self._ask(
                "POST",
                "/dicom-web/studies",
                body,
                {"Content-Type": kind, "Accept": "application/dicom+json"},
            )
        except urllib.error.HTTPError as error:
            return [f"STOW-RS: {error.code} {error.read()[:200]!r}"]
        told = json.loads(answer)
        taken, failed = (told.get(tag, {}).get("Value", []) for tag in ("00081199", "00081198"))
        if failed or [item["00081155"]["Value"][0] for item in taken] != [uid]:
            return [f"STOW-RS: {len(taken)} taken, failed: {failed}"]
        return [] if self._take(uid) == data else ["STOW-RS: Orthanc gives back other bytes"]

    def _take(self, uid: str) -> bytes:
        """The file of an instance, which is then removed."""
        file = self.orthanc.file(uid)
        (found,) = json.loads(self._ask("POST", "/tools/lookup", uid.encode(), {}))
        self._ask("DELETE", f"/instances/{found['ID']}", None, {})
        return file

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - http, to ourselves
            self.orthanc.url + path, body, headers, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return bytes(response.read())
