"""Reads from the stream what clients missed that resume at an edge.

Rules:
- A cursor is valid while the stream holds everything after it. Clients that resume at the same time share one read,
  from the last state that the oldest of their cursors covers.
- A cursor may be ahead of this edge: the client may come from a faster relay or edge, or the publisher may be new and
  have much to read. The seal proves that the cursor is of this database, so the edge waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from relay.hub.ports import Resume, Resuming, Sink
from relay.model.snapshot import Snapshot
from relay.nats.assembly import Assembly, Batch, Committed
from relay.nats.boards import too_long
from relay.nats.consumer import Delivered
from relay.nats.follower import Follower
from relay.nats.jetstream import Stream
from relay.nats.marks import Mark
from relay.nats.stream import StreamBroken, can_name, decode, decode_state
from relay.postgres.journal import RESUME_CHANGES

GATHER_SECONDS: Final = 0.05
"""Pause between reads, in which more clients gather."""

AHEAD_SECONDS: Final = 30.0
"""Maximum wait for a cursor that is ahead, because other resuming clients wait too."""


class MissedReader:
    """Reads what was missed, whenever there are clients that resume."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._resuming: Resuming | None = None
        self._wanted = asyncio.Event()

    def ask(self, resuming: Resuming) -> None:
        """Request a read for clients that resume."""
        self._resuming = resuming
        self._wanted.set()

    async def run(self, stream: Stream, hub: Sink) -> None:
        """Serve requests, until cancelled. Raises StreamError."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if (resuming := self._resuming) and (resume := resuming.begin_resume()):
                try:
                    await self._serve(stream, hub, resuming, resume)
                except BaseException:
                    resuming.abandon_resume()
                    raise
                await asyncio.sleep(GATHER_SECONDS)

    async def _serve(self, stream: Stream, hub: Sink, resuming: Resuming, resume: Resume) -> None:
        """Read for one group of clients, and hand over what they missed.

        Once their boards are delivered here, the hub keeps what arrives. What came before is read from the stream.
        """
        boards = {name for name in resume.boards if can_name(name, stream.room)}
        for name in resume.boards - boards:
            hub.refuse(name, too_long(name))
        follower = self._follower
        await follower.deliveries.until_has(boards, hub)
        await self._until_at(resume.newest)
        async with follower.between_batches():
            position, last = follower.position, follower.boundary
        first = follower.marks.before(resume.oldest, last)
        transactions = await _missed(stream, first, last, position, boards)
        async with follower.between_batches():
            resuming.resumed(position, transactions, first.position)

    async def _until_at(self, cursor: Snapshot) -> None:
        """Wait until the edge has reached a cursor, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AHEAD_SECONDS):
                await self._follower.until_at(cursor)


async def _missed(
    stream: Stream, first: Mark, last: int, position: Snapshot, boards: set[str]
) -> Sequence[Committed] | None:
    """Return the changes of these boards between two entries; None if there are too many, or if some are gone."""
    assembly: Assembly | None = None
    missed: list[Committed] = []
    try:
        async with contextlib.aclosing(stream.read(first.sequence, last, boards)) as entries:
            async for each in entries:
                if assembly is None:
                    assembly = _from(first, each, boards)
                    continue
                for found in assembly.take(decode(each.data)):
                    if isinstance(found, Batch):
                        missed += found.transactions
                if len(missed) > RESUME_CHANGES:
                    return None
    except StreamBroken:
        return None
    return missed if assembly and assembly.position == position else None


def _from(first: Mark, found: Delivered, boards: set[str]) -> Assembly:
    """Start an assembly at the marked state. Raises StreamBroken if the stream no longer has it."""
    if found.sequence != first.sequence:
        raise StreamBroken(f"entry {first.sequence} is missing: found {found.sequence}")
    return Assembly(decode_state(found.data), boards.__contains__, whole=True)
