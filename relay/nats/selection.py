"""The boards whose parts NATS delivers to an edge. Pure.

An edge filters the stream by the boards that its clients follow. To change the filter, it creates a second consumer,
and switches to it between two batches (deliveries.py). Until then, the new boards are *next*, not *current*.

Rules:
- A board is read safely only if it is both current and next. A board that has just lost its last client may be
  missing from the next selection; a client that comes back before the switch waits for the one after.
- Above MAX_BOARDS boards, an edge receives everything. It filters again once there are half as many, so that it does
  not go back and forth near the limit.
- A server before 2.10 ignores the filter and delivers everything. Then everything is current, and stays so.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from relay.nats.stream import MAX_BOARDS

Boards = frozenset[str] | None
"""Some boards; None means all."""

NOTHING: Final[frozenset[str]] = frozenset()


class Selection:
    """The boards that are delivered now, and those that will be after the next switch."""

    def __init__(self) -> None:
        self.current: Boards = NOTHING
        self.next: Boards = NOTHING
        self._wanted: set[str] = set()
        self._fixed = False

    def want(self, board: str) -> bool:
        """Note that a board is wanted; return whether that requires another selection."""
        self._wanted.add(board)
        return not self.has(board)

    def reads(self, board: str) -> bool:
        """Return whether a board's parts are delivered now."""
        return self.current is None or board in self.current

    def has(self, board: str) -> bool:
        """Return whether a board's parts are delivered from now on."""
        return self.reads(board) and (self.next is None or board in self.next)

    def prepare(self, followed: Container[str]) -> bool:
        """Choose the next selection: boards that are wanted and still followed. Return whether it differs."""
        self._wanted = {board for board in self._wanted if board in followed}
        if self._fixed:
            return False
        limit = MAX_BOARDS // 2 if self.current is None else MAX_BOARDS
        self.next = frozenset(self._wanted) if len(self._wanted) <= limit else None
        return self.next != self.current

    def connected(self, *, filtered: bool) -> None:
        """Note whether the server applied the filter."""
        self._fixed = self.next is not None and not filtered
        if not filtered:
            self.next = None

    def switch(self) -> None:
        """Make the next selection the current one."""
        self.current = self.next
