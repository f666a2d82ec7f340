"""Waits: which subscribers wait until their board includes which transactions. Pure.

A board includes a transaction when the source's position does and the subscriber holds the board: then whatever the
transaction changed was sent before.

Rules:
- A wait is *pending* until the position includes its transaction, then *due* until its subscriber holds the board.
- A position that moves costs no more than the transactions that are over or run by then, however many are waited for.
- Time is not known here: `expire`, called at intervals, ends what has waited for a whole one.
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
    """What somebody waits for."""

    subscriber: Subscriber
    board: str
    xid: int


class Waits:
    """The waits of all subscribers. The same one twice is one."""

    def __init__(self) -> None:
        self._of: defaultdict[Subscriber, set[Wait]] = defaultdict(set)
        self._pending: defaultdict[int, set[Wait]] = defaultdict(set)
        # The transactions of pending waits, in the order of their ids.
        self._xids: list[int] = []
        self._due: defaultdict[str, set[Wait]] = defaultdict(set)
        self._number = 0
        self._shares: Shares[Wait] = Shares()
        # Those that were there when `expire` was last called.
        self._old: set[Wait] = set()

    def __len__(self) -> int:
        """Number of waits."""
        return self._number

    def count(self, subscriber: Subscriber) -> int:
        """Return for how many transactions a subscriber waits."""
        return len(self._of.get(subscriber, ()))

    def add(self, subscriber: Subscriber, board: str, xid: int) -> None:
        """Have a subscriber wait; see `reach`."""
        wait = Wait(subscriber, sys.intern(board), xid)  # a name may be long, and is kept once
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
        over = [xid for xid in self._xids[:begun] if position.sees(xid)]
        if not over:
            return set()
        self._xids[:begun] = [xid for xid in self._xids[:begun] if not position.sees(xid)]
        due = {wait for xid in over for wait in self._pending.pop(xid)}
        for wait in due:
            self._due[wait.board].add(wait)
        return {wait.board for wait in due}

    def answer(self, board: str, holds: Callable[[Subscriber], bool]) -> Mapping[int, list[Subscriber]]:
        """End the waits that are due for subscribers that hold a board; return these, by transaction."""
        answers: defaultdict[int, list[Subscriber]] = defaultdict(list)
        for wait in [wait for wait in self._due.get(board, ()) if holds(wait.subscriber)]:
            self._end(wait)
            answers[wait.xid].append(wait.subscriber)
        return answers

    def leave(self, subscriber: Subscriber, board: str | None = None) -> None:
        """End the waits of a subscriber, those for one board or all."""
        for wait in [wait for wait in self._of.get(subscriber, ()) if board in {None, wait.board}]:
            self._end(wait)

    def expire(self) -> set[Wait]:
        """End and return what has waited since this was last called, at least."""
        expired, self._old = self._old, set()
        for wait in expired:
            self._end(wait)
        self._old = self._all()
        return expired

    def crowd_out(self, by: Subscriber) -> Wait | None:
        """End and return a wait for which this subscriber's may come; None if it has its share. See shares.py."""
        if (wait := self._shares.to_crowd_out(by)) is not None:
            self._end(wait)
        return wait

    def end(self) -> set[Wait]:
        """End and return all."""
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
    """Take a wait out of a set, and the set out when it is empty."""
    if key in waits:
        waits[key].discard(wait)
        if not waits[key]:
            del waits[key]
