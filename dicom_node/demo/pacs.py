"""Owns the stand-in PACS: a storage SCP that writes what it gets, one Part 10 file an instance.

``python -m dicom_node.demo.pacs FOLDER`` prints its port and serves until it is terminated.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pynetdicom import AE, evt

from dicom_node.dimse.contexts import accepted
from dicom_node.dimse.transport import prepare

AE_TITLE = "DEMOPACS"


def main() -> None:
    """Serve the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())

    def store(event: Any) -> int:
        modality = str(event.dataset.get("Modality", "OT"))
        name = f"{modality}.{event.request.AffectedSOPInstanceUID}.dcm"
        (folder / Path(name).name).write_bytes(event.encoded_dataset())
        return 0x0000

    def connected(event: Any) -> None:
        prepare(event.assoc.dul.socket.socket, timeout=60)

    ae = AE(ae_title=AE_TITLE)
    ae.require_called_aet = True
    ae.supported_contexts = list(accepted())
    handlers: Any = [(evt.EVT_C_STORE, store), (evt.EVT_CONN_OPEN, connected)]
    server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    stop.wait()
    server.shutdown()


if __name__ == "__main__":
    main()
