"""One WebSocket connection to a relay, and what its end means. The only module of the client that opens sockets.

Rules:
- What waiting cannot mend is told from what it can: see `hopeless`.
- Boards may be large: no message is too long, and nothing of the network is taken for silence while one arrives.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidProxy, InvalidStatus, InvalidURI, WebSocketException
from websockets.uri import parse_uri

OPEN_SECONDS: Final = 10.0
"""How long a connection may take to be made."""

CLOSE_SECONDS: Final = 1.0
"""How long the relay has to say goodbye."""

LONGEST_RETRY_AFTER_SECONDS: Final = 300.0
"""A relay that asks for more patience than this is asked again nevertheless."""

FAILURES: Final = (OSError, WebSocketException, ImportError)
"""What an attempt or a connection may end with; ImportError is of a proxy that needs another package."""

_PASSING_STATUSES: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class _Connection(ClientConnection):
    """A connection that tells when anything comes, be it a part of a message."""

    heard: Callable[[], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.heard:
            self.heard()
        super().data_received(data)


@contextlib.asynccontextmanager
async def connected(url: str, token: str | None, heard: Callable[[], None]) -> AsyncIterator[ClientConnection]:
    """Connect for as long as the context lasts. Raises one of FAILURES."""
    local = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
    async with connect(
        url,
        additional_headers={"Authorization": f"Bearer {token}"} if token else None,
        proxy=None if local else True,  # whatever proxy there may be leads away from this machine
        max_size=None,
        open_timeout=OPEN_SECONDS,
        close_timeout=CLOSE_SECONDS,
        ping_interval=None,  # a pong would wait behind a large board
        create_connection=_Connection,
    ) as connection:
        assert isinstance(connection, _Connection)
        connection.heard = heard
        try:
            yield connection
        finally:
            await connection.close()  # by itself it would call our leaving an error


def check(url: str) -> None:
    """Raise ValueError for what is no address of a WebSocket endpoint."""
    try:
        parse_uri(url)
        _ = urlsplit(url).port
    except (WebSocketException, ValueError):
        raise ValueError(
            f"{without_secrets(url)!r} is no address of a relay: expected one like ws://localhost:4002"
        ) from None


def check_token(token: object) -> str | None:
    """Return a token. Raises ValueError or TypeError for what cannot be one; the message does not tell it."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"the token is of type {type(token).__name__}: expected a string or None")
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError("the token is empty, or no text that a header can hold: expected one without spaces")
    return token


def without_secrets(url: str) -> str:
    """Give an address without user, password and query, which may hold a token."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "that"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def hopeless(ex: Exception, *, credential: str = "a good token", address: str = "the address") -> str | None:
    """Say what waiting cannot mend, and what may; None for anything else. Close codes are for the core.

    `credential` and `address` are what the user can give and check.
    """
    match ex:
        case InvalidStatus(response=response):
            status = response.status_code
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING_STATUSES:
                return None
            if is_refused(ex):
                return f"the relay refused the connection (HTTP {status}): give {credential}"
            return f"HTTP {status} was answered: expected the WebSocket endpoint of a relay, so check {address}"
        case ssl.SSLCertVerificationError():
            return f"the relay's certificate is not trusted: {ex.verify_message}: see SSL_CERT_FILE"
        case InvalidURI() | InvalidProxy() | ImportError():
            return reason(ex)
    return None


def is_refused(ex: Exception) -> bool:
    """Tell whether another token might have been let in."""
    return isinstance(ex, InvalidStatus) and ex.response.status_code in {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
    }


def retry_after(ex: Exception) -> float:
    """Return the seconds that a relay which refused asks to wait for."""
    if not isinstance(ex, InvalidStatus):
        return 0.0
    asked = ex.response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_RETRY_AFTER_SECONDS) if asked.isdecimal() else 0.0


def reason(ex: Exception) -> str:
    """Say in a few words why a connection ended, or was not made."""
    match ex:
        case ConnectionClosed() if ex.rcvd:
            return ex.rcvd.reason
        case ConnectionClosed():
            return "the connection broke"
        case InvalidStatus(response=response):
            return f"HTTP {response.status_code}"
        case TimeoutError():
            return f"no answer within {OPEN_SECONDS:.0f} seconds"
    return " ".join(str(ex).split()) or type(ex).__name__
