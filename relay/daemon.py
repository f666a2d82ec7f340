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
    """Run until SIGINT or SIGTERM; read credentials again at SIGHUP. Raises StartError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, told.set)
    async with running(settings) as (serving, relay):
        if settings.WS_ENABLED and settings.is_open:
            log.warning("access.open", problem=_open_to_all(settings.WS_HOST))
        reloading = asyncio.create_task(_reload(relay, told))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        reloading.cancel()
        log.info("relay.stopping")
    log.info("relay.stopped")


async def _reload(relay: Worker | Workers, told: asyncio.Event) -> None:
    """Read credentials and certificates again, each time that it is told."""
    while True:
        await told.wait()
        told.clear()
        await relay.reload()


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[asyncio.Task[None], Worker | Workers]]:
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
            yield serving, relay
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def _open_to_all(host: str) -> str:
    """Say loudly that no credential is asked for, and how to change that."""
    if host in {"127.0.0.1", "::1", "localhost"}:
        return "no credential is configured: every program on this machine may follow every board"
    return (
        f"no credential is configured: whoever reaches {host} may follow every board: "
        "set WS_TOKENS, WS_TOKENS_FILE, WS_JWT_SECRET or WS_JWT_KEYS, or WS_HOST=127.0.0.1"
    )
