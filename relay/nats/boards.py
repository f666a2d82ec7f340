"""Reads boards for an edge's hub, by asking the active publisher.

Rules:
- Several boards are read at once, but never one of them twice: the answer to a client that has left must not be taken
  for that to a client that came since. However many slow boards there are, they do not delay the others.
- A board is requested only once its changes are delivered to this edge, so that nothing is missing in between.
- Requests go to the publisher that wrote the last state. If it is silent, they are repeated, to the one that has
  written the last state by then. A board whose name is too long to ask for is refused.
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
"""Pause before a board is requested again if no publisher answered."""

FAILED_SECONDS: Final = 1.0
"""Pause before a board is requested again if the publisher could not read it."""

ASKED_AT_ONCE: Final = 8
"""Maximum number of boards requested at once, not counting those that take longer than LONG_SECONDS."""

LONG_SECONDS: Final = 1.0
"""Time after which a slow board makes room for another."""

_decode_head: Final = msgspec.json.Decoder(BoardHead | BoardRefused).decode


class BoardReader:
    """Reads boards on request.

    `wanted_since` has the time of each request that is not served yet, `answered` that of the last answer.
    """

    def __init__(self, follower: Follower) -> None:
        self.wanted_since: dict[str, float] = {}
        self.answered = 0.0
        self._follower = follower
        self._again_at: dict[str, float] = {}
        self._queue = BoardQueue()

    def ask(self, board: str, by: object = None) -> None:
        """Request a board for somebody; after a pause if the publisher could not read it the last time."""
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
        """Request a board again if its read failed, or was cancelled before it began."""
        if read.cancelled() or read.exception():
            self._abandon(hub, name)
        self._queue.done(name)

    async def _read(self, stream: Stream, hub: Sink, name: str) -> None:
        """Hand over a board, or request it again."""
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
        """Request a board from the publisher, and hand it over, or the error; return False if no answer is usable."""
        assert self._follower.state, "it has begun"
        answer = await stream.questions.ask(self._follower.state.asked_at, "board", name.encode())
        if answer is None:
            return False
        self.answered = time.monotonic()
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
            return False  # read in another run of the server
        async with self._follower.between_batches():
            hub.synced(name, Snapshot.parse(head.snapshot), body)
        self.wanted_since.pop(name, None)
        return True

    def _pause(self, name: str) -> None:
        """Delay further requests of a board."""
        loop = asyncio.get_running_loop()
        self._again_at[name] = again_at = loop.time() + FAILED_SECONDS
        loop.call_at(again_at, self._again_at.pop, name, None)

    def _abandon(self, hub: Sink, name: str) -> None:
        """Request a board again, if anybody still wants it."""
        since = self.wanted_since.pop(name, time.monotonic())
        hub.abandon_read(name)
        if name in self.wanted_since:
            self.wanted_since[name] = since


def too_long(name: str) -> Message:
    """Return the error for a board whose name does not fit into a message of NATS."""
    return messages.error(
        "invalid_board_id", f"boardId has {len(name)} letters, of which NATS takes fewer, or is no text"
    )
