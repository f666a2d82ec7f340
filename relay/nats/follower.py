"""Follows the stream for an edge's hub: takes each entry once, in order, over any number of connections.

Rules:
- An edge reads commits, states, and the parts of boards that its clients follow (deliveries.py). A board, or what
  clients missed of it, is read only once its parts are delivered here. So the stream brings whatever such a read does
  not contain, as for any new subscriber.
- Nothing is trusted to be complete: the assembly compares every commit with the parts that came.
- If the stream does not continue from where it was read to, continuity is broken: all clients are sent their boards,
  with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import structlog

from relay.hub.ports import Sink
from relay.model.cursor import Reason
from relay.model.snapshot import Snapshot
from relay.nats.assembly import Assembly, Batch, Begin, Committed
from relay.nats.connection import StreamError
from relay.nats.consumer import Delivered
from relay.nats.deliveries import Deliveries
from relay.nats.jetstream import Stream
from relay.nats.marks import Marks
from relay.nats.stream import Entry, State, StreamBroken, decode, decode_state

log = structlog.get_logger()

FORGET_SECONDS: Final = 60.0
"""Interval at which positions that the stream no longer holds are forgotten."""

SILENT_SECONDS: Final = 5.0
"""Time without an entry after which the publisher counts as absent."""


class Follower:
    """Reads the stream, and passes it on to a hub.

    `last` is the sequence of the last entry taken, `boundary` that of the entry that led to the current position.
    """

    def __init__(self, name: str) -> None:
        self.last = self.boundary = 0
        self.entries = self.transactions = 0
        self.continuity_lost: Counter[str] = Counter()
        self.last_heard = time.monotonic()
        self.proven = False
        self.marks = Marks()
        self.deliveries = Deliveries()
        self._name = name
        self._assembly: Assembly | None = None
        self._began = False
        self._moved = asyncio.Condition()
        # Whether a batch is being passed on in parts, so that nothing else can be handed over.
        self._in_parts = False

    @property
    def state(self) -> State | None:
        """The last state, if there was one."""
        return self._assembly.state if self._assembly else None

    @property
    def position(self) -> Snapshot:
        """The snapshot up to which everything has been passed on."""
        assert self._assembly, "it has begun"
        return self._assembly.position

    @property
    def lag(self) -> float:
        """Seconds since the last state was read from Postgres; everything committed before has been passed on."""
        return time.monotonic() - self.last_heard + (self.state.lag if self.state else 0.0)

    def forget(self) -> None:
        """Begin with the last state on the next connection, instead of continuing."""
        self._assembly = None

    # Waiting

    async def until_at(self, cursor: Snapshot) -> None:
        """Wait until a cursor is not ahead of the position."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.position.covers(cursor))

    async def until_taken(self, sequence: int) -> None:
        """Wait until the entry with this sequence has been taken."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.last >= sequence)

    @contextlib.asynccontextmanager
    async def between_batches(self) -> AsyncIterator[None]:
        """Wait for a moment at which something else can be handed to the hub, and hold it."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self._in_parts)
            yield

    # Beginning

    async def begin(self, stream: Stream, hub: Sink) -> None:
        """Continue from where the stream was read to, if what follows is there; otherwise from its last state."""
        bounds = await stream.bounds()
        self.marks.forget_before(bounds.first)
        if self._assembly is None or not bounds.first - 1 <= self.last <= bounds.last:
            await self._begin_anywhere(stream, hub)
        await self.deliveries.open(stream, self.last)

    async def _begin_anywhere(self, stream: Stream, hub: Sink) -> None:
        state = await self._last_state(stream)
        self._assembly = Assembly(state, self.deliveries.reads)
        self.boundary = self.last
        self._in_parts = False
        lost: Reason | None = "journal_pruned" if self._began else None
        self._began = True
        self._begin_hub(hub, Begin(state.epoch, self.position, lost))

    async def _last_state(self, stream: Stream) -> State:
        """Read the stream's states, set the marks and `last`, and return the last one."""
        self.marks.clear()
        state: State | None = None
        for each in await stream.states():
            try:
                state = decode_state(each.data)
            except StreamBroken:  # not a relay's; nobody can resume from before it
                state = None
                self.marks.clear()
            else:
                self.last = each.sequence
                self.marks.add(each.sequence, state)
        if state is None:
            raise StreamError(f"stream {self._name} is empty: is relay publish running?")
        return state

    def _begin_hub(self, hub: Sink, begin: Begin) -> None:
        if begin.lost:
            self.continuity_lost[begin.lost] += 1
            log.warning("feed.continuity_lost", reason=begin.lost)
        hub.begin(begin.epoch, begin.position, begin.lost)

    # Reading

    async def read(self, hub: Sink) -> None:
        """Pass on entries as they arrive. Raises StreamError and StreamBroken."""
        assert self._assembly, "it has begun"
        while True:
            arrived = await self.deliveries.arrived()
            if entries := [each for each in arrived if each.sequence > self.last]:
                self._pass_on(hub, entries)
                self.last_heard = time.monotonic()
                self.proven = True
            if self.deliveries.switch_due and self._assembly.between_batches:
                await self.deliveries.switch()
            async with self._moved:
                self._moved.notify_all()

    def _pass_on(self, hub: Sink, entries: Sequence[Delivered]) -> None:
        """Pass on entries that arrived together as one batch, except for batches so large that they come in parts."""
        assert self._assembly, "it has begun"
        gathered: list[Committed] = []
        position = self.position
        for sequence, data, _ in entries:
            for found in self._take(sequence, decode(data)):
                if isinstance(found, Batch) and found.position and not self._in_parts:
                    gathered += found.transactions
                    position = found.position
                    continue
                if gathered:
                    self._publish(hub, gathered, position)
                    gathered = []
                self._pass_on_alone(hub, found)
        if not self._in_parts:
            self._publish(hub, gathered, self.position)

    def _take(self, sequence: int, entry: Entry) -> Iterator[Batch | Begin]:
        """Take an entry, and note its sequence."""
        assert self._assembly, "it has begun"
        yield from self._assembly.take(entry)
        if isinstance(entry, State):
            self.marks.add(sequence, entry)
        self.last = sequence
        if self._assembly.between_batches:
            self.boundary = sequence
        self.entries += 1

    def _publish(self, hub: Sink, gathered: Sequence[Committed], position: Snapshot) -> None:
        self.transactions += len({one.xid for one in gathered})
        hub.publish(gathered, position)

    def _pass_on_alone(self, hub: Sink, found: Batch | Begin) -> None:
        if isinstance(found, Begin):
            self._in_parts = False
            self._begin_hub(hub, found)
        else:
            self._in_parts = found.position is None
            hub.publish(found.transactions, found.position)

    # The stream's ends

    async def watch(self, stream: Stream) -> None:
        """Whenever nothing arrives for long, check the stream. Raises StreamBroken if it is an older copy."""
        while True:
            await asyncio.sleep(SILENT_SECONDS / 2)
            silent = time.monotonic() - self.last_heard > SILENT_SECONDS
            if silent and (await stream.bounds()).last < self.last:
                raise StreamBroken(f"stream {self._name} ends before what was read of it")

    async def forget_marks(self, stream: Stream) -> None:
        """Forget the positions after which the stream no longer has everything."""
        while True:
            await asyncio.sleep(FORGET_SECONDS)
            self.marks.forget_before((await stream.bounds()).first)
