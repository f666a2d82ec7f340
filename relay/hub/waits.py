"""Waits: the subscribers that wait until their board includes a transaction. Pure.

A subscriber's board includes a transaction when the source's position does and the subscriber holds the board: then
it has been sent everything that the transaction changed.

Rules:
- A wait is *pending* until the position includes its transaction, then *due* until its subscriber holds the board.
- When the position moves, only waits for transactions that have begun cost work, however many others there are.
- This module has no clock: `expire`, called at intervals, ends the waits that have lasted a whole interval.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from relay.hub.ports import Subscriber
from relay.hub.shares import Shares
from relay.model.snapshot import Snapshot

K = TypeVar("K")


class Wait(NamedTuple):
    """A subscriber's wait for a transaction on a board."""

    subscriber: Subscriber
    board: str
    xid: int


class Waits:
    """The waits of all subscribers. Duplicates count once."""

    def __init__(self) -> None:
        self._of: defaultdict[Subscriber, set[Wait]] = defaultdict(set)
        self._pending: defaultdict[int, set[Wait]] = defaultdict(set)
        # The transactions of pending waits, in the order of their ids.
        self._xids: list[int] = []
        self._due: defaultdict[str, set[Wait]] = defaultdict(set)
        self._number = 0
        self._shares: Shares[Wait] = Shares()
        # The waits that existed when `expire` was last called.
        self._old: set[Wait] = set()

    def __len__(self) -> int:
        """Number of waits."""
        return self._number

    def count(self, subscriber: Subscriber) -> int:
        """Return the number of a subscriber's waits."""
        return len(self._of.get(subscriber, ()))

    def add(self, subscriber: Subscriber, board: str, xid: int) -> None:
        """Add a wait; see `reach`."""
        wait = Wait(subscriber, sys.intern(board), xid)  # a board's name may be long, and many waits have the same
        if wait in self._of[subscriber]:
            return
        self._of[subscriber].add(wait)
        self._number += 1
        self._shares.add(subscriber, wait)
        if xid not in self._pending:
            insort(self._xids, xid)
        self._pending[xid].add(wait)

    def reach(self, position: Snapshot) -> set[str]:
        """Note that everything visible at a position was published; return the boards of waits that are now due."""
        begun = bisect_left(self._xids, position.xmax)
        ended = [xid for xid in self._xids[:begun] if position.sees(xid)]
        if not ended:
            return set()
        self._xids[:begun] = [xid for xid in self._xids[:begun] if not position.sees(xid)]
        due = {wait for xid in ended for wait in self._pending.pop(xid)}
        for wait in due:
            self._due[wait.board].add(wait)
        return {wait.board for wait in due}

    def answer(self, board: str, holds: Callable[[Subscriber], bool]) -> Mapping[int, list[Subscriber]]:
        """End the due waits of subscribers that hold a board; return the subscribers by transaction."""
        answers: defaultdict[int, list[Subscriber]] = defaultdict(list)
        for wait in [wait for wait in self._due.get(board, ()) if holds(wait.subscriber)]:
            self._end(wait)
            answers[wait.xid].append(wait.subscriber)
        return answers

    def leave(self, subscriber: Subscriber, board: str | None = None) -> None:
        """End a subscriber's waits, on one board or on all."""
        for wait in [wait for wait in self._of.get(subscriber, ()) if board in {None, wait.board}]:
            self._end(wait)

    def expire(self) -> set[Wait]:
        """End and return the waits that already existed when this was last called."""
        expired, self._old = self._old, set()
        for wait in expired:
            self._end(wait)
        self._old = self._all()
        return expired

    def crowd_out(self, by: Subscriber) -> Wait | None:
        """End and return a wait to make room for this subscriber's; None if it has its share. See shares.py."""
        if (wait := self._shares.to_crowd_out(by)) is not None:
            self._end(wait)
        return wait

    def end(self) -> set[Wait]:
        """End and return all waits."""
        ended = self._all()
        for wait in ended:
            self._end(wait)
        return ended

    def _all(self) -> set[Wait]:
        return set[Wait]().union(*self._of.values())

    def _end(self, wait: Wait) -> None:
        self._number -= 1
        self._shares.remove(wait.subscriber, wait)
        _discard(self._of, wait.subscriber, wait)
        _discard(self._due, wait.board, wait)
        self._old.discard(wait)
        if wait in self._pending.get(wait.xid, ()):
            _discard(self._pending, wait.xid, wait)
            if wait.xid not in self._pending:
                del self._xids[bisect_left(self._xids, wait.xid)]


def _discard(waits: dict[K, set[Wait]], key: K, wait: Wait) -> None:
    """Remove a wait from a set, and the set when it is empty."""
    if key in waits:
        waits[key].discard(wait)
        if not waits[key]:
            del waits[key]
