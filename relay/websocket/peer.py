"""Peers: what the connections of WebSocket clients and of event streams have in common.

Rules:
- A connection is open while its outbox is. Nothing is sent on one that is not.
- A connection that does not end in time is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from websockets.extensions.base import ServerExtensionFactory

from relay.hub.ports import Subscriber
from relay.model.messages import CloseCode
from relay.websocket.clients import Clients
from relay.websocket.commands import Client, Services
from relay.websocket.ending import Ending
from relay.websocket.handshake import Entrance
from relay.websocket.limits import Limits, Memory
from relay.websocket.outbox import Outbox

log = structlog.get_logger()

BROKEN: Final = 1006
"""The code that WebSocket has for a connection that ended without a close frame."""


@dataclass(slots=True)
class Shared:
    """What the connections of an endpoint share. `spend` runs a coroutine in the background."""

    clients: Clients[Peer]
    entrance: Entrance
    services: Services
    caught_up: Callable[[Subscriber], None]
    spend: Callable[[Coroutine[Any, Any, None]], None]
    unfinished: Memory
    backlogs: Memory
    heartbeat: float
    limits: Limits = field(default_factory=Limits)
    extensions: Sequence[ServerExtensionFactory] = ()


class Peer:
    """One client's connection. `client` is set once it is admitted."""

    __slots__ = ("_ending", "_shared", "_transport", "address", "client", "closed", "outbox")

    def __init__(self, shared: Shared, address: str, outbox: Outbox) -> None:
        self.address = address
        self.client: Client | None = None
        self.closed = False
        self.outbox = outbox
        self._shared = shared
        self._transport: asyncio.Transport
        self._ending: Ending | None = None

    # Called by the endpoint

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin to close the connection, with a reason; abort it if the client does not answer in time."""
        raise NotImplementedError

    def abort(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    def beat(self) -> None:
        """Give the client up if it follows no board or did not read; otherwise keep the connection alive."""
        if not self.outbox.is_open or self.client is None:
            return
        if self.client.is_idle(asyncio.get_running_loop().time()):
            self._drop("follows no board")
            self.close(CloseCode.IDLE, "no board was followed for long")
        elif self.outbox.is_stuck():
            self._drop("reads nothing", waiting=self.outbox.waiting)
            self.outbox.abandon()
            # With a code that explains it, in case it does read.
            self.close(CloseCode.TRY_AGAIN_LATER, "the client did not read what it was sent")
        else:
            self._keep_alive()

    def _keep_alive(self) -> None:
        raise NotImplementedError

    def _drop(self, reason: str, **details: object) -> None:
        log.info("websocket.dropped", clientId=self.client and self.client.name, reason=reason, **details)

    # Called by asyncio

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        if self._ending:
            self._ending.moved()
        self.outbox.resume()

    def _lost(self, code: int | None) -> None:
        """Forget a connection that has ended."""
        self.closed = True
        self.outbox.discard()
        if self._ending:
            self._ending.cancel()
        self._shared.clients.leave(self, code)
        if self.client:
            self.client.end()
            log.info("websocket.close", clientId=self.client.name, code=code, connections=len(self._shared.clients))

    def _end_soon(self) -> None:
        """Abort the connection if it does not end in time, whatever the client keeps sending."""
        if not self._ending:
            self._ending = Ending(self._transport.abort)
