"""A TCP proxy that a test puts between two programs to take the network away: at once, silently, and back.

Freezing and thawing are plain calls; cutting and restoring are awaited, and over when they return.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from psycopg.conninfo import make_conninfo

from relay.postgres.embedded import HOST, free_port

_CHUNK = 65_536


class Proxy:
    """Forwards 127.0.0.1:`port` to one host and port for as long as the `async with` block lasts."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flow = asyncio.Event()
        self._flow.set()
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.port = free_port()

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    def through(self, dsn: str) -> str:
        """Return a conninfo like `dsn` whose road leads through this proxy."""
        return make_conninfo(dsn, host=HOST, hostaddr=HOST, port=self.port)

    async def cut(self) -> None:
        """Close every connection and refuse new ones."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted closes in the loop's next round

    async def restore(self) -> None:
        """Accept connections again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)

    def freeze(self) -> None:
        """Forward nothing more and close nothing: as if a cable were pulled."""
        self._flow.clear()

    def strand(self) -> None:
        """Freeze the connections there are, for ever, and let new ones through: the old ones are half open."""
        self._flow.clear()
        self._flow = asyncio.Event()
        self._flow.set()

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self._flow.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._listener is None:  # it was on its way in when the listener closed
            writer.transport.abort()
            return
        link = asyncio.create_task(self._forward(self._flow, reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        # Not in the task itself: one that is cancelled before its first step does nothing at all.
        link.add_done_callback(lambda _: writer.transport.abort())

    async def _forward(self, flow: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flow.wait()
        # Shielded, or nobody would close a connection that is made while this is cancelled.
        connecting = asyncio.create_task(asyncio.open_connection(*self._target))
        with suppress(OSError):  # an end that is gone is what this proxy is for: the other one gets its end
            try:
                there_reader, there_writer = await asyncio.shield(connecting)
                await _pump_both(flow, (reader, there_writer), (there_reader, writer))
            finally:
                _, there_writer = await connecting
                there_writer.transport.abort()


async def _pump_both(flow: asyncio.Event, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Forward both ways until one of them ends."""
    pumps = [asyncio.create_task(_pump(flow, reader, writer)) for reader, writer in ways]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for _, writer in ways:
            writer.transport.abort()


async def _pump(flow: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        await flow.wait()
        writer.write(data)
        await writer.drain()
    await flow.wait()
    writer.close()
    await writer.wait_closed()
