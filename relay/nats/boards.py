"""Reads boards for an edge's hub: asks the active publisher for them.

Rules:
- Several boards are read at once, but never one of them twice: an answer to a client that has left must not be taken
  for the answer to one that came since. One that takes long holds up no other, whatever their number.
- A board is asked for only once its changes are delivered to this edge, so nothing is missing between the two.
- Questions go to the publisher that wrote the last state. If it is silent, they go to the one that wrote the last
  state by then. A board that cannot be asked for is refused to its clients, and holds up no other.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Final

import msgspec

from relay.hub.ports import Sink
from relay.model import messages
from relay.model.messages import Message
from relay.model.snapshot import Snapshot
from relay.nats.follower import Follower
from relay.nats.jetstream import Stream
from relay.nats.stream import BoardHead, BoardRefused, can_name, is_text
from relay.postgres.requests import BoardQueue

ASK_AGAIN_SECONDS: Final = 0.25
"""Interval after which a board is asked for again that no publisher answered for."""

FAILED_SECONDS: Final = 1.0
"""Interval after which a board is asked for again that the publisher could not read."""

ASKED_AT_ONCE: Final = 8
"""Maximum number of boards that are asked for at once, not counting those that take long."""

LONG_SECONDS: Final = 1.0
"""A board that takes longer makes room for another."""

_decode_head: Final = msgspec.json.Decoder(BoardHead | BoardRefused).decode


class BoardReader:
    """Reads boards, each when asked. `wanted_since` holds when each board was asked for that is not here yet."""

    def __init__(self, follower: Follower) -> None:
        self.wanted_since: dict[str, float] = {}
        self._follower = follower
        self._again_at: dict[str, float] = {}
        self._queue = BoardQueue()

    def ask(self, board: str, by: object = None) -> None:
        """Have a board read for somebody; after a pause if the publisher could not read it the last time."""
        loop = asyncio.get_running_loop()
        if (again_at := self._again_at.get(board, 0.0)) > loop.time():
            loop.call_at(again_at, self.ask, board, by)
            return
        self.wanted_since.setdefault(board, time.monotonic())
        if is_text(board):
            self._follower.deliveries.want(board)
        self._queue.put(board, by)

    async def run(self, stream: Stream, hub: Sink) -> None:
        """Read boards. Raises StreamError."""
        async with asyncio.TaskGroup() as tasks:

            async def read_queue() -> None:
                while True:
                    name = await self._queue.get()
                    read = tasks.create_task(self._read(stream, hub, name))
                    read.add_done_callback(partial(self._end_read, hub, name))
                    await asyncio.wait([read], timeout=LONG_SECONDS)

            for _ in range(ASKED_AT_ONCE):
                tasks.create_task(read_queue())

    def _end_read(self, hub: Sink, name: str, read: asyncio.Task[None]) -> None:
        """Have a board asked for again whose read failed, or was cancelled before it began."""
        if read.cancelled() or read.exception():
            self._abandon(hub, name)
        self._queue.done(name)

    async def _read(self, stream: Stream, hub: Sink, name: str) -> None:
        """Hand over a board, or have it asked for again."""
        namable = can_name(name, stream.room)
        if namable:
            await self._follower.deliveries.until_has([name], hub)
        if not hub.begin_read(name):
            self.wanted_since.pop(name, None)
        elif not namable:
            hub.refuse(name, too_long(name))
            self.wanted_since.pop(name, None)
        elif not await self._ask(stream, hub, name):
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            self._abandon(hub, name)

    async def _ask(self, stream: Stream, hub: Sink, name: str) -> bool:
        """Ask for a board, and hand it over, or the error; return false if there is no answer of use here."""
        assert self._follower.state, "it has begun"
        answer = await stream.questions.ask(self._follower.state.asked_at, "board", name.encode())
        if answer is None:
            return False
        head, body = _decode_head(answer[0]), answer[1]
        if isinstance(head, BoardRefused):
            if head.final:
                hub.refuse(name, Message("error", body))
            else:
                self._pause(name)
                hub.fail_read(name, Message("error", body))
            self.wanted_since.pop(name, None)
            return True
        if head.run != self._follower.state.run:
            return False  # of another run of the server
        async with self._follower.between_batches():
            hub.synced(name, Snapshot.parse(head.snapshot), body)
        self.wanted_since.pop(name, None)
        return True

    def _pause(self, name: str) -> None:
        """Have a board asked for only after a pause."""
        loop = asyncio.get_running_loop()
        self._again_at[name] = again_at = loop.time() + FAILED_SECONDS
        loop.call_at(again_at, self._again_at.pop, name, None)

    def _abandon(self, hub: Sink, name: str) -> None:
        """Have a board asked for again, if anybody still wants it."""
        since = self.wanted_since.pop(name, time.monotonic())
        hub.abandon_read(name)
        if name in self.wanted_since:
            self.wanted_since[name] = since


def too_long(name: str) -> Message:
    """Return the error for a board that no message of NATS can name."""
    return messages.error(
        "invalid_board_id", f"boardId has {len(name)} letters, of which NATS takes fewer, or is no text"
    )
