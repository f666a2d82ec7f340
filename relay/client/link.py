"""One WebSocket connection to a relay, and the meaning of its end. The only module of the client that opens sockets.

Rules:
- Permanent failures are distinguished from temporary ones; see `hopeless`.
- A proxy that the environment names is used, and named in errors.
- Boards may be large: messages may have any size, and one that is still arriving does not count as silence.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from relay.text import one_line

OPEN_SECONDS: Final = 10.0
"""Timeout of the attempt to connect."""

CLOSE_SECONDS: Final = 1.0
"""Timeout of the closing handshake."""

LONGEST_RETRY_AFTER_SECONDS: Final = 300.0
"""Maximum pause that a relay may ask for; a longer one is shortened to this."""

FAILURES: Final = (OSError, WebSocketException, ImportError)
"""Exceptions with which an attempt or a connection may end; ImportError if a proxy requires another package."""

_LIMITS: Final[Mapping[int, str]] = {
    HTTPStatus.TOO_MANY_REQUESTS: "more connections in a minute than the relay allows: see WS_RATE_LIMIT_PER_CLIENT"
    " and WS_RATE_LIMIT_TOTAL",
    HTTPStatus.SERVICE_UNAVAILABLE: "the relay has no room: see WS_MAX_CONNECTIONS",
}
"""Explanations of statuses that are caused by a limit."""

_PASSING_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class _Connection(ClientConnection):
    """A connection that calls `heard` when data arrive, perhaps only a part of a message."""

    heard: Callable[[], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.heard:
            self.heard()
        super().data_received(data)


@contextlib.asynccontextmanager
async def connected(
    url: str, token: str | None, heard: Callable[[], None], *, proxy: bool = True
) -> AsyncIterator[ClientConnection]:
    """Connect for as long as the context lasts; with `proxy`, through that of the environment, if any.

    Raises one of FAILURES.
    """
    through = _proxy_of(url) if proxy else None
    connection = await _connect(url, token, through)
    connection.heard = heard
    try:
        yield connection
    finally:
        await connection.close()  # websockets' own context manager would close with an error code after an exception


async def _connect(url: str, token: str | None, proxy: str | None) -> _Connection:
    try:
        connection = await connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            proxy=proxy,
            max_size=None,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,  # a pong would wait behind a large board
            create_connection=_Connection,
        )
    except FAILURES as ex:
        if proxy:
            ex.add_note(
                f"through the proxy {without_secrets(proxy)}, which the environment names:"
                f" to go without, set no_proxy={urlsplit(url).hostname}"
            )
        raise
    assert isinstance(connection, _Connection)
    return connection


def _proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for an address; None for addresses of this machine."""
    local = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
    return None if local else get_proxy(parse_uri(url))


def check(url: str) -> None:
    """Check that this is the address of a WebSocket endpoint. Raises ValueError."""
    try:
        parse_uri(url)
        _ = urlsplit(url).port
    except (WebSocketException, ValueError):
        raise ValueError(
            f"{without_secrets(url)!r} is no address of a relay: expected one like ws://localhost:4002"
        ) from None


def check_token(token: object) -> str | None:
    """Return a valid token or None. Raises ValueError or TypeError, without showing the token."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"the token is of type {type(token).__name__}: expected a string or None")
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("the token is empty, or no text that a header can hold: expected one without spaces")
    return token


def without_secrets(url: str) -> str:
    """Return an address without user, password and query, which may contain a token."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "that"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def hopeless(ex: Exception, *, credential: str = "a good token", address: str = "the address") -> str | None:
    """Describe a permanent failure; return None for any other. Close codes are left to the core.

    `credential` and `address` name what the user should give or check.
    """
    why = _hopeless(ex, credential, address)
    return why and ", ".join([why, *getattr(ex, "__notes__", ())])


def _hopeless(ex: Exception, credential: str, address: str) -> str | None:
    match ex:
        case InvalidStatus() | InvalidProxyStatus() if _may_pass(ex.response.status_code):
            return None
        case InvalidStatus(response=response) if is_refused(ex):
            return f"the relay refused the connection (HTTP {response.status_code}): give {credential}"
        case InvalidStatus():
            return f"{_reason(ex)} was answered: expected the WebSocket endpoint of a relay, so check {address}"
        case ssl.SSLCertVerificationError():
            return f"the relay's certificate is not trusted: {ex.verify_message}: see SSL_CERT_FILE"
        case InvalidURI() | InvalidProxy() | InvalidProxyStatus() | ImportError() | TypeError() | ValueError():
            return _reason(ex)  # the last two mean a token that cannot be presented
    return None


def _may_pass(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUSES


def is_refused(ex: Exception) -> bool:
    """Return whether another token might have been accepted."""
    return isinstance(ex, InvalidStatus) and ex.response.status_code in {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
    }


def retry_after(ex: Exception) -> float:
    """Return the seconds that a refusing relay asks to wait."""
    if not isinstance(ex, InvalidStatus):
        return 0.0
    asked = ex.response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_RETRY_AFTER_SECONDS) if asked.isdecimal() else 0.0


def reason(ex: Exception) -> str:
    """Return in a few words why a connection ended or failed, and through which proxy."""
    return ", ".join([_reason(ex), *getattr(ex, "__notes__", ())])


def _reason(ex: Exception) -> str:
    match ex:
        case ConnectionClosed() if ex.rcvd:
            return ex.rcvd.reason
        case ConnectionClosed():
            return "the connection broke"
        case InvalidStatus(response=response):
            limit = _LIMITS.get(response.status_code)
            return f"HTTP {response.status_code}" + (f", {limit}" if limit else "")
        case TimeoutError():
            return f"no answer within {OPEN_SECONDS:.0f} seconds"
    return one_line(str(ex)) or type(ex).__name__
