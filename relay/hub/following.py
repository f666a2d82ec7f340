"""Following: which boards each subscriber follows. Pure.

Rule: a board that is asked for again on the same connection is sent again, for what was sent in between may have
crossed the cursor. So a few boards that a subscriber has left are remembered; once there were more, each board that
it asks for may be one of those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from relay.hub.ports import Subscriber

REMEMBERED: Final = 100
"""Maximum number of boards that are remembered which a subscriber has left."""


class Following:
    """The boards of all subscribers."""

    def __init__(self) -> None:
        self._of: dict[Subscriber, Followed] = {}

    def __iter__(self) -> Iterator[Subscriber]:
        """Give the subscribers that are known."""
        return iter(self._of)

    def boards(self, subscriber: Subscriber) -> list[str]:
        """Name the boards that a subscriber follows."""
        followed = self._of.get(subscriber)
        return list(followed.now) if followed else []

    def subscribers(self, board: str) -> list[Subscriber]:
        """Return the subscribers of a board."""
        return [subscriber for subscriber, followed in self._of.items() if board in followed.now]

    def add(self, subscriber: Subscriber, board: str) -> bool:
        """Follow a board; return true if it may have been followed before."""
        return self._of.setdefault(subscriber, Followed()).add(board)

    def leave(self, subscriber: Subscriber, board: str) -> bool:
        """Stop following a board; return false if it was not followed."""
        followed = self._of.get(subscriber)
        return followed is not None and followed.leave(board)

    def forget(self, subscriber: Subscriber) -> None:
        """Forget a subscriber that is gone."""
        self._of.pop(subscriber, None)


class Followed:
    """The boards that a subscriber follows now, and some of those that it has left."""

    __slots__ = ("_forgot", "left", "now")

    def __init__(self) -> None:
        self.now: dict[str, None] = {}
        self.left: set[str] = set()
        self._forgot = False

    def add(self, board: str) -> bool:
        """Follow a board; return true if it may have been followed before."""
        again = self._forgot or board in self.left or board in self.now
        self.now[board] = None
        return again

    def leave(self, board: str) -> bool:
        """Stop following a board; return false if it was not followed."""
        if board not in self.now:
            return False
        del self.now[board]
        if len(self.left) < REMEMBERED:
            self.left.add(board)
        else:
            self._forgot |= board not in self.left
        return True
