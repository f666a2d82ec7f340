"""Requests: the boards that the source was asked for, a bounded number at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.hub.board import Board
from relay.hub.ports import BoardSource, Subscriber
from relay.model.selection import board_of

MAX_REQUESTS: Final = 10_000
"""Maximum number of boards that wait to be read, of those that are followed and of those that no longer are."""


class Requests:
    """Asks the source for boards that need to be read, each once."""

    def __init__(self, source: BoardSource) -> None:
        self._source = source
        self._asked: set[str] = set()
        self._more_to_ask = False

    def ask(self, name: str, board: Board[Subscriber]) -> None:
        """Ask for a board if it, or this selection of it, needs to be read; later, if too many wait."""
        name = board_of(name)
        if not board.needs_read or name in self._asked:
            return
        if len(self._asked) >= MAX_REQUESTS:
            self._more_to_ask = True
            return
        self._asked.add(name)
        self._source.ask(name, board.wanted_by)

    def over(self, name: str, boards: Mapping[str, Board[Subscriber]]) -> None:
        """Note that a board is asked for no longer, for the source begins to read it, or has given it up.

        After the last one, ask for those that had to wait.
        """
        self._asked.discard(name)
        if self._more_to_ask and not self._asked:
            self._more_to_ask = False
            for each, board in boards.items():
                self.ask(each, board)
