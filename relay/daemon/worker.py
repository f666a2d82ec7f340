"""A worker: source, hub and endpoint of one process. The daemon is one worker, or starts several (pool.py)."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from relay import logs
from relay.auth.keys import AccessError
from relay.auth.rates import Rates
from relay.auth.reload import Reloader
from relay.config.settings import Settings
from relay.daemon.errors import StartError, listening_on, nats_installed
from relay.hub.hub import Hub
from relay.hub.ports import Authorizer, Source
from relay.model.status import Counts, Status
from relay.postgres.feed import Feed
from relay.websocket.limits import Limits, Places
from relay.websocket.server import Endpoint
from relay.websocket.sockets import bind, bind_path

log = structlog.get_logger()

REFRESH_SECONDS: Final = 60.0
"""Interval at which the cursors of quiet boards are renewed, before the journal no longer holds what follows them."""

STOPPING: Final = "the relay is stopping"


class Worker:
    """Serves subscribers from this process, on the given sockets or on those that it binds."""

    def __init__(
        self,
        settings: Settings,
        places: Places | None = None,
        rates: Rates | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._shares_port = places is not None
        self._stopping = False
        self._source = _source(settings)
        self._credentials = Reloader(
            settings, rates or Rates(settings.WS_RATE_LIMIT_PER_CLIENT, settings.WS_RATE_LIMIT_TOTAL)
        )
        self._hub = Hub(self._source)
        self._endpoint: Endpoint | None = None
        if settings.WS_ENABLED:
            self._endpoint = Endpoint(
                self._hub,
                heartbeat=settings.WS_HEARTBEAT / 1000,
                max_connections=settings.WS_MAX_CONNECTIONS,
                places=places,
                limits=_limits(settings),
                compression=settings.WS_COMPRESSION,
                gate=self._credentials.gate,
                new_keys=self._credentials.new_keys if settings.jwt_keys else None,
                authorizer=self._source if settings.WS_MAY_READ else None,
            )

    @property
    def port(self) -> int:
        """The port for clients."""
        return (self._endpoint and self._endpoint.port) or self._settings.WS_PORT

    async def open(self) -> None:
        """Bind the port. Raises StartError."""
        if self._endpoint:
            try:
                await self._credentials.open()
            except AccessError as ex:
                raise StartError(str(ex)) from ex
            sockets = self._sockets or await client_sockets(self._settings, reuse_port=self._shares_port)
            with listening_on("WS_PORT", self._settings.WS_HOST, self._settings.WS_PORT):
                self._endpoint.open_on(sockets, tls=self._credentials.tls)

    async def start(self) -> asyncio.Task[None]:
        """Serve. The task ends only if the relay itself fails."""
        # What exists now stays. Exempted from garbage collection, it causes no pauses of 50 ms under load.
        gc.collect()
        gc.freeze()
        return asyncio.create_task(self._serve() if self._endpoint else _nothing(), name="feed")

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._source.run(self._hub))
            tasks.create_task(self._credentials.run())
            tasks.create_task(self._refresh())

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            self._hub.refresh()

    async def reload(self) -> None:
        """Read credentials and certificates again; close connections whose credential is no longer valid."""
        if self._endpoint:
            await self._credentials.reload()
            self._endpoint.check_grants()

    async def drain(self) -> None:
        """Admit no more clients, pass on what was committed until now, and disconnect the clients over WS_DRAIN."""
        self._stopping = True
        if self._endpoint is None:
            return
        self._endpoint.stop_listening()
        if self._endpoint.connections and not await self._source.catch_up():
            log.warning("relay.not_caught_up", problem=self._source.problem or "the feed took too long")
        await self._endpoint.drain(self._settings.WS_DRAIN / 1000)

    def abort(self) -> None:
        """Abort the clients' connections."""
        if self._endpoint:
            self._endpoint.abort()

    async def status(self) -> Status:
        """Return its status."""
        if self._endpoint is None:
            return Status(running=False, port=self.port, problem=self._stops, unready=self._stops)
        endpoint, source = self._endpoint, self._source.status(self._settings.HEALTH_BUDGET / 1000)
        stops = self._stops or endpoint.listener.problem
        return Status(
            running=endpoint.listener.listens,
            port=self.port,
            connections=endpoint.connections,
            max_connections=self._settings.WS_MAX_CONNECTIONS,
            arrivals=endpoint.arrivals,
            crowded=endpoint.listener.crowded,
            subscriptions=self._hub.subscriptions,
            behind=endpoint.behind,
            backlog=endpoint.buffered,
            feed_up=source.up,
            problem=stops or source.problem,
            unready=stops or source.unready,
            lag_seconds=source.lag_seconds,
            database=source.database,
            stream=source.stream,
            failing=source.failing,
            incomplete=source.incomplete,
            counts=source.counts + _counts(self._hub, endpoint),
        )

    @property
    def _stops(self) -> str | None:
        return STOPPING if self._stopping else None

    async def close(self) -> None:
        """Stop listening, and disconnect the remaining clients at once."""
        self._stopping = True
        if self._endpoint:
            await self._endpoint.close()


class DecidingSource(Source, Authorizer, Protocol):
    """A source that also decides who may read its boards."""


def _source(settings: Settings) -> DecidingSource:
    """Choose the source of changes. Raises StartError if a package that it needs is not installed."""
    if not settings.SERVE_FROM:
        return Feed(settings.DATABASE_URL)
    with nats_installed("SERVE_FROM"):
        from relay.nats.source import NatsSource  # noqa: PLC0415  # an optional dependency
    return NatsSource(settings)


def _counts(hub: Hub, endpoint: Endpoint) -> Counts:
    return Counts(
        messages=hub.sent,
        bytes=hub.sent_bytes,
        fell_behind=hub.fell_behind,
        refused=endpoint.refusals.counts,
        opened=endpoint.opened,
        closed=endpoint.closed,
        suppressed=logs.suppressed(),
        dropped=logs.dropped(),
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        send_buffer=settings.WS_SEND_BUFFER,
        all_buffers=settings.WS_BACKLOG_TOTAL,
        messages_a_second=settings.WS_MESSAGE_RATE,
        boards=settings.WS_MAX_BOARDS,
        connections_of_address=settings.WS_MAX_CONNECTIONS_PER_ADDRESS,
        handshake_seconds=settings.WS_HANDSHAKE_TIMEOUT / 1000,
        idle_seconds=settings.WS_IDLE_TIMEOUT / 1000,
    )


async def _nothing() -> None:
    await asyncio.Event().wait()


async def client_sockets(settings: Settings, *, reuse_port: bool = False) -> list[socket.socket]:
    """Bind the sockets that clients connect to. Raises StartError."""
    if not settings.WS_SOCKET:
        with listening_on("WS_PORT", settings.WS_HOST, settings.WS_PORT):
            return await bind(settings.WS_HOST, settings.WS_PORT, reuse_port=reuse_port)
    try:
        return [bind_path(settings.WS_SOCKET)]
    except OSError as ex:
        raise StartError(
            f"cannot listen on {settings.WS_SOCKET}: {ex.strerror or ex}: choose another path with WS_SOCKET"
        ) from ex
