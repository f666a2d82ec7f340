"""Following: which boards each subscriber follows. Pure.

Rule: a board that a subscriber asks for again on the same connection is sent again, because messages sent in between
may have crossed its cursor. So a limited number of boards that it left are remembered. If it left more, every board
that it asks for counts as one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relay.hub.ports import Subscriber
from relay.model.selection import board_of

REMEMBERED: Final = 100
"""Maximum number of boards remembered that a subscriber has left."""


class Following:
    """The boards of all subscribers."""

    def __init__(self) -> None:
        self._of: dict[Subscriber, Followed] = {}

    def __iter__(self) -> Iterator[Subscriber]:
        """Iterate over all subscribers."""
        return iter(self._of)

    def boards(self, subscriber: Subscriber) -> list[str]:
        """Return the boards that a subscriber follows."""
        followed = self._of.get(subscriber)
        return list(followed.now) if followed else []

    def subscribers(self, board: str) -> list[Subscriber]:
        """Return the subscribers of a board."""
        return [subscriber for subscriber, followed in self._of.items() if board in followed.now]

    def selections(self, subscriber: Subscriber) -> list[str]:
        """Return the names of the boards or selections that a subscriber follows."""
        followed = self._of.get(subscriber)
        return list(followed.now.values()) if followed else []

    def selection(self, subscriber: Subscriber, board: str) -> str | None:
        """Return the name of what a subscriber follows of a board; None if it does not follow it."""
        followed = self._of.get(subscriber)
        return followed.now.get(board) if followed else None

    def add(self, subscriber: Subscriber, name: str) -> bool:
        """Follow a board or a selection of it; return true if the board may have been followed before."""
        return self._of.setdefault(subscriber, Followed()).add(name)

    def leave(self, subscriber: Subscriber, board: str) -> str | None:
        """Stop following a board; return what was followed of it, None if nothing."""
        followed = self._of.get(subscriber)
        return followed.leave(board) if followed else None

    def forget(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that has disconnected."""
        self._of.pop(subscriber, None)


class Followed:
    """The boards that a subscriber follows now, and some that it has left."""

    __slots__ = ("_forgot", "left", "now")

    def __init__(self) -> None:
        # The name of the board or selection, by board.
        self.now: dict[str, str] = {}
        self.left: set[str] = set()
        self._forgot = False

    def add(self, name: str) -> bool:
        """Follow a board or a selection of it; return true if the board may have been followed before."""
        board = board_of(name)
        again = self._forgot or board in self.left or board in self.now
        self.now[board] = name
        return again

    def leave(self, board: str) -> str | None:
        """Stop following a board; return what was followed of it, None if nothing."""
        if (name := self.now.pop(board, None)) is None:
            return None
        if len(self.left) < REMEMBERED:
            self.left.add(board)
        else:
            self._forgot |= board not in self.left
        return name
