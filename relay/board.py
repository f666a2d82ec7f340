"""One board: who follows it, and what each of them must receive. Pure.

A subscriber gets the board as of some snapshot (its *sync*) and from then on every change whose transaction that
snapshot does not contain. The feed and the reading of boards run side by side, so a sync may be older or newer
than the feed's position; neither may make a gap or a duplicate:

- older: what the feed delivered while the board was being read is kept (the *tail*), and follows the sync;
- newer: its subscribers stay in a group of their own and skip what their sync contains, until the feed's
  position covers it. Then they are like everybody else.

Rules:
- A subscriber is in exactly one place: `_waiting` for a read that has not begun, `_reading` one that has, `_ahead`
  of the feed, `_live`, or `_behind` because it could not take more.
- A sync answers only who asked before its read began. So a client that subscribes again never sees an older
  moment than it has seen already.
- Nothing is done per subscriber that can be done for all: a batch is one buffer for everyone who is live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.snapshot import Snapshot

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction means to a board: frames to send, or, with `sync`, that it must be read again."""

    xid: int
    frames: bytes
    sync: bool = False


class Board(Generic[S]):
    """The subscribers of one board. What its methods yield, (subscribers, frames), is to be sent."""

    def __init__(self) -> None:
        self._waiting: set[S] = set()
        self._reading: set[S] = set()
        self._tail: list[Step] | None = None
        self._ahead: list[tuple[Snapshot, set[S]]] = []
        self._live: set[S] = set()
        self._behind: set[S] = set()

    def __bool__(self) -> bool:
        return any(self._places())

    def __len__(self) -> int:
        return sum(map(len, self._places()))

    @property
    def needs_read(self) -> bool:
        """Whether somebody waits for a read, and none is under way."""
        return bool(self._waiting) and self._tail is None

    def join(self, subscriber: S) -> None:
        """Let a subscriber wait for a sync, wherever it was."""
        self.leave(subscriber)
        self._waiting.add(subscriber)

    def leave(self, subscriber: S) -> None:
        """Forget a subscriber."""
        for place in self._places():
            place.discard(subscriber)
        self._ahead = [(snapshot, group) for snapshot, group in self._ahead if group]

    def fall_behind(self, subscribers: Iterable[S]) -> None:
        """Stop sending to subscribers that cannot take more; `join` brings one back."""
        for subscriber in subscribers:
            self.leave(subscriber)
            self._behind.add(subscriber)

    def is_behind(self, subscriber: S) -> bool:
        return subscriber in self._behind

    def begin_read(self) -> None:
        """Note that the board is read from now on: keep what the feed brings meanwhile."""
        self._reading |= self._waiting
        self._waiting = set()
        self._tail = []

    def abandon_read(self) -> None:
        """Note that the read failed: its subscribers wait for another."""
        self._waiting |= self._reading
        self._reading = set()
        self._tail = None

    def synced(self, snapshot: Snapshot, sync: bytes, position: Snapshot) -> Iterator[tuple[set[S], bytes]]:
        """Hand over the board as of `snapshot` while the feed is at `position`."""
        if self._tail is None:
            return  # everybody had left, and others have come who wait for a read of their own
        missed = [step for step in self._tail if not snapshot.sees(step.xid)]
        if any(step.sync for step in missed):
            self.abandon_read()
            return
        group, self._reading, self._tail = self._reading, set(), None
        if position.covers(snapshot):
            self._live |= group
        else:
            self._ahead.append((snapshot, group))
        yield group, b"".join([sync, *(step.frames for step in missed)])

    def publish(self, steps: list[Step], position: Snapshot) -> Iterator[tuple[set[S], bytes]]:
        """Deliver a batch of transactions, after which the feed is at `position`."""
        if self._tail is not None:
            self._tail += steps
        followers = [(None, self._live), *self._ahead]
        self._live, self._ahead = set(), []
        for snapshot, group in followers:
            unseen = [step for step in steps if snapshot is None or not snapshot.sees(step.xid)]
            # First find its new place, for a subscriber may fall behind while it is sent to.
            if any(step.sync for step in unseen):
                # Not even what came before: only the whole batch leads to a moment that there was.
                self._waiting |= group
                continue
            if snapshot is None or position.covers(snapshot):
                self._live |= group
            else:
                self._ahead.append((snapshot, group))
            if group and unseen:
                yield group, b"".join(step.frames for step in unseen)

    def _places(self) -> Iterator[set[S]]:
        yield from (self._waiting, self._reading, self._live, self._behind)
        yield from (group for _, group in self._ahead)
