"""Questions that wait to be decided: may this client follow that board? Pure.

Rules:
- Of each client, one question a board waits, however often it is asked: the last one counts. So as many wait as
  boards may be followed, and a client that asks again and again costs no more than one that asks once.
- Clients have their turn in the order in which they began to wait.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
G = TypeVar("G")


class Questions(Generic[C, G]):
    """Which clients wait for an answer about which boards, and what they are to be judged by."""

    def __init__(self) -> None:
        self._of: dict[C, dict[str, G]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def ask(self, client: C, board: str, by: G) -> None:
        """Have a question wait, in place of one like it."""
        self._of.setdefault(client, {})[board] = by

    def withdraw(self, client: C, board: str) -> None:
        """Ask no more about a board; without a question, this does nothing."""
        boards = self._of.get(client, {})
        boards.pop(board, None)
        if not boards:
            self._of.pop(client, None)

    def forget(self, client: C) -> None:
        """Ask no more for a client that is gone."""
        self._of.pop(client, None)

    def take(self, most: int) -> list[tuple[C, str, G]]:
        """Take the questions that have waited for longest, at most so many."""
        taken: list[tuple[C, str, G]] = []
        while self._of and len(taken) < most:
            client, boards = next(iter(self._of.items()))
            while boards and len(taken) < most:
                board = next(iter(boards))
                taken.append((client, board, boards.pop(board)))
            if not boards:
                del self._of[client]
        return taken
