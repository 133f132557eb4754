"""Owns the check of bundles in a process of its own: ``python -m dicom_node.worker.verify``.

Takes a device and paths; prints for each a line of JSON: the device, the load time, the difference
from the golden example.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

from inference.bundle import open_bundle
from inference.engine import Engine, choose_device
from inference.errors import InferenceError


def main() -> int:
    """Verify what the command line names; exit code 1 with the reason on stderr."""
    device, *paths = sys.argv[1:]
    for path in map(Path, paths):
        try:
            bundle = open_bundle(path)
            started = perf_counter()
            engine = Engine(bundle, choose_device(device))
            loaded = perf_counter() - started
            difference = engine.check_golden()
        except InferenceError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        told = {
            "device": str(engine.device),
            "load_seconds": round(loaded, 3),
            "golden_difference": difference,
        }
        sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
