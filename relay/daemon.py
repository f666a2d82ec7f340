"""The daemon: puts the parts together, starts them, and stops them when told to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import structlog

from relay.config import Settings
from relay.monitor import Monitor
from relay.worker import Worker, named
from relay.workers import Workers

log = structlog.get_logger()


async def serve(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Raises StartError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    async with running(settings) as serving:
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        log.info("relay.stopping")
    log.info("relay.stopped")


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    """Serve clients from this process or from several, with a monitor; the task ends only by a fault of ours."""
    several = settings.WS_ENABLED and settings.WS_WORKERS > 1
    relay: Worker | Workers = Workers(settings) if several else Worker(settings)
    monitor = Monitor(relay.status)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(relay.close)
        await relay.open()
        with named("HEALTH_PORT", settings.WS_HOST, settings.HEALTH_PORT):
            stack.push_async_callback(monitor.close)
            health_port = await monitor.open(settings.WS_HOST, settings.HEALTH_PORT)
        serving = await relay.start()
        log.info(
            "websocket.listening" if settings.WS_ENABLED else "websocket.disabled",
            host=settings.WS_HOST,
            port=relay.port,
            health=health_port,
        )
        try:
            yield serving
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
