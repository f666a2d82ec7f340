"""The relay inside the test's own loop: its feed, hub and endpoint on a real database and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from relay.auth.gate import Gate
from relay.hub.hub import Hub
from relay.hub.ports import Authorizer, Resuming
from relay.nats.source import NatsSource
from relay.postgres.embedded import EmbeddedPostgres
from relay.postgres.feed import Feed
from relay.postgres.install import text
from relay.websocket.limits import Limits
from relay.websocket.server import Endpoint
from relay.websocket.sockets import bind
from tests.integration.client import Client
from tests.servers import Database, install, sole_use


class Relay:
    """A running relay, as far as tests inspect it: on a database, or on what takes its place."""

    def __init__(  # the endpoint's options
        self,
        source: str | NatsSource,
        *,
        heartbeat: float = 30.0,
        max_connections: int = 1000,
        compression: bool = False,
        gate: Gate | None = None,
        limits: Limits | None = None,
        judged: bool = False,
        authorizer: Authorizer | None = None,
        new_keys: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.feed = Feed(source) if isinstance(source, str) else source
        self.hub = Hub(self.feed)
        self.endpoint = Endpoint(
            self.hub,
            heartbeat=heartbeat,
            max_connections=max_connections,
            compression=compression,
            gate=gate,
            limits=limits,
            authorizer=authorizer or (self.feed if judged else None),
            new_keys=new_keys,
        )

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.endpoint.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Run until the context ends."""
        await self.endpoint.open("127.0.0.1", 0)
        task = asyncio.create_task(self.feed.run(self.hub))
        try:
            yield self
        finally:
            await self.endpoint.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Idle:
    """A source that reads nothing, and remembers which boards it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, board: str, by: object = None) -> None:  # noqa: ARG002  # the protocol's
        self.asked.append(board)

    def ask_changes(self, resuming: Resuming) -> None:
        """Do nothing."""


@contextlib.asynccontextmanager
async def listening(
    sockets: list[socket.socket] | None = None, *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Endpoint]:
    """Run an endpoint on a hub with an idle source."""
    endpoint = Endpoint(Hub(Idle()), **{"heartbeat": 30.0, "max_connections": 256} | options)
    endpoint.open_on(sockets or await bind("127.0.0.1", 0), tls=tls)
    try:
        yield endpoint
    finally:
        await endpoint.close()


@pytest.fixture
async def relay(database: Database) -> AsyncIterator[Relay]:
    """Yield a relay on the test's database."""
    async with Relay(database.dsn).running() as relay:
        yield relay


@pytest.fixture
async def client(relay: Relay) -> AsyncIterator[Client]:
    """Yield a client subscribed to board "default"."""
    async with Client.to(relay.url) as client:
        await client.subscribe("default")
        yield client


@pytest.fixture
def daemon_dsn(database: Database) -> Iterator[str]:
    """Yield how to connect as the role of sql/roles.sql, with password "hush"."""
    with sole_use("role-relay_daemon"):
        database.execute(text("roles"))
        database.execute("alter role relay_daemon password 'hush'")
        try:
            yield make_conninfo(database.dsn, user="relay_daemon", password="hush")
        finally:
            database.execute("drop owned by relay_daemon cascade; drop role relay_daemon")


@pytest.fixture
async def on_own_server(own_server: EmbeddedPostgres) -> AsyncIterator[Relay]:
    """Yield a relay on a server that can be stopped."""
    await asyncio.to_thread(install, own_server.dsn)
    async with Relay(own_server.dsn).running() as relay:
        yield relay
