"""Appends to the stream what a publisher queues, in order, while its feed waits.

While JetStream stores entries, the feed is paused, and the next changes gather in the journal. So nothing piles up
here, and a batch under load is as large as it needs to be.
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
"""Timeout of JetStream when a publisher leaves."""


class Writer:
    """Appends entries to the stream.

    `last` is the stream's last entry, `entries` and `batches` how many were appended. `refused` says whether the run
    ended because a part of a batch could not be written, for what it is.
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
        """Have entries appended after those that are queued already."""
        self._queued.extend(entries)
        if self._queued:
            self._emptied.clear()
            self._feed.pause()
            self._filled.set()

    async def run(self) -> None:
        """Append what is queued. What is queued meanwhile goes with the next. Raises StreamError."""
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
            for_what_it_is = isinstance(ex, Refused) or not isinstance(ex, StreamError)
            self.refused = for_what_it_is and not all(isinstance(each.entry, State) for each in entries)
            raise
        self.entries += len(entries)
        self.batches += sum(isinstance(each.entry, Commit) for each in entries)

    async def until_written(self) -> None:
        """Wait until everything queued is stored, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._emptied.wait()
