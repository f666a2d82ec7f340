"""Server-sent events: a board over plain HTTP, where WebSocket does not get through. Pure.

`GET /boards/{id}/events` returns the messages of a resumable WebSocket client, each as an event whose id is the
cursor. A client that comes back with `Last-Event-ID` gets what it missed. The query selects a part of the board:
`?lane=todo&lane=done&column=title&task=7`.

Rules:
- The response ends with its connection: it has no length and no chunks, so the same bytes serve every client.
- Only the requesting page may read the response, and only if its origin may connect.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from relay.auth.gate import Visitor
from relay.model import messages
from relay.model.messages import BadMessage, Message
from relay.websocket.handshake import RETRY_SECONDS

RETRY_MILLISECONDS: Final = range(500, 3500)
"""Delay before a client reconnects, chosen at random, so that not all come at once when a relay stops."""

KEEP_ALIVE: Final = b":\n\n"
"""A comment, which clients ignore, and which keeps proxies from closing a silent connection."""

PREFLIGHT_SECONDS: Final = 7200
"""Time for which a browser may cache a preflight; Chromium's maximum."""

_PATH: Final = re.compile(r"/boards/([^/]+)/events")
"""The end of the path, perhaps below a proxy's prefix."""

_SELECTS: Final = {"lane": "lanes", "column": "columns", "task": "tasks"}
"""The key of `subscribe` that a parameter adds to. Other parameters, such as `token`, are ignored."""

_LINE_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


def event(message: Message) -> bytes:
    """Encode a message as an event; its id is the cursor, if it has one."""
    # JSON has raw line breaks only between tokens, where a space means the same.
    data = b"data: " + message.json.translate(_LINE_BREAKS) + b"\n\n"
    return data if message.cursor is None else b"id: " + message.cursor.encode() + b"\n" + data


def comment(text: str) -> bytes:
    """Encode a comment, for people who watch."""
    return f": {text}\n\n".encode()


def wants(request: Request) -> bool:
    """Return whether a request is for events. A WebSocket handshake may have the same path.

    Java's client, and curl with `--http2`, offer HTTP/2 by `Upgrade: h2c`, which may be ignored.
    """
    upgrades = request.headers.get_all("Upgrade")
    return not any("websocket" in each.lower() for each in upgrades) and _board(request) is not None


def is_preflight(request: Request) -> bool:
    """Return whether a request is a browser's CORS preflight for events."""
    return request.method == "OPTIONS" and wants(request)


def subscription(request: Request) -> messages.Subscribe:
    """Return the subscription that a request for events means. Raises BadMessage."""
    try:
        board = unquote(_board(request) or "", errors="strict")
    except UnicodeDecodeError:
        raise BadMessage("invalid_board_id", "the board in the address is not UTF-8") from None
    cursor = request.headers.get_all("Last-Event-ID")[-1:]
    wanted = messages.parse(
        json.dumps(
            {"type": "subscribe", "boardId": board, "cursor": cursor[0] if cursor else None, **_selection(request)}
        )
    )
    assert isinstance(wanted, messages.Subscribe)
    return wanted


def _selection(request: Request) -> dict[str, list[str]]:
    query = request.path.partition("?")[2]
    try:
        parameters = parse_qsl(query, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadMessage("invalid_selection", "a parameter in the address is not UTF-8") from None
    selected: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in parameters:
        if name in _SELECTS:
            selected[_SELECTS[name]].append(value)
    return selected


def _board(request: Request) -> str | None:
    found = _PATH.search(path := request.path.partition("?")[0])
    return found[1] if found and found.end() == len(path) else None


# Responses -------------------------------------------------------------------------------------------------

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",  # a proxy that compressed would hold events back
    "X-Accel-Buffering": "no",  # nginx's own switch
    "Connection": "close",
}


def beginning(visitor: Visitor) -> bytes:
    """Return the head of the response, and the first line of the stream."""
    headers = Headers(_HEADERS)
    allow(headers, visitor)
    retry = random.choice(RETRY_MILLISECONDS)  # noqa: S311  # no secret
    return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, b"retry: %d\n\n" % retry).serialize()


def refusal(visitor: Visitor, status: HTTPStatus, text: str) -> bytes:
    """Return a response without events that explains why."""
    body = f"{text}\n".encode()
    headers = Headers(
        {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    )
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = RETRY_SECONDS
    allow(headers, visitor)
    return Response(status, status.phrase, headers, body).serialize()


def preflight(visitor: Visitor) -> Response:
    """Return the response to a CORS preflight."""
    headers = Headers(
        {
            "Date": formatdate(usegmt=True),
            "Access-Control-Allow-Methods": "GET",
            "Access-Control-Allow-Headers": "Authorization, Last-Event-ID",
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
            "Connection": "close",
        }
    )
    allow(headers, visitor)
    return Response(HTTPStatus.NO_CONTENT, HTTPStatus.NO_CONTENT.phrase, headers)


def allow(headers: Headers, visitor: Visitor) -> None:
    """Let the requesting page read the response; the gate has admitted its origin."""
    if visitor.origins:
        headers["Access-Control-Allow-Origin"] = visitor.origins[0]
        headers["Vary"] = "Origin"
