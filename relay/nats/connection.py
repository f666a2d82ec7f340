"""One connection to NATS: opening, closing, and the meaning of errors.

Rules:
- A connection never reconnects. Any fault ends it; its owner opens another, and reads where the stream is.
- Every error is raised as a StreamError, with one line of text without passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import nats.errors
import nkeys  # type: ignore[import-untyped]  # it has no types
from nats.aio.client import Client
from nats.js.errors import APIError

from relay.cancellation import kept_cancellation
from relay.config.settings import Settings
from relay.text import one_line

CONNECT_SECONDS: Final = 5
"""Timeout of connecting."""

CLOSE_SECONDS: Final = 1
"""Timeout of closing."""

PING_SECONDS: Final = 2
"""Interval of pings; after two pings without an answer the connection is dead."""

EXPECTED: Final = "Nats-Expected-Last-Sequence"
"""Header of an entry: the sequence of the stream's last entry, as its publisher expects it."""

_SEQUENCE_DIGITS: Final = 20
HEADER_BYTES: Final = len(f"NATS/1.0\r\n{EXPECTED}: \r\n\r\n") + _SEQUENCE_DIGITS
"""Size of an entry's header, which NATS counts as a part of the message."""

_WRONG_LAST_SEQUENCE: Final = 10071
_NO_MESSAGE: Final = 10037


class StreamError(Exception):
    """The stream cannot be used. The text says why, in one line."""


class Refused(StreamError):
    """An entry or question itself is refused, so sending it again is of no use."""


class Outrun(StreamError):
    """Another publisher has appended to the stream."""


class NoStreamError(StreamError):
    """There is no such stream."""


class NoMessageError(StreamError):
    """There is no such message in the stream."""


class Connection:
    """A connection for the stream `name`."""

    def __init__(self, client: Client, name: str, domain: str) -> None:
        self.client = client
        self.name = name
        self.domain = domain
        self._fault: str | None = None
        self._ended = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, servers: str, role: str) -> AsyncIterator[Self]:
        """Connect. Raises StreamError."""
        client = Client()
        connection = cls(client, settings.NATS_STREAM, settings.NATS_DOMAIN)
        try:
            with kept_cancellation():
                async with asyncio.timeout(CONNECT_SECONDS):
                    await client.connect(
                        error_cb=connection._failed,
                        closed_cb=connection._closed,
                        **_options(servers, role),
                        **_security(settings, servers),
                    )
        except asyncio.CancelledError:
            await _close(client)
            raise
        except (nats.errors.Error, nkeys.NkeysError, OSError, ValueError, TimeoutError) as ex:
            reason = f"{connection._fault or _line(ex)}{_missing(ex)}"
            await _close(client)
            raise StreamError(f"cannot connect to NATS at {_shown(servers)}: {reason}") from None
        try:
            yield connection
        finally:
            await _close(client)

    async def _failed(self, ex: Exception) -> None:
        self._fault = _line(ex)

    async def _closed(self) -> None:
        self._ended.set()

    async def ended(self) -> None:
        """Wait until the connection has ended, then raise StreamError."""
        await self._ended.wait()
        raise StreamError(f"the connection to NATS has ended: {self._fault or 'it was closed'}")

    @property
    def room(self) -> int:
        """Maximum payload of one message, in bytes."""
        return self.client.max_payload - HEADER_BYTES

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of NATS and nats-py into StreamErrors."""
        try:
            with kept_cancellation():
                yield
        except APIError as ex:
            raise self.refused(ex.code or 0, ex.err_code or 0, ex.description or _line(ex)) from None
        except TimeoutError:
            raise StreamError(f"NATS does not answer: {self._fault or 'is JetStream enabled?'}") from None
        except (nats.errors.Error, OSError) as ex:
            raise StreamError(f"NATS: {self._fault or _line(ex)}") from None

    def refused(self, code: int, number: int, description: str) -> StreamError:
        """Return the error for an HTTP-like code, an error number and a description from JetStream."""
        if number == _WRONG_LAST_SEQUENCE:
            return Outrun(f"another publisher has appended to stream {self.name}")
        if number == _NO_MESSAGE:
            return NoMessageError(description)
        if code == HTTPStatus.NOT_FOUND:
            return self.no_stream()
        return Refused(f"JetStream refused: {description}")

    def no_stream(self) -> StreamError:
        """Return the error for a stream that does not exist."""
        return NoStreamError(f"NATS has no stream {self.name}: start relay publish, which makes it")


async def _close(client: Client) -> None:
    """Close a connection, even if it was never established. With TLS, closing would wait long for a silent server."""
    if not (client.is_connecting or client.is_connected):
        return
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await client.close()


def _servers(servers: str) -> list[str]:
    return [server.strip() for server in servers.split(",")]


def _shown(servers: str) -> str:
    """Return the servers without users and passwords."""
    return ", ".join(urlsplit(server).netloc.rpartition("@")[2] for server in _servers(servers))


def _options(servers: str, role: str) -> dict[str, Any]:
    """Return the other arguments of `connect`, apart from callbacks."""
    return {
        "servers": _servers(servers),
        "name": f"relay {role}",
        # Others, such as relay check, have the rights of an edge.
        "inbox_prefix": "_INBOX_publisher" if role == "publisher" else "_INBOX_edge",
        "allow_reconnect": False,
        # Without these, nats-py never gives up the first attempt.
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "ping_interval": PING_SECONDS,
        "max_outstanding_pings": 2,
    }


def _security(settings: Settings, servers: str) -> dict[str, Any]:
    """Return the arguments of `connect` for TLS and credentials."""
    given: dict[str, Any] = {}
    if settings.NATS_CREDENTIALS:
        given["user_credentials"] = _credentials(Path(settings.NATS_CREDENTIALS))
    if settings.NATS_CA or settings.NATS_CERT or servers.startswith("tls://"):
        context = ssl.create_default_context(cafile=settings.NATS_CA or None)
        if settings.NATS_CERT:
            context.load_cert_chain(settings.NATS_CERT, settings.NATS_KEY or None)
        given["tls"] = context
    return given


def _missing(ex: BaseException) -> str:
    """Guess why a server ends the connection within the handshake: TLS 1.3 may not let it report the reason."""
    missing = isinstance(ex, ConnectionError | ssl.SSLError) and not isinstance(ex, ssl.SSLCertVerificationError)
    return " (does it want a certificate, NATS_CERT, or another one?)" if missing else ""


def _credentials(path: Path) -> Path:
    """Check that a file contains credentials, because nats-py would search any other forever."""
    text = path.read_text()
    if any(f"BEGIN {part}" not in text for part in ("NATS USER JWT", "USER NKEY SEED")):
        raise ValueError(f"{path} is no file of credentials, with a JWT and a seed")
    return path


def _line(ex: BaseException) -> str:
    return one_line(str(ex)).removeprefix("nats: ") or type(ex).__name__


def _is_a_warning(record: logging.LogRecord) -> bool:
    """Drop a warning of asyncio that means nothing here: nats-py uses a plain stream protocol for TLS."""
    return not record.getMessage().startswith("returning true from eof_received()")


logging.getLogger("asyncio").addFilter(_is_a_warning)
