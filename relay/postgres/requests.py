"""What a sink asks of its feed, which outlives sessions: boards to be read, and questions of who may read them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from relay.backoff import Backoff
from relay.hub.ports import Question

GATHER_SECONDS: Final = 0.25
"""Maximum pause between two reads of one board: meanwhile more who want it gather."""

GATHER_SHARE: Final = 4
"""That pause, as a multiple of the time that the read took: so a stampede leaves time for all others."""

SLOW_SECONDS: Final = 1.0
"""A board whose read took longer waits in the queue of slow boards next time."""

SLOW_BOARDS: Final = 10_000
"""Maximum number of boards known to be slow."""

LONGEST_RETRY_SECONDS: Final = 30.0
"""Maximum pause until a board that could not be read is read again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that are asked together, and where the answers go."""

    questions: Sequence[Question]
    answer: asyncio.Future[Sequence[bool]]


class BoardQueue:
    """The boards that are to be read, each not before its pause is over.

    Those that failed or took long the last time wait in a queue of their own, so that they delay no others. No board
    is read twice at once: what a read that began before would bring to those who have come since lacks what happened
    in between.
    """

    def __init__(self) -> None:
        self._due: Mapping[bool, asyncio.Queue[str]] = {False: asyncio.Queue(), True: asyncio.Queue()}
        self._paused_until: dict[str, float] = {}
        # The boards that are being read, and those of them that are to be read again.
        self._reading: set[str] = set()
        self._again: set[str] = set()
        self._slow: dict[str, None] = {}
        self._failed: dict[str, tuple[str, Backoff]] = {}

    @property
    def failing(self) -> Mapping[str, str]:
        """The boards that cannot be read, and why not, in one line."""
        return {board: problem for board, (problem, _) in self._failed.items()}

    def put(self, board: str) -> None:
        """Have a board read."""
        queue = self._due[board in self._failed or board in self._slow]
        if board in self._paused_until:
            asyncio.get_running_loop().call_at(self._paused_until[board], queue.put_nowait, board)
        else:
            queue.put_nowait(board)

    async def get(self, *, slow: bool) -> str:
        """Wait for a board that is due, a slow one or one of the others; `done` ends its read."""
        while (board := await self._due[slow].get()) in self._reading:
            self._again.add(board)
        self._reading.add(board)
        return board

    def done(self, board: str) -> None:
        """Note that a board is not being read any more."""
        self._reading.discard(board)
        if board in self._again:
            self._again.discard(board)
            self.put(board)

    def forget(self, board: str) -> None:
        """Note that nobody wants a board any more."""
        self._failed.pop(board, None)

    def has_read(self, board: str, seconds: float) -> None:
        """Note that a read of a board is over, which took so long."""
        self._failed.pop(board, None)
        self._slow.pop(board, None)
        if seconds > SLOW_SECONDS:
            self._slow[board] = None
            if len(self._slow) > SLOW_BOARDS:
                del self._slow[next(iter(self._slow))]
        self._pause(board, min(GATHER_SHARE * seconds, GATHER_SECONDS))

    def has_failed(self, board: str, problem: str) -> bool:
        """Note that a board could not be read, and why; return whether that is new."""
        known, backoff = self._failed.get(board, (None, Backoff(longest=LONGEST_RETRY_SECONDS)))
        self._failed[board] = problem, backoff
        self._pause(board, backoff.fail(-math.inf, problem))
        return problem != known

    def _pause(self, board: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._paused_until[board] = until = loop.time() + seconds
        loop.call_at(until, self._end_pause, board, until)

    def _end_pause(self, board: str, until: float) -> None:
        if self._paused_until.get(board) == until:
            del self._paused_until[board]
