"""pynetdicom's own example of a storage SCP, for comparison:

python -m tests.benchmarks.stock PORT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt


def main(port: int, folder: Path) -> None:
    def handle(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000

    ae = AE("STOCK")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.maximum_associations = 64
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle)])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
