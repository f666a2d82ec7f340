"""What a sink asks of its feed, which outlives sessions: boards to be read, and questions of who may read them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.hub.ports import Question

GATHER_SECONDS: Final = 0.25
"""Maximum pause between two reads of one board: meanwhile more who want it gather."""

GATHER_SHARE: Final = 4
"""That pause, as a multiple of the time that the read took: so a stampede leaves time for all others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that are asked together, and where the answers go."""

    questions: Sequence[Question]
    answer: asyncio.Future[Sequence[bool]]


class BoardQueue:
    """The boards that are to be read, each not before its pause is over."""

    def __init__(self) -> None:
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._paused_until: dict[str, float] = {}

    def put(self, board: str) -> None:
        """Have a board read."""
        if board in self._paused_until:
            asyncio.get_running_loop().call_at(self._paused_until[board], self._due.put_nowait, board)
        else:
            self._due.put_nowait(board)

    async def get(self) -> str:
        """Wait for a board that is due."""
        return await self._due.get()

    def has_read(self, board: str, seconds: float) -> None:
        """Note that a read of a board is over, which took so long."""
        self._pause(board, min(GATHER_SHARE * seconds, GATHER_SECONDS))

    def _pause(self, board: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._paused_until[board] = until = loop.time() + seconds
        loop.call_at(until, self._paused_until.pop, board, None)
