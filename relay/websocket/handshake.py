"""Handshakes: how a client asks to be admitted, and the answers.

The websockets library implements the protocol itself. This module finds the end of the handshake in the received
data, asks the gate, and answers refusals.

Rules:
- Every refusal is counted, and logged with its reason. The library's own refusals are identified by the exception
  that it keeps, other protocols by their first bytes.
- Answers are short and do not reveal what was wrong with a credential; the log does.
- Browsers hide HTTP responses from pages. So a client that offers our subprotocol and is refused for its token or
  origin gets a close code; every other client gets HTTP 401.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from relay.auth.addresses import V1, V2
from relay.auth.gate import ForeignOrigin, Gate, TooMany, Visitor
from relay.auth.tokens import Refused
from relay.websocket.listener import FOREIGN_PROXY_HEADER, TLS_ON_PLAIN
from relay.websocket.refusals import Refusals

MAX_BYTES: Final = 32 * 1024
"""Maximum size of a handshake. A single header line, such as a cookie or token, may have 8 KB."""

TOO_LONG: Final = "handshake too long"

RETRY_SECONDS: Final = "5"
"""Seconds after which a client that found no place may try again (`Retry-After`)."""

RAISE: Final = (
    "Too many connections a minute. Many clients behind one address? "
    "Raise WS_RATE_LIMIT_PER_CLIENT and WS_RATE_LIMIT_TOTAL, and name proxies in WS_TRUSTED_PROXIES.\n"
)
"""The body of a 429, for developers and operators."""

TOO_MANY: Final = (
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: %d\r\nConnection: close\r\n"
    f"Content-Type: text/plain\r\nContent-Length: {len(RAISE)}\r\n\r\n{RAISE}"
).encode()
"""The same response, for a connection that has not been read from."""

NO_REQUEST: Final = (
    "This is no request that is served here: expected HTTP/1.1 without a body, and an address in ASCII "
    "(percent-encode other characters).\n"
)
"""The body of a 400, for what the library does not answer."""

REFUSED: Final = "give a good token, from an allowed origin"
"""The reason of the close code with which a client is refused."""

SUBPROTOCOL: Final = "relay"
"""Subprotocol of clients that know our close codes. A browser requires that one of the offered subprotocols is
accepted, and a credential cannot be, so clients offer both."""

_END: Final = b"\r\n\r\n"
_TLS_HANDSHAKE: Final = b"\x16\x03"

_REASONS: Final[Mapping[str, str]] = {
    "RequestLineTooLong": "address too long",
    "HeaderLineTooLong": "header too long",
    "TooManyHeaders": "too many headers",
    "InvalidMethod": "not GET",
    "InvalidProtocol": "not HTTP/1.1",
    "InvalidUpgrade": "no WebSocket upgrade",
    "InvalidMessage": "no HTTP request",
}


def reason(exception: Exception) -> str:
    """Return the reason why the library refused a handshake, as in `codes.REFUSALS`."""
    return _REASONS.get(type(exception).__name__, "bad handshake")


def foreign(first: bytes) -> str | None:
    """Return the refusal of a connection that begins with another known protocol; None for others."""
    if first.startswith(_TLS_HANDSHAKE):
        return TLS_ON_PLAIN
    if first.startswith((V1, V2)):
        return FOREIGN_PROXY_HEADER
    return None


class Handshake:
    """An incomplete handshake.

    `early` has the data behind the handshake while the decision is pending; None if no decision is pending.
    """

    __slots__ = ("_size", "_tail", "early")

    def __init__(self) -> None:
        self._size = 0
        self._tail = b""
        self.early: bytes | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a part of it has arrived."""
        return self._size > 0

    @property
    def is_too_long(self) -> bool:
        """Whether it is longer than allowed."""
        return self._size > MAX_BYTES

    def holds_back(self, data: bytes) -> bool:
        """Keep data while the decision is pending; return False if none is."""
        if self.early is None:
            return False
        self.early += data
        return True

    def part(self, data: bytes) -> tuple[bytes, bytes]:
        """Split data into what belongs to the handshake and what follows. Its end may arrive in pieces."""
        seen = self._tail + data
        end = seen.find(_END)
        if end < 0:
            self._tail = seen[1 - len(_END) :]
            self._size += len(data)
            return data, b""
        length = end + len(_END) - len(self._tail)
        self._size += length
        return data[:length], data[length:]


@dataclass(frozen=True, slots=True)
class Entrance:
    """Asks the gate, and answers refused clients.

    `new_keys` reads the gate's keys again, when a token is signed with an unknown one; None if there are no keys.
    """

    gate: Gate
    refusals: Refusals
    unread: Refusals
    new_keys: Callable[[], Awaitable[None]] | None = None

    def visitor(self, request: Request, peer: str) -> Visitor:
        """Describe the client of a request that came from the address `peer`."""
        headers = request.headers
        hosts = headers.get_all("Host")
        visitor = Visitor(
            peer=peer,
            target=request.path,
            authorization=headers.get_all("Authorization"),
            subprotocols=_listed(headers.get_all("Sec-WebSocket-Protocol")),
            origins=headers.get_all("Origin"),
            host=hosts[0] if len(hosts) == 1 else None,
            forwarded=headers.get_all("X-Forwarded-For"),
            forwarded_hosts=_listed(headers.get_all("X-Forwarded-Host")),
            standard=headers.get_all("Forwarded"),
        )
        source = self.gate.source(visitor)
        if source.fault:
            self.unread.add("a proxy's header cannot be read", peer, found=source.fault)
        return replace(visitor, address=source.address)

    def count(self, why: Refused, address: str) -> None:
        """Count a visitor that the gate refuses."""
        details = {"origin": why.origin} if isinstance(why, ForeignOrigin) else {}
        self.refusals.add(str(why), address, **details)

    def too_long(self, protocol: ServerProtocol, address: str) -> Response:
        """Answer a handshake that is too long."""
        self.refusals.add(TOO_LONG, address)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return protocol.reject(status, f"{status.phrase}\n")


def no_request(protocol: ServerProtocol) -> bytes:
    """Answer what the library could not read. It ended the stream without an answer."""
    return protocol.reject(HTTPStatus.BAD_REQUEST, NO_REQUEST).serialize()


def refusal(protocol: ServerProtocol, why: Refused) -> Response:
    """Answer a visitor that the gate refuses."""
    if isinstance(why, TooMany):
        response = protocol.reject(why.status, RAISE)
        response.headers["Retry-After"] = str(why.seconds)
    else:
        response = protocol.reject(why.status, f"{why.status.phrase}\n")
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def full(protocol: ServerProtocol) -> Response:
    """Answer a client for whom there is no place."""
    response = protocol.reject(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections: try again later.\n")
    response.headers["Retry-After"] = RETRY_SECONDS
    return response


def _listed(values: Iterable[str]) -> list[str]:
    """Split the values of a header that contains a list."""
    return [each.strip() for value in values for each in value.split(",")]
