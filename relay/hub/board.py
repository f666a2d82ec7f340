"""One board: its subscribers, and what each of them must receive. Pure.

A subscriber gets the board as of some snapshot (its *sync*), and then every change whose transaction that snapshot
does not contain. A subscriber that resumes already holds the board as of its cursor's snapshot, and gets what it
missed instead. The feed and these reads run concurrently, so a read may be older or newer than the feed's position.
Neither may cause a gap or a duplicate:

- older: what the feed delivers during the read is kept (the *tail*), and follows what was read;
- newer: the subscribers of the read form a separate group, which skips the changes that its snapshot contains, until
  the feed's position covers that snapshot. Snapshots are totally ordered, so until then nothing is new to them.

Rules:
- A subscriber is in exactly one place: `_held` until the feed knows which cursors are valid, `_waiting` for a read of
  the board that has not begun, `_reading` for one that has, `_resuming` and `_missed` likewise for a read of the
  journal, `_ahead` of the feed, `_live`, or `_behind` because it could not take more.
- A read answers only the subscribers that asked before it began. So a client that subscribes again never sees an
  older moment than it has already seen.
- Nothing is done per subscriber that can be done for all: a delivery is one buffer for all its subscribers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.model.cursor import Reason
from relay.model.messages import Message
from relay.model.snapshot import Snapshot

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction means to a board: messages to send, or the reason why the board must be read again.

    With `at`, it belongs to no transaction: its messages state values as of that snapshot.
    """

    xid: int
    messages: Sequence[Message]
    sync: Reason | None = None
    at: Snapshot | None = None

    def is_in(self, snapshot: Snapshot) -> bool:
        """Whether a board as of a snapshot already contains it."""
        return snapshot.sees(self.xid) if self.at is None else snapshot.covers(self.at)


@dataclass(frozen=True, slots=True)
class Delivery(Generic[S]):
    """What to send to some subscribers: the board as of `synced`, if that is set, then the steps.

    They then hold the board as of `at`; if that is None, the rest of a batch follows. `reason` is why they are sent
    the board, if they did not ask for it.
    """

    to: AbstractSet[S]
    steps: Sequence[Step]
    at: Snapshot | None
    synced: Snapshot | None = None
    reason: Reason | None = None


class Board(Generic[S]):
    """The subscribers of one board. The caller must send what the methods yield, in order."""

    def __init__(self) -> None:
        self._held: dict[S, str] = {}
        self._waiting: dict[S, Reason | None] = {}
        self._reading: dict[S, Reason | None] = {}
        self._tail: list[Step] | None = None
        self._resuming: dict[S, Snapshot] = {}
        self._missed: dict[S, Snapshot] = {}
        self._missed_tail: list[Step] | None = None
        self._ahead: list[tuple[Snapshot, set[S]]] = []
        self._live: set[S] = set()
        self._behind: set[S] = set()
        # Subscribers in `_waiting` and `_reading` that were sent an error, because the board cannot be read.
        self._informed: set[S] = set()

    def __bool__(self) -> bool:
        return any(self._places())

    def __len__(self) -> int:
        return sum(map(len, self._places()))

    @property
    def needs_read(self) -> bool:
        """Whether a subscriber waits for a read of the board, and none is under way."""
        return bool(self._waiting) and self._tail is None

    @property
    def wanted_by(self) -> S | None:
        """The subscriber that has waited longest for a read, if any."""
        return next(iter(self._waiting), None)

    @property
    def resuming(self) -> set[Snapshot]:
        """The cursors of subscribers that wait to resume; none while a read of the journal is under way."""
        return set() if self._missed_tail is not None else set(self._resuming.values())

    @property
    def live(self) -> AbstractSet[S]:
        return self._live

    def join(self, subscriber: S, reason: Reason | None = None) -> None:
        """Make a subscriber wait for a sync, wherever it was."""
        self.leave(subscriber)
        self._waiting[subscriber] = reason

    def hold(self, subscriber: S, cursor: str) -> None:
        """Keep a subscriber until it is known whether its cursor is valid; see `release`."""
        self.leave(subscriber)
        self._held[subscriber] = cursor

    def release(self) -> dict[S, str]:
        """Return the held subscribers with their cursors. The caller must call `join` or `resume` for each."""
        held, self._held = self._held, {}
        return held

    def resume(self, subscriber: S, cursor: Snapshot) -> None:
        """Make a subscriber wait for what it missed since its cursor."""
        self.leave(subscriber)
        self._resuming[subscriber] = cursor

    def leave(self, subscriber: S) -> None:
        """Forget a subscriber."""
        for answers in (self._waiting, self._reading):
            answers.pop(subscriber, None)
        for cursors in (self._resuming, self._missed):
            cursors.pop(subscriber, None)
        self._held.pop(subscriber, None)
        self._informed.discard(subscriber)
        for place in (self._live, self._behind, *(group for _, group in self._ahead)):
            place.discard(subscriber)
        self._ahead = [(snapshot, group) for snapshot, group in self._ahead if group]

    def fall_behind(self, subscribers: Iterable[S]) -> None:
        """Stop sending to subscribers that cannot take more; `join` brings one back."""
        for subscriber in subscribers:
            self.leave(subscriber)
            self._behind.add(subscriber)

    def is_behind(self, subscriber: S) -> bool:
        return subscriber in self._behind

    def holds(self, subscriber: S) -> bool:
        """Whether a subscriber has the board, as of the feed's position or a later moment."""
        return subscriber in self._live or any(subscriber in group for _, group in self._ahead)

    # Reading the board

    def begin_read(self) -> None:
        """Note that a read of the board begins: keep what the feed brings meanwhile."""
        self._reading |= self._waiting
        self._waiting = {}
        self._tail = []

    def abandon_read(self) -> None:
        """Note that the read failed: its subscribers wait for another."""
        self._waiting = self._reading | self._waiting
        self._reading = {}
        self._tail = None

    def fail_read(self) -> list[S]:
        """Do the same, and return those of its subscribers that were not informed before."""
        uninformed = [subscriber for subscriber in self._reading if subscriber not in self._informed]
        self._informed.update(uninformed)
        self.abandon_read()
        return uninformed

    def synced(self, snapshot: Snapshot, position: Snapshot) -> Iterator[Delivery[S]]:
        """Hand over the board as of `snapshot` while the feed is at `position`."""
        if self._tail is None:
            return  # everyone left, and subscribers that came since wait for another read
        missed = [step for step in self._tail if not step.is_in(snapshot)]
        if _reason(missed):
            self.abandon_read()
            return
        reading, self._reading, self._tail = self._reading, {}, None
        self._informed.clear()
        at = self._place(set(reading), snapshot, position)
        groups: defaultdict[Reason | None, set[S]] = defaultdict(set)
        for subscriber, reason in reading.items():
            groups[reason].add(subscriber)
        for reason, group in groups.items():
            yield Delivery(group, missed, at, snapshot, reason)

    # Reading what was missed

    def begin_resume(self) -> None:
        """Note that a read of the journal begins: keep what the feed brings meanwhile."""
        self._missed, self._resuming = self._resuming, {}
        self._missed_tail = []

    def abandon_resume(self) -> None:
        """Note that the read failed: its subscribers wait for another."""
        self._resuming = self._missed | self._resuming
        self._missed = {}
        self._missed_tail = None

    def refuse(self, cursor: Snapshot, reason: Reason) -> None:
        """Make the subscribers that resume from this cursor in the current read wait for a sync instead."""
        for subscriber in [one for one, its_cursor in self._missed.items() if its_cursor == cursor]:
            self.join(subscriber, reason)

    @property
    def cursors(self) -> set[Snapshot]:
        """The cursors of the subscribers for whom the journal is being read."""
        return set(self._missed.values())

    def resumed(self, now: Snapshot, steps: Sequence[Step], position: Snapshot) -> Iterator[Delivery[S]]:
        """Hand over what was missed until `now` while the feed is at `position`."""
        tail, self._missed_tail = self._missed_tail or (), None
        late = [step for step in tail if not step.is_in(now)]
        groups: defaultdict[Snapshot, set[S]] = defaultdict(set)
        for subscriber, cursor in self._missed.items():
            groups[cursor].add(subscriber)
        self._missed = {}
        for cursor, group in groups.items():
            missed = [step for step in steps if not step.is_in(cursor)] + late
            if reason := _reason(missed):
                self._waiting |= dict.fromkeys(group, reason)
            else:
                yield Delivery(group, missed, self._place(set(group), now, position))

    # Following

    def publish(self, steps: list[Step], position: Snapshot | None) -> Iterator[Delivery[S]]:
        """Deliver transactions, after which the feed is at `position`; None if more of the same batch follows."""
        for tail in (self._tail, self._missed_tail):
            if tail is not None:
                tail.extend(steps)
        followers = [(None, self._live), *self._ahead]
        self._live, self._ahead = set(), []
        all_alike: set[S] = set()
        for snapshot, group in followers:
            unseen = [step for step in steps if snapshot is None or not step.is_in(snapshot)]
            # Move the group first, because a subscriber may fall behind while it is sent to.
            if reason := _reason(unseen):
                # What precedes the reason is not sent either: only a whole batch leads to a committed moment.
                self._waiting |= dict.fromkeys(group, reason)
                continue
            if snapshot is None or (position is not None and position.covers(snapshot)):
                self._live |= group
            else:
                self._ahead.append((snapshot, group))
            if len(unseen) == len(steps):
                all_alike |= group
            elif group and unseen:
                yield Delivery(group, unseen, position)
        if all_alike and steps:
            yield Delivery(all_alike, steps, position)

    def _place(self, group: set[S], snapshot: Snapshot, position: Snapshot) -> Snapshot:
        """Place a group that holds the board as of `snapshot` plus the tail; return the moment it then holds."""
        if position.covers(snapshot):
            self._live |= group
            return position
        if group:
            self._ahead.append((snapshot, group))
        return snapshot

    def _places(self) -> Iterator[AbstractSet[S]]:
        yield from (self._held.keys(), self._waiting.keys(), self._reading.keys())
        yield from (self._resuming.keys(), self._missed.keys(), self._live, self._behind)
        yield from (group for _, group in self._ahead)


def bounds(snapshots: Iterable[Snapshot]) -> tuple[Snapshot, Snapshot]:
    """Return the oldest of the snapshots, which sees the least, and the newest."""
    first, *others = snapshots
    earliest = latest = first
    for other in others:
        if earliest.covers(other):
            earliest = other
        if not latest.covers(other):
            latest = other
    return earliest, latest


def _reason(steps: Iterable[Step]) -> Reason | None:
    return next((step.sync for step in steps if step.sync), None)
