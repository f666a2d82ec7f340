"""The daemon under systemd: what it tells the socket that it finds in its environment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.support import SECONDS, Relays
from tests.servers import Database

WATCHDOG_USEC = 200_000


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield the socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


async def notified(sock: socket.socket) -> list[str]:
    """Return the lines of the next message, but for those about the watchdog."""
    async with asyncio.timeout(SECONDS):
        while True:
            lines = (await asyncio.get_running_loop().sock_recv(sock, 4096)).decode().split("\n")
            if lines != ["WATCHDOG=1"]:
                return lines


async def test_systemd_is_notified_of_what_the_daemon_does(
    database: Database, relay: Relays, notify: socket.socket
) -> None:
    """It is ready when it listens, reloads at SIGHUP, feeds the watchdog meanwhile, and says that it stops."""
    daemon = await relay(
        database.dsn,
        NOTIFY_SOCKET=notify.getsockname(),
        WATCHDOG_USEC=str(WATCHDOG_USEC),
        WS_TOKENS="token-of-a-test-1",
    )
    assert await notified(notify) == ["READY=1"]

    async with asyncio.timeout(SECONDS):
        for _ in range(3):
            assert await asyncio.get_running_loop().sock_recv(notify, 4096) == b"WATCHDOG=1"

    daemon.signal(signal.SIGHUP)
    reloading, since = await notified(notify)
    assert reloading == "RELOADING=1"
    assert since.removeprefix("MONOTONIC_USEC=").isdecimal()
    assert await notified(notify) == ["READY=1"]

    daemon.signal(signal.SIGTERM)
    assert await notified(notify) == ["STOPPING=1"]


async def test_daemon_that_is_stuck_feeds_no_watchdog(
    database: Database, relay: Relays, notify: socket.socket
) -> None:
    """What stops the event loop stops the watchdog's food, which is what makes systemd start the daemon again."""
    daemon = await relay(database.dsn, NOTIFY_SOCKET=notify.getsockname(), WATCHDOG_USEC=str(WATCHDOG_USEC))
    assert await notified(notify) == ["READY=1"]
    daemon.signal(signal.SIGSTOP)
    try:
        with contextlib.suppress(BlockingIOError):
            while notify.recv(4096):  # what it had sent before
                pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(notify, 4096), 4 * WATCHDOG_USEC / 1e6)
    finally:
        daemon.signal(signal.SIGCONT)
