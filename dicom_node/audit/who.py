"""Owns who takes part: this process, the person behind a command, a peer; knows no events."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dicom_node.audit.messages import Participant

_NOBODY = 4294967295
"""The login uid of a process that no login began (credentials(7), audit_setloginuid(3))."""


def process(role: str, ae_title: str, *, pid: int | None = None, host: str = "") -> Participant:
    """A process of this node; its logs and ``dicom-node status`` name the same pid and host."""
    host = host or socket.gethostname()
    number = os.getpid() if pid is None else pid
    return Participant(f"{number}@{host}", f"dicom-node {role}", ae_title, address=host)


def person() -> Participant:
    """Who runs this command: the login that the kernel remembers through sudo, su and runuser.

    Where there was none (containers), who called sudo, then the account. Not what the environment
    says of LOGNAME: anybody can set it.
    """
    account = _login(os.getuid())
    login = _logged_in() or os.environ.get("SUDO_USER") or account
    host = socket.gethostname()
    other = account if account != login else ""
    return Participant(f"{login}@{host}", login, account=other, address=host, requestor=True)


def peer(ae_title: str, address: str) -> Participant:
    """An application at the other end of an association."""
    return Participant(ae_title, ae_title=ae_title, address=address)


def place(name: str, config: Mapping[str, Any]) -> Participant:
    """A destination, by its entry; what a URL says of passwords stays out."""
    ae_title = str(config.get("ae_title") or "")
    url = urlsplit(str(config.get("url") or ""))
    if url.hostname:
        shown = url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="")
        return Participant(name, name, ae_title, address=urlunsplit(shown))
    address = str(config.get("host") or "") or (
        Path(config["path"]).absolute().as_uri() if config.get("path") else ""
    )
    return Participant(ae_title or name, name, ae_title, address=address)


def _logged_in() -> str:
    try:
        number = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):  # not Linux, or a kernel without it
        return ""
    return "" if number == _NOBODY else _login(number)


def _login(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container's user that has no entry
        return f"uid {number}"
