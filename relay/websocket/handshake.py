"""Why a handshake is not one, in words for metrics and the log. Pure.

What the WebSocket protocol itself refuses is known by the exception that its library keeps; what is another protocol
altogether, by its first bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.auth.proxies import V1, V2
from relay.websocket.listening import FOREIGN_PROXY_HEADER, TLS_ON_PLAIN

MOST_BYTES: Final = 32 * 1024
"""So long a handshake may be in all. A cookie or a token may have 8 KB, as one line of it."""

TOO_LONG: Final = "handshake too long"

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
    """Say in a few words why the protocol refused a handshake."""
    return _REASONS.get(type(exception).__name__, "bad handshake")


def foreign(first: bytes) -> str | None:
    """Say which other protocol a connection begins with, as far as that is known."""
    if first.startswith(_TLS_HANDSHAKE):
        return TLS_ON_PLAIN
    if first.startswith((V1, V2)):
        return FOREIGN_PROXY_HEADER
    return None
