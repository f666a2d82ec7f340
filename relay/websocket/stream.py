"""A stream of events: the connection of a client that reads one board over plain HTTP; see events.py.

It replaces the `Connection` that received the request, and keeps its transport, outbox and limits.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from relay.auth.gate import Visitor
from relay.auth.tokens import Grant
from relay.model import messages
from relay.model.messages import BadMessage, CloseCode, ErrorCode
from relay.websocket import events
from relay.websocket.commands import NOT_ALLOWED, Client
from relay.websocket.outbox import Outbox
from relay.websocket.peer import BROKEN, Peer, Shared

SILENT_BEATS: Final = 3
"""Number of heartbeats after which the kernel ends a connection whose client acknowledges nothing. A client that is
there but does not read is given up earlier."""

_MILLISECONDS: Final = 1000

_STATUS: Final[Mapping[ErrorCode, HTTPStatus]] = {
    "not_allowed": HTTPStatus.FORBIDDEN,
    "too_many_selections": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of errors other than 400."""


class EventStream(Peer, asyncio.Protocol):
    """One client that reads the events of a board."""

    __slots__ = ("_begun", "_code", "_visitor")

    def __init__(self, shared: Shared, transport: asyncio.Transport, outbox: Outbox, visitor: Visitor) -> None:
        super().__init__(shared, visitor.address, outbox)
        self._transport = transport
        self._visitor = visitor
        self._begun = False
        self._code: int | None = None

    def serve(self, name: str, grant: Grant, wanted: messages.Subscribe) -> None:
        """Take over the transport, and send the requested board or an error."""
        self._transport.set_protocol(self)
        self._limit_silence(SILENT_BEATS * self._shared.heartbeat)
        self.outbox.open(events.event, self.address)
        reader = Reader(self._shared.services, name, self.outbox, self.close, self._visitor, grant)
        reader.begin, reader.refuse = self._begin, self._refuse
        self.client = reader
        reader.read(wanted)

    def close(self, code: CloseCode, reason: str) -> None:
        """End the stream, with the reason in a comment if the response has begun."""
        if not self._begun or not self.outbox.is_open:
            self._transport.abort()
            return
        self._code = int(code)
        self._end(events.comment(f"{code:d} {reason}"))

    def _begin(self) -> None:
        """Begin the response."""
        if not self._begun:
            self._begun = True
            self.outbox.write(events.beginning(self._visitor))

    def _refuse(self, bad: BadMessage) -> None:
        """Respond that the board cannot be followed."""
        self._end(events.refusal(self._visitor, _STATUS.get(bad.code, HTTPStatus.BAD_REQUEST), str(bad)))

    def _end(self, last: bytes) -> None:
        self.outbox.shut()
        self.outbox.write(last)
        self.outbox.end()
        self._end_soon()

    def _keep_alive(self) -> None:
        if self._begun:
            self.outbox.write(events.KEEP_ALIVE)

    # Called by asyncio

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  # asyncio's signature
        """Drop the client: nothing may follow its request."""
        self._drop("sent something after its request")
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self._code or (BROKEN if exc else _CLOSED))

    def _limit_silence(self, seconds: float) -> None:
        """Make the kernel end the connection if nothing is acknowledged for so long: there are no pings to answer."""
        sock = self._transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * _MILLISECONDS))


_CLOSED: Final = 1000
"""The code that WebSocket has for a client that ends the connection."""


class Reader(Client):
    """A client that follows one board, and sends nothing."""

    __slots__ = ("begin", "refuse")

    begin: Callable[[], None]
    refuse: Callable[[BadMessage], None]

    def read(self, wanted: messages.Subscribe) -> None:
        """Follow a board, if its credential allows that."""
        try:
            self._subscribe(wanted)
        except BadMessage as bad:
            self._reject(bad)

    def is_idle(self, now: float) -> bool:  # noqa: ARG002  # whatever the time
        """Return whether it no longer follows its board, so that nothing more can come."""
        return not self._boards()

    def _join(self, message: messages.Subscribe, name: str) -> None:
        self.begin()
        super()._join(message, name)

    def _send_error(self, bad: BadMessage) -> None:
        self.refuse(bad)

    def _revoke(self, board: str) -> None:
        super()._revoke(board)
        self._close(CloseCode.REFUSED, NOT_ALLOWED)
