"""Owns STOW-RS (PS3.18 10.5) and QIDO-RS as a client; sends files as they are, decides no retries.

What an answer means is ``destinations.answers``'s; when to try again is the caller's. One request
carries one instance, streamed from its file. Everything is bounded: what is read of an answer, and
by a clock each of connecting, sending and waiting, so that a server that dribbles gains nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import httpx

from dicom_node.destinations.answers import fate, held, refused, retry_after
from dicom_node.destinations.types import EchoResult, Item, OnResult, Sent, Untried
from dicom_node.dimse.tls import fault_of
from dicom_node.errors import ConfigurationError, DeliveryFailed, DestinationClosed, Retry

MAXIMUM_ANSWER: Final = 1 << 20
"""Bytes of an answer that are read; one about one instance has a thousand."""
SLOWEST: Final = 32 * 1024
"""Bytes a second below which a sending counts as hanging, however steadily it trickles."""
CHUNK: Final = 1 << 16
NOBODYS: Final = "2.25.0"
"""A Study Instance UID that no study has: the answer to an echo names no patient."""
_NO_QUERIES: Final = frozenset({400, 404, 405, 501})
"""What a server may answer to a query that takes objects only."""


@dataclass(frozen=True)
class DicomwebDestination:
    """A server that takes STOW-RS.

    Args:
        url: root of its service, as ``https://pacs.example/dicom-web``.
        timeout: seconds to connect, for each write, and for the whole of each answer.
        user: for Basic authentication, with the secret as its password.
        secret_file: file with the password, or without ``user`` the bearer token.
        secret_variable: environment variable with it, in place of a file.
        ca_file: PEM file of the authorities to trust; None: those of the system.
        certificate: PEM file of our certificate, where it asks for one.
        key: PEM file of its key; None: it stands in ``certificate``.
    """

    url: str
    timeout: float = 30.0
    user: str | None = None
    secret_file: Path | None = None
    secret_variable: str | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], timeout: float) -> DicomwebDestination:
        """The one of a stored configuration; ``timeout`` where that names none.

        Raises:
            ConfigurationError: something in it cannot be right.
        """
        files = {
            name: Path(config[name])
            for name in ("secret_file", "ca_file", "certificate", "key")
            if name in config
        }
        made = cls(
            url=_checked_url(config["url"]),
            timeout=float(config.get("timeout", timeout)),
            user=config.get("user"),
            secret_variable=config.get("secret_variable"),
            **files,
        )
        made._check()
        return made

    def send(self, items: Sequence[Item], on_result: OnResult) -> None:
        """Send the items one by one, over one connection where the server keeps it.

        Once it cannot be reached, does not let us in, is busy, or leaves two in a row without an
        answer, the rest is reported as untried for the same reason. One alone
        without an answer may be at fault itself.
        """
        asyncio.run(self._send(items, on_result))

    def echo(self) -> EchoResult:
        """A query by QIDO-RS for a study that nobody has; OPTIONS where it takes no queries."""
        started = time.monotonic()
        try:
            asyncio.run(self._echo())
        except DeliveryFailed as failure:
            return EchoResult(False, f"{self.url}: {failure.reason}", time.monotonic() - started)
        return EchoResult(True, "", time.monotonic() - started)

    def confirm(self, items: Sequence[Item]) -> set[str]:
        """The SOP Instance UIDs among those of the items that it says it holds, by QIDO-RS.

        Raises:
            DestinationClosed: it is away; it is asked again when it is back.
            DeliveryFailed: it does not say; ``Retry.NEVER``: it takes no queries.
        """
        return asyncio.run(self._confirm(items))

    async def _send(self, items: Sequence[Item], on_result: OnResult) -> None:
        closed: DestinationClosed | None = None
        outcome: Sent | DeliveryFailed | None = None
        async with contextlib.AsyncExitStack() as stack:
            try:
                http = await stack.enter_async_context(self._http())
            except DestinationClosed as failure:
                closed = failure
            for item in items:
                if closed:
                    on_result(item, Untried(closed.reason, Retry.LATER, wait=closed.wait))
                    continue
                before = outcome
                try:
                    outcome = await self._store(http, item)
                except DestinationClosed as failure:
                    outcome = failure
                    if not isinstance(failure, _NoAnswer) or isinstance(before, _NoAnswer):
                        closed = failure
                except DeliveryFailed as failure:
                    outcome = failure
                on_result(item, outcome)

    async def _store(self, http: httpx.AsyncClient, item: Item) -> Sent:
        try:
            file = item.path.open("rb")
        except OSError as error:
            raise _unreadable(error) from error
        with file:
            body = _Multipart(file, os.fstat(file.fileno()).st_size)
            answer = await self._ask(http, "POST", "/studies", body)
        return fate(answer.status, answer.body, item, answer.wait)

    async def _echo(self) -> None:
        async with self._http() as http:
            answer = await self._ask(http, "GET", f"/studies?StudyInstanceUID={NOBODYS}&limit=1")
            if answer.status in _NO_QUERIES:
                offered = await self._ask(http, "OPTIONS", "/studies")
                if 200 <= offered.status < 300 and "POST" in offered.methods:
                    return
        if not 200 <= answer.status < 300:
            raise refused(answer.status)
        held(answer.body)

    async def _confirm(self, items: Sequence[Item]) -> set[str]:
        found: set[str] = set()
        async with self._http() as http:
            for uid in dict.fromkeys(item.sop_instance_uid for item in items):
                answer = await self._ask(http, "GET", f"/instances?SOPInstanceUID={uid}&limit=1")
                if answer.status in _NO_QUERIES:
                    words = f"HTTP status {answer.status}: it takes no queries"
                    raise DeliveryFailed(words, Retry.NEVER)
                if not 200 <= answer.status < 300:
                    raise refused(answer.status, answer.wait)
                # A server that does not know the key answers with others.
                found |= held(answer.body) & {uid}
        return found

    async def _ask(
        self, http: httpx.AsyncClient, method: str, path: str, body: _Multipart | None = None
    ) -> _Answer:
        """Send a request and read the answer.

        Raises:
            DestinationClosed: it cannot be connected to; `_NoAnswer`: none came, or not in time.
        """
        now = asyncio.get_running_loop().time

        async def content(body: _Multipart) -> AsyncIterator[bytes]:
            clock.reschedule(now() + self.timeout + body.size / SLOWEST)  # it is connected
            for piece in body.pieces():
                yield piece
            clock.reschedule(now() + self.timeout)  # all is sent

        request: dict[str, Any] = {}
        if body:
            request = {"content": content(body), "headers": body.headers}
        try:
            async with (
                asyncio.timeout(self.timeout) as clock,
                http.stream(method, path, **request) as response,
            ):
                return await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise DestinationClosed(_why(error, "no connection"), Retry.LATER) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _NoAnswer("no answer in time", Retry.LATER) from error
        except (OSError, httpx.TransportError) as error:  # TLS has errors of its own
            words = _why(error, "connection lost, or the answer is not HTTP")
            if self.url.startswith("https:"):  # TLS 1.3 refuses a client's after the handshake
                words += "; it may want another certificate of us"
            raise _NoAnswer(words, Retry.LATER) from error

    def _http(self) -> httpx.AsyncClient:
        """A client to be closed.

        Raises:
            DestinationClosed: a secret or a certificate cannot be read.
        """
        return httpx.AsyncClient(
            base_url=self.url,
            headers={
                "Accept": "application/dicom+json",
                "Accept-Encoding": "identity",  # what is not inflated cannot be a bomb
                **self._authorization(),
            },
            verify=self._context(),
            timeout=self.timeout,
            limits=httpx.Limits(max_connections=1),
            follow_redirects=False,  # or the patient's data would go where an answer says
            trust_env=False,  # or to a proxy that was meant for something else
        )

    def _context(self) -> ssl.SSLContext:
        """TLS 1.2 or 1.3, the peer always verified; one that trusts nobody for plain HTTP."""
        if not self.url.startswith("https:"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("@SECLEVEL=2:ECDHE+AESGCM")  # RFC 9325 4.2; of TLS 1.2
            if self.certificate:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:  # of which ssl.SSLError is one
            words = f"CA file, certificate or key cannot be used: {fault_of(error)}"
            raise DestinationClosed(words, Retry.LATER) from error
        return context

    def _authorization(self) -> dict[str, str]:
        """Read anew each time: secrets are exchanged while we run."""
        if self.secret_file is None and self.secret_variable is None:
            return {}
        try:
            secret = (
                self.secret_file.read_text(encoding="utf-8")
                if self.secret_file
                else os.environ.get(self.secret_variable or "", "")
            ).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DestinationClosed("its secret's file cannot be read", Retry.LATER) from error
        if not secret or not secret.isprintable() or not (secret.isascii() or self.user):
            place = "file" if self.secret_file else "environment variable"
            raise DestinationClosed(
                f"its secret's {place} holds none that could be sent", Retry.LATER
            )
        if self.user is not None:
            pair = b64encode(f"{self.user}:{secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {"Authorization": f"Bearer {secret}"}

    def _check(self) -> None:
        scheme, host = urlsplit(self.url).scheme, urlsplit(self.url).hostname or ""
        if self.secret_file and self.secret_variable:
            raise ConfigurationError("a secret comes from a file or a variable, not from both")
        secret = self.secret_file or self.secret_variable
        if self.user is not None and (
            not secret or ":" in self.user or not self.user.isprintable()
        ):
            raise ConfigurationError(
                "a user has no colon in the name, and a secret's file or variable"
            )
        if self.secret_variable and self.secret_variable.upper().startswith("DICOM_NODE_"):
            raise ConfigurationError("variables that begin with DICOM_NODE_ are settings")
        if self.key and not self.certificate:
            raise ConfigurationError("a key needs its certificate")
        if scheme == "http" and (self.ca_file or self.certificate):
            raise ConfigurationError("certificates are for https")
        if scheme == "http" and secret and not _is_here(host):
            raise ConfigurationError("a secret is sent by https only; http shows it to the network")
        if not 0 < self.timeout <= 3600:
            raise ConfigurationError("a timeout has more than 0 and at most 3600 seconds")


class _NoAnswer(DestinationClosed):
    """It was connected to, and did not answer."""


@dataclass(frozen=True)
class _Answer:
    """What came back.

    Attributes:
        status: of HTTP.
        body: all of it, empty where it was too long.
        wait: seconds that the server wants to be left alone.
        methods: that it allows, where it says so.
    """

    status: int
    body: bytes
    wait: float
    methods: str


class _Multipart:
    """A multipart/related body of one Part 10 file (PS3.18 8.6.1), read as it is sent."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.boundary = secrets.token_hex(16)  # 128 random bits: no file holds them
        self._file, self.size = file, size
        self._head = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()

    @property
    def headers(self) -> dict[str, str]:
        kind = f'multipart/related; type="application/dicom"; boundary={self.boundary}'
        length = len(self._head) + self.size + len(self._tail)
        return {"Content-Type": kind, "Content-Length": str(length)}

    def pieces(self) -> Iterator[bytes]:
        yield self._head
        left = self.size
        while left:
            try:
                data = self._file.read(min(left, CHUNK))
            except OSError as error:
                raise _unreadable(error) from error
            if not data:
                raise DeliveryFailed("the file became shorter while it was sent", Retry.LATER)
            left -= len(data)
            yield data
        yield self._tail


async def _read(response: httpx.Response) -> _Answer:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAXIMUM_ANSWER:
            body.clear()
            break
    return _Answer(
        response.status_code,
        bytes(body),
        retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
        response.headers.get("Allow", "").upper(),
    )


def _unreadable(error: OSError) -> DeliveryFailed:
    return DeliveryFailed(f"file cannot be read: {error.strerror}", Retry.LATER)


def _why(error: BaseException, otherwise: str) -> str:
    """A failure of the connection in words that are ours, the system's or OpenSSL's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {fault_of(cause)}"
        if isinstance(cause, socket.gaierror):
            return f"address: {cause.strerror}"
        if isinstance(cause, OSError) and cause.errno:
            return f"connection: {os.strerror(cause.errno)}"
        cause = cause.__cause__ or cause.__context__
    return otherwise


def _checked_url(text: str) -> str:
    """The URL without a slash at its end.

    Raises:
        ConfigurationError: not the root of a service.
    """
    parts = urlsplit(text)
    try:
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL):
        right = False
    if "@" in parts.netloc:  # not shown: it may hold a password
        raise ConfigurationError("the URL names a user; --user and a secret's file or variable do")
    if not right or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{text!r} is no root of a service, as https://pacs/dicom-web")
    return text.rstrip("/")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
