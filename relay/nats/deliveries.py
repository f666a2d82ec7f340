"""The deliveries of NATS to an edge: one consumer after another, each for the boards that were followed at the time.

To receive other boards, an edge creates a second consumer that begins after the last entry taken, while the first one
continues. Between two batches, the edge switches to the second one, and skips what it has already taken. So all
entries before the switch are read with the old selection, and all after it with the new one; none is missed or
repeated.

Two simpler ways do not work: changing the subjects of a consumer leaves open from which entry on the change applies,
and ending a consumer before the next is created would delay all boards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from relay.hub.ports import Sink
from relay.nats.consumer import Consumer, Delivered
from relay.nats.jetstream import Stream
from relay.nats.selection import Selection

SWITCH_SECONDS: Final = 0.1
"""Minimum interval between selections. Boards wanted in between share the next one."""

NARROW_SECONDS: Final = 10.0
"""Interval at which boards that nobody follows any more are dropped from the selection."""


class Deliveries:
    """Receives commits, states, and the parts of selected boards."""

    def __init__(self) -> None:
        self._selection = Selection()
        self._wanted = asyncio.Event()
        self._switched = asyncio.Condition()
        self._consumer: Consumer | None = None
        self._next: Consumer | None = None

    def reads(self, board: str) -> bool:
        """Return whether a board's parts are delivered now. This changes only with `switch`."""
        return self._selection.reads(board)

    @property
    def switch_due(self) -> bool:
        """Whether there is another consumer to switch to."""
        return self._next is not None

    async def open(self, stream: Stream, last: int) -> None:
        """Receive the entries after `last`, over a new connection."""
        self._selection.next = self._selection.current
        self._consumer = await self._follow(stream, last)
        # If the server delivers everything instead, switching to that needs no other consumer.
        self._next = None if self._selection.next == self._selection.current else self._consumer
        self._consumer.wake()
        self._wanted.set()

    async def arrived(self) -> list[Delivered]:
        """Wait for entries, or for a switch that is due. Raises StreamError."""
        assert self._consumer, "it is open"
        return await self._consumer.arrived()

    async def switch(self) -> None:
        """Switch to the other consumer. It also delivers what was taken since it was created."""
        old, self._consumer, self._next = self._consumer, self._next, None
        self._selection.switch()
        if old and old is not self._consumer:
            await old.close()
        async with self._switched:
            self._switched.notify_all()

    def want(self, board: str) -> bool:
        """Request the delivery of a board's parts; return whether they are already delivered."""
        if self._selection.want(board):
            self._wanted.set()
        return self._selection.has(board)

    async def until_has(self, boards: Iterable[str], hub: Sink) -> None:
        """Wait until these boards' parts are delivered, unless nobody follows them any more.

        They are requested again after each switch, because a selection made while nobody followed a board lacks it.
        """
        async with self._switched:
            await self._switched.wait_for(lambda: all(board not in hub or self.want(board) for board in boards))

    async def keep_selecting(self, stream: Stream, hub: Sink, last: Callable[[], int]) -> None:
        """Adapt the selection to the boards that clients follow. `last` returns the last entry taken."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NARROW_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()
            if self._selection.prepare(hub):
                await self._select(stream, last())
                await asyncio.sleep(SWITCH_SECONDS)

    async def _select(self, stream: Stream, last: int) -> None:
        """Create the other consumer, and wait for the switch."""
        self._next = await self._follow(stream, last)
        assert self._consumer, "it is open"
        self._consumer.wake()
        async with self._switched:
            await self._switched.wait_for(lambda: self._next is None)

    async def _follow(self, stream: Stream, last: int) -> Consumer:
        consumer = await stream.follow(last + 1, self._selection.next)
        self._selection.connected(filtered=consumer.filtered)
        return consumer
