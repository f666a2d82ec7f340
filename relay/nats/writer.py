"""Appends the entries that a publisher queues, in order.

While JetStream stores entries, the feed is paused, and the next changes gather in the journal. So nothing piles up
here, and under load batches become as large as necessary.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from relay.nats.connection import Refused, StreamError
from relay.nats.jetstream import Stream
from relay.nats.stream import Commit, Encoded, State
from relay.postgres.feed import Feed

LEAVE_SECONDS: Final = 5.0
"""Timeout for storing what is queued when a publisher stops."""


class Writer:
    """Appends entries to the stream.

    `last` is the sequence of the stream's last entry; `entries` and `batches` count what was appended. `refused` is
    whether the run ended because a part of a batch itself was refused.
    """

    def __init__(self, stream: Stream, feed: Feed, last: int) -> None:
        self.last = last
        self.entries = self.batches = 0
        self.refused = False
        self._stream = stream
        self._feed = feed
        self._queued: list[Encoded] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    def queue(self, entries: Iterable[Encoded]) -> None:
        """Queue entries to be appended after those queued already."""
        self._queued.extend(entries)
        if self._queued:
            self._emptied.clear()
            self._feed.pause()
            self._filled.set()

    async def run(self) -> None:
        """Append what is queued, until cancelled. Raises StreamError."""
        while True:
            await self._filled.wait()
            entries, self._queued = self._queued, []
            await self._append(entries)
            if not self._queued:
                self._filled.clear()
                self._emptied.set()
                self._feed.go_on()

    async def _append(self, entries: list[Encoded]) -> None:
        try:
            self.last = await self._stream.append(entries, self.last)
        except Exception as ex:
            at_fault = isinstance(ex, Refused) or not isinstance(ex, StreamError)  # the entries, not the connection
            self.refused = at_fault and not all(isinstance(each.entry, State) for each in entries)
            raise
        self.entries += len(entries)
        self.batches += sum(isinstance(each.entry, Commit) for each in entries)

    async def until_written(self) -> None:
        """Wait until everything queued is stored, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._emptied.wait()
