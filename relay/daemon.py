"""The daemon: puts the parts together, starts them, and stops them when told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator, Iterator

import structlog

from relay.config import Settings
from relay.feed import Feed
from relay.hub import Hub
from relay.monitor import Monitor
from relay.server import Endpoint, deflated_frame, frame

log = structlog.get_logger()


class StartError(Exception):
    """Why the daemon cannot start, in one line."""


async def serve(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    async with running(settings) as feed_task:
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({feed_task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        log.info("relay.stopping")
    log.info("relay.stopped")


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    """Run feed, endpoint and monitor; yields the feed's task, which ends only by a fault of ours."""
    feed = Feed(settings.DATABASE_URL)
    hub = Hub(feed, frame, deflated_frame)
    endpoint = None
    if settings.WS_ENABLED:
        endpoint = Endpoint(
            hub,
            heartbeat=settings.WS_HEARTBEAT / 1000,
            max_connections=settings.WS_MAX_CONNECTIONS,
            send_buffer=settings.WS_SEND_BUFFER,
            compression=settings.WS_COMPRESSION,
        )
    monitor = Monitor(endpoint, feed, settings.WS_PORT)
    async with contextlib.AsyncExitStack() as stack:
        if endpoint:
            with _named("WS_PORT", settings.WS_HOST, settings.WS_PORT):
                await endpoint.open(settings.WS_HOST, settings.WS_PORT)
            stack.push_async_callback(endpoint.close)
        with _named("HEALTH_PORT", settings.WS_HOST, settings.HEALTH_PORT):
            stack.push_async_callback(monitor.close)
            health_port = await monitor.open(settings.WS_HOST, settings.HEALTH_PORT)
        log.info(
            "websocket.listening" if endpoint else "websocket.disabled",
            host=settings.WS_HOST,
            port=endpoint.port if endpoint else settings.WS_PORT,
            health=health_port,
        )
        feed_task = asyncio.create_task(feed.run(hub) if endpoint else _nothing(), name="feed")
        try:
            yield feed_task
        finally:
            feed_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feed_task


async def _nothing() -> None:
    await asyncio.Event().wait()


@contextlib.contextmanager
def _named(setting: str, host: str, port: int) -> Iterator[None]:
    """Say in one line which address could not be had, and how to choose another."""
    try:
        yield
    except OSError as ex:
        # asyncio wraps the system's words in its own, address and all; resolving a name has codes of its own.
        reason = os.strerror(ex.errno) if ex.errno and ex.errno > 0 else ex.strerror
        blamed = setting if ex.errno in {errno.EADDRINUSE, errno.EACCES} else "WS_HOST"
        raise StartError(f"cannot listen on {host}:{port}: {reason}: choose another with {blamed}") from ex
