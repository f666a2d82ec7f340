"""A queue in which all that wait take turns, so that nobody waits for what another wants a lot of."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Boards to be read: all that want some take turns, however many each of them wants."""

    def __init__(self) -> None:
        self._waiting: dict[object, deque[str]] = {}
        self._count = asyncio.Semaphore(0)

    def put(self, board: str, by: object) -> None:
        """Add a board, wanted by somebody."""
        self._waiting.setdefault(by, deque()).append(board)
        self._count.release()

    async def get(self) -> str:
        """Wait for the next board; whoever wants it has its next turn after all others."""
        await self._count.acquire()
        by = next(iter(self._waiting))
        boards = self._waiting.pop(by)
        board = boards.popleft()
        if boards:
            self._waiting[by] = boards
        return board
