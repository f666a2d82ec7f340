"""The two daemons, `relay serve` and `relay publish`: they assemble, start and stop the parts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Final

import structlog
from aiohttp import web

from relay.config.settings import Settings
from relay.daemon.errors import listening_on, nats_installed
from relay.daemon.pool import Pool
from relay.daemon.systemd import Systemd
from relay.daemon.worker import Worker
from relay.http.app import Monitor
from relay.http.page import Page
from relay.websocket.sockets import from_systemd

log = structlog.get_logger()


HEALTH_SOCKET: Final = "health"
"""Name of systemd's sockets for health; all others are for clients."""


class Signals:
    """The signals that the daemon receives."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stop_at_once = asyncio.Event()
        self.reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Not by the loop: at its end, there is a moment at which a signal would end the process by itself.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: loop.call_soon_threadsafe(self._ask_to_stop))
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self.reload.set))

    def close(self) -> None:
        """Ignore signals from now on: the process is about to end, and its exit code says how."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    def _ask_to_stop(self) -> None:
        (self.stop_at_once if self.stop.is_set() else self.stop).set()


async def serve(settings: Settings) -> bool:
    """Run until SIGINT or SIGTERM; read credentials again on SIGHUP. Raises StartError.

    Returns False if a second such signal came before all clients were disconnected.
    """
    signals, systemd = Signals(), Systemd()
    with contextlib.closing(signals):
        async with running(settings) as (serving, relay):
            if settings.WS_ENABLED and settings.is_open:
                log.warning("access.open", problem=": ".join(filter(None, open_to_all(settings.WS_HOST))))
            background = [
                asyncio.create_task(each) for each in (_reload(relay, signals.reload, systemd), systemd.keep())
            ]
            systemd.notify("READY=1")
            await _either(serving, signals.stop.wait())
            log.info("relay.stopping")
            systemd.notify("STOPPING=1")
            if not serving.done():
                await _either(relay.drain(), signals.stop_at_once.wait())
            if signals.stop_at_once.is_set():
                log.warning("relay.cut_short", problem="a second signal came before all clients were disconnected")
                relay.abort()
            for task in background:
                task.cancel()
        log.info("relay.stopped")
    return not signals.stop_at_once.is_set()


async def publish(settings: Settings) -> None:
    """Publish the feed until SIGINT or SIGTERM. Raises StartError."""
    with nats_installed("PUBLISH_TO"):
        from relay.nats.publisher import Publisher  # noqa: PLC0415  # an optional dependency
    signals, systemd = Signals(), Systemd()
    publisher = Publisher(settings)
    monitor = Monitor(publisher.status)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(signals.close)
        with listening_on("HEALTH_PORT", settings.WS_HOST, settings.HEALTH_PORT):
            stack.push_async_callback(monitor.close)
            health_port = await monitor.open(settings.WS_HOST, settings.HEALTH_PORT)
        log.info("publisher.running", health=health_port)
        publishing = asyncio.create_task(publisher.run(), name="publisher")
        keeping = asyncio.create_task(systemd.keep())
        systemd.notify("READY=1")
        await _either(publishing, signals.stop.wait())
        systemd.notify("STOPPING=1")
        if not publishing.done():
            await _either(publisher.leave(), signals.stop_at_once.wait())
        for task in (publishing, keeping):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    log.info("relay.stopped")


async def _either(*awaited: Awaitable[object]) -> None:
    """Wait for the first of several awaitables; cancel the tasks that were created for others."""
    tasks = {asyncio.ensure_future(each) for each in awaited}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks - set(awaited):
        task.cancel()


async def _reload(relay: Worker | Pool, asked: asyncio.Event, systemd: Systemd) -> None:
    """Read credentials and certificates again whenever `asked` is set."""
    while True:
        await asked.wait()
        asked.clear()
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        await relay.reload()
        systemd.notify("READY=1")


@contextlib.asynccontextmanager
async def running(
    settings: Settings, writer: str | None = None, routes: Iterable[web.RouteDef] = ()
) -> AsyncIterator[tuple[asyncio.Task[None], Worker | Pool]]:
    """Serve clients from this process or several, with a monitor. The task ends only if the relay itself fails.

    `routes` are served in addition to the monitor's; with that at `writer`, if any, the board page writes tasks.
    """
    several = settings.WS_ENABLED and settings.WS_WORKERS > 1
    passed = from_systemd()
    for_health = passed.pop(HEALTH_SOCKET, [])
    for_clients = [sock for sockets in passed.values() for sock in sockets]
    relay: Worker | Pool = Pool(settings, for_clients) if several else Worker(settings, sockets=for_clients)
    page = Page(settings, relay.status, writer).routes() if settings.BOARD_PAGE else []
    monitor = Monitor(relay.status, [*page, *routes])
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(relay.close)
        await relay.open()
        with listening_on("HEALTH_PORT", settings.WS_HOST, settings.HEALTH_PORT):
            stack.push_async_callback(monitor.close)
            health_port = await monitor.open(settings.WS_HOST, settings.HEALTH_PORT, for_health)
        serving = await relay.start()
        log.info(
            "websocket.listening" if settings.WS_ENABLED else "websocket.disabled",
            host=settings.WS_HOST,
            port=relay.port,
            health=health_port,
            **({"socket": settings.WS_SOCKET} if settings.WS_SOCKET else {}),
        )
        try:
            yield serving, relay
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def open_to_all(host: str) -> tuple[str, str]:
    """Return a warning that no credential is required, and a hint, empty if only this machine can connect."""
    if {"127.0.0.1", "::1", "localhost"}.issuperset(host.replace(",", " ").split()):
        return "no credential is configured: every program on this machine may follow every board", ""
    return (
        f"no credential is configured: anyone who reaches {host} may follow every board",
        "set WS_TOKENS, WS_TOKENS_FILE, WS_JWT_SECRET or WS_JWT_KEYS, or WS_HOST=127.0.0.1",
    )
