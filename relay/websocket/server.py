"""The WebSocket endpoint: sockets on one side, the hub on the other.

It assembles the parts that serve clients, listens, runs the heartbeat, and disconnects clients in order when the
relay stops. A single connection is in connection.py.

Rules:
- One timer serves all connections. At each heartbeat, a client is dropped if it has been silent since the last one,
  or has read nothing while data waited for it; all others are pinged.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import structlog

from relay.auth.gate import FLOOD, Gate
from relay.hub.hub import Hub
from relay.hub.ports import Authorizer
from relay.model.messages import CloseCode
from relay.websocket.clients import STOPPING, TURNS, Clients
from relay.websocket.commands import Services
from relay.websocket.connection import Connection
from relay.websocket.decisions import Decisions
from relay.websocket.frames import COMPRESSION
from relay.websocket.handshake import TOO_MANY, Entrance
from relay.websocket.limits import Addresses, Limits, Memory, Places
from relay.websocket.listener import ARRIVALS, Listener
from relay.websocket.outbox import PIECE_BYTES
from relay.websocket.peer import Peer, Shared
from relay.websocket.refusals import Refusals
from relay.websocket.sockets import bind

log = structlog.get_logger()

APART_SECONDS: Final = 0.05
"""Maximum interval between clients that are closed during a drain, so that a few do not take the whole time."""

ASK_AGAIN_SECONDS: Final = 30.0
"""Interval at which the database is asked again about every board that is followed."""

WAIT_SECONDS: Final = 15.0
"""Minimum time for which a client waits for a transaction; the maximum is twice as long."""

UNFINISHED_BYTES: Final = 32 * 1024 * 1024
"""Maximum size of unfinished messages, over all clients."""


class Endpoint:
    """Listens, and keeps the connections.

    `places` may be shared with the endpoints of other processes. `new_keys` reads the gate's keys again, when a token
    is signed with an unknown one. `authorizer` decides about boards in addition to the token.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        heartbeat: float,
        max_connections: int,
        places: Places | None = None,
        limits: Limits | None = None,
        compression: bool = False,
        gate: Gate | None = None,
        new_keys: Callable[[], Awaitable[None]] | None = None,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.hub = hub
        self.limits = limits or Limits()
        self.gate = gate or Gate()
        self.refusals = Refusals("websocket.refused")
        self.decisions = Decisions(authorizer) if authorizer else None
        self.clients: Clients[Peer] = Clients(
            places or Places(max_connections), Addresses(self.limits.connections_of_address), self.refusals
        )
        entrance = Entrance(self.gate, self.refusals, Refusals("websocket.unread_header"), new_keys)
        self.shared = self._shared(entrance, heartbeat, compression=compression)
        self.listener = self._listener(min(max(max_connections, ARRIVALS.start), ARRIVALS.stop))
        self._heartbeat = heartbeat
        self._tasks: set[asyncio.Task[None]] = set()
        self._plain = True

    def _shared(self, entrance: Entrance, heartbeat: float, *, compression: bool) -> Shared:
        return Shared(
            clients=self.clients,
            entrance=entrance,
            services=Services(self.hub, self.gate, self.limits, self.refusals, self.decisions),
            caught_up=self.hub.caught_up,
            spend=self._spend,
            unfinished=Memory(UNFINISHED_BYTES),
            backlogs=Memory(self.limits.all_buffers),
            heartbeat=heartbeat,
            limits=self.limits,
            extensions=COMPRESSION if compression else (),
        )

    def _listener(self, most_arrivals: int) -> Listener:
        return Listener(
            self.refusals,
            self.limits.handshake_seconds,
            most=most_arrivals,
            proxies=lambda: self.gate.proxies,
            flooded=lambda address: self.gate.flooded(address, time.monotonic()),
            turn_back=self._turn_back,
        )

    async def open(
        self, host: str, port: int, *, reuse_port: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """Bind and listen; with `reuse_port`, other processes can listen on the same port. Raises OSError."""
        self.open_on(await bind(host, port, reuse_port=reuse_port), tls=tls)

    def open_on(self, sockets: Sequence[socket.socket], *, tls: ssl.SSLContext | None = None) -> None:
        """Listen on bound sockets."""
        self._plain = tls is None
        self.listener.open(sockets, partial(Connection, self.shared), tls)
        self._spend(self._beat())
        self._spend(self._expire_waits())
        if self.decisions:
            self._spend(self.decisions.run())
            self._spend(self._ask_again())

    # State

    @property
    def port(self) -> int | None:
        """The port it listens on; None if it listens on none."""
        return self.listener.port

    @property
    def arrivals(self) -> int:
        """Number of connections that are not admitted yet."""
        return sum(not arrival.over for arrival in self.listener.arrivals)

    @property
    def behind(self) -> int:
        """Number of clients whose backlog is over the limit."""
        return sum(not connection.outbox.ready for connection in self.clients)

    @property
    def connections(self) -> int:
        """Number of connected clients."""
        return len(self.clients)

    @property
    def opened(self) -> int:
        """Number of clients that were admitted since the start."""
        return self.clients.opened

    @property
    def closed(self) -> Counter[str]:
        """Number of clients' connections that have ended since the start, by close code."""
        return self.clients.closed

    @property
    def buffered(self) -> int:
        """Number of bytes that wait for clients."""
        return self.shared.backlogs.used

    # Stopping

    def stop_listening(self) -> None:
        """Admit no more clients."""
        self.clients.admits = False
        self.listener.stop()

    async def drain(self, seconds: float) -> None:
        """Close every client's connection, spread over `seconds`, so that they do not all come back at once."""
        loop = asyncio.get_running_loop()
        leaving, began = tuple(self.clients), loop.time()
        apart = min(seconds / max(1, len(leaving)), APART_SECONDS)
        for number, connection in enumerate(leaving):
            await asyncio.sleep(began + number * apart - loop.time())
            if connection in self.clients:
                connection.close(CloseCode.SERVICE_RESTART, STOPPING)

    def abort(self) -> None:
        """Abort every client's connection."""
        for connection in self.clients.all:
            connection.abort()

    async def close(self) -> None:
        """Stop listening, close the remaining connections, and wait until they have ended."""
        self.stop_listening()
        await self.listener.close()
        background = tuple(self._tasks)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for connection in self.clients.all:
            connection.close(CloseCode.SERVICE_RESTART, STOPPING)
        await self.clients.gone()

    # Credentials

    def check_grants(self) -> None:
        """Check every client's credential again, after the valid ones have changed."""
        for connection in self.clients:
            if connection.client:
                connection.client.check_grant()

    async def _ask_again(self) -> None:
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            for connection in self.clients:
                if connection.client:
                    connection.client.ask_again()

    # Internals

    def _spend(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background, until it is done or the endpoint is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _turn_back(self, sock: socket.socket, address: str, wait: float) -> None:
        """Refuse one connection of a flood.

        Its request is read first, if it has arrived: otherwise closing would reset the connection, and the answer
        would be lost.
        """
        self.refusals.add(FLOOD, address)
        with contextlib.suppress(OSError), sock:
            if self._plain:
                with contextlib.suppress(BlockingIOError):
                    sock.recv(PIECE_BYTES)
                sock.send(TOO_MANY % math.ceil(wait))

    async def _expire_waits(self) -> None:
        while True:
            await asyncio.sleep(WAIT_SECONDS)
            self.hub.expire_waits()

    async def _beat(self) -> None:
        for turn in self.clients.turns():
            await asyncio.sleep(self._heartbeat / TURNS)
            for connection in tuple(turn):
                connection.beat()
