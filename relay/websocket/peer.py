"""Peers: the connections that clients have, whatever is spoken on them, as the endpoint sees them.

Rules:
- A connection is open while its outbox is. Nothing is sent to one that is not.
- A connection that is to end and does not is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(slots=True)
class Shared:
    """What the connections of an endpoint have in common. `spend` runs something beside."""

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
    """One client's connection. `client` is what stands behind it, once it is let in."""

    __slots__ = ("_ending", "_shared", "_transport", "address", "client", "closed", "outbox")

    def __init__(self, shared: Shared, address: str, outbox: Outbox) -> None:
        self.address = address
        self.client: Client | None = None
        self.closed = False
        self.outbox = outbox
        self._shared = shared
        self._transport: asyncio.Transport
        self._ending: Ending | None = None

    # What the endpoint says

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin to end the connection, and say why; a client that does not follow is cut off."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut the client off."""
        self._transport.abort()

    def beat(self) -> None:
        """Give the client up if it follows no board or did not read; else keep the connection alive."""
        if not self.outbox.is_open or self.client is None:
            return
        if self.client.is_idle(asyncio.get_running_loop().time()):
            self._drop("follows no board")
            self.close(CloseCode.IDLE, "no board was followed for long")
        elif self.outbox.is_stuck():
            self._drop("reads nothing", waiting=self.outbox.waiting)
            self.outbox.abandon()
            # With a code that says why, should it read after all.
            self.close(CloseCode.TRY_AGAIN_LATER, "the client did not read what it was sent")
        else:
            self._keep_alive()

    def _keep_alive(self) -> None:
        raise NotImplementedError

    def _drop(self, reason: str, **details: object) -> None:
        log.info("websocket.dropped", clientId=self.client and self.client.name, reason=reason, **details)

    # What asyncio says

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
        """Cut off a connection that is to end and does not, whatever the client goes on sending."""
        if not self._ending:
            self._ending = Ending(self._transport.abort)
