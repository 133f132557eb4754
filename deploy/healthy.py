#!/usr/bin/env python3
"""Owns the containers' health check: fails only for what a restart of this container mends.

Healthy is a container with a process that beats, by ``dicom-node status``. With the database away
nothing can be said, and a restart would bring nothing back: that counts as healthy here, and the
database's own check tells of it. Any role; needs nothing but the standard library.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys


def main() -> int:
    """Exit code 0 or 1, with the reason on stderr."""
    asked = subprocess.run(
        ["dicom-node", "status", "--json"], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        sys.stderr.write(asked.stderr)
        return 0
    here = [p for p in json.loads(asked.stdout)["processes"] if p["host"] == socket.gethostname()]
    if any(process["beating"] for process in here):
        return 0
    sys.stderr.write(f"{len(here)} processes of this container are known, none beats\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
