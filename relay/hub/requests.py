"""Requests: the boards that the source was asked to read, a limited number at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.hub.board import Board
from relay.hub.ports import BoardSource, Subscriber
from relay.model.selection import board_of

MAX_REQUESTS: Final = 10_000
"""Maximum number of boards that wait to be read, including those that nobody follows any more."""


class Requests:
    """Asks the source for each board that needs to be read, once."""

    def __init__(self, source: BoardSource) -> None:
        self._source = source
        self._asked: set[str] = set()
        self._more_to_ask = False

    def ask(self, name: str, board: Board[Subscriber]) -> None:
        """Ask for a board if it, or this selection of it, needs to be read. If too many wait, ask later."""
        name = board_of(name)
        if not board.needs_read or name in self._asked:
            return
        if len(self._asked) >= MAX_REQUESTS:
            self._more_to_ask = True
            return
        self._asked.add(name)
        self._source.ask(name, board.wanted_by)

    def over(self, name: str, boards: Mapping[str, Board[Subscriber]]) -> None:
        """Note that a request has ended, because the source begins to read the board or gave it up.

        After the last one, ask for the boards that had to wait.
        """
        self._asked.discard(name)
        if self._more_to_ask and not self._asked:
            self._more_to_ask = False
            for each, board in boards.items():
                self.ask(each, board)
