"""A queue in which requesters take turns, so that nobody waits for all the requests of another."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Boards to read. Requesters take turns, however many boards each of them has requested."""

    def __init__(self) -> None:
        self._waiting: dict[object, deque[str]] = {}
        self._count = asyncio.Semaphore(0)

    def put(self, board: str, by: object) -> None:
        """Add a board, requested by `by`."""
        self._waiting.setdefault(by, deque()).append(board)
        self._count.release()

    async def get(self) -> str:
        """Wait for the next board. Its requester has its next turn after all others."""
        await self._count.acquire()
        by = next(iter(self._waiting))
        boards = self._waiting.pop(by)
        board = boards.popleft()
        if boards:
            self._waiting[by] = boards
        return board
