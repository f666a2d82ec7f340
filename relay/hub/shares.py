"""Shares: a fair division of things of which there is a limited number. Pure.

Rules:
- When everything is taken, a newcomer takes from the address that has the most, if that has at least two more than
  the newcomer's. Otherwise it takes from the subscriber of its own address that has the most, if that has at least
  two more than itself. Otherwise it gets nothing.
- The thing taken is the one with the fewest holders, among these the latest: what many share goes last.
- A thing that several subscribers of an address have counts once for the address.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from relay.hub.ports import Subscriber

T = TypeVar("T", bound=Hashable)


class Shares(Generic[T]):
    """The things that each subscriber has."""

    def __init__(self) -> None:
        # By address, in the order in which somebody there first took a thing.
        self._of: dict[str, Share[T]] = {}

    def __len__(self) -> int:
        """Number of addresses that have something."""
        return len(self._of)

    def add(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber has a thing."""
        self._of.setdefault(subscriber.address, Share()).add(subscriber, thing)

    def remove(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber no longer has a thing."""
        share = self._of[subscriber.address]
        share.remove(subscriber, thing)
        if not share.holders:
            del self._of[subscriber.address]

    def holders(self, thing: T) -> list[Subscriber]:
        """Return the subscribers that have a thing."""
        return [one for share in self._of.values() for one in share.holders.get(thing, ())]

    def to_crowd_out(self, by: Subscriber) -> T | None:
        """Return the thing to take from its holders in favour of a subscriber; None if it has its share."""
        if (share := self._of.get(address := self._fullest(by.address))) is None:
            return None
        greediest = share.greediest()
        if address == by.address and share.number(greediest) <= share.number(by) + 1:
            return None
        return share.least_shared(greediest)

    def _fullest(self, own: str) -> str:
        """Return the address with the most, if it has at least two more than this one; otherwise this one."""
        fullest = max(self._of, key=self._number, default=own)
        return fullest if self._number(fullest) > self._number(own) + 1 else own

    def _number(self, address: str) -> int:
        return len(self._of[address].holders) if address in self._of else 0


class Share(Generic[T]):
    """The things of one address, from both sides, so that a refusal costs no more for all that is taken."""

    __slots__ = ("_things", "holders")

    def __init__(self) -> None:
        self.holders: dict[T, set[Subscriber]] = {}
        # By subscriber, in the order in which it took them.
        self._things: dict[Subscriber, dict[T, None]] = {}

    def add(self, subscriber: Subscriber, thing: T) -> None:
        self.holders.setdefault(thing, set()).add(subscriber)
        self._things.setdefault(subscriber, {})[thing] = None

    def remove(self, subscriber: Subscriber, thing: T) -> None:
        self.holders[thing].remove(subscriber)
        if not self.holders[thing]:
            del self.holders[thing]
        del self._things[subscriber][thing]
        if not self._things[subscriber]:
            del self._things[subscriber]

    def number(self, subscriber: Subscriber) -> int:
        """Return the number of a subscriber's things."""
        return len(self._things.get(subscriber, ()))

    def greediest(self) -> Subscriber:
        """Return the subscriber that has the most, the latest among equals."""
        return max(reversed(self._things), key=self.number)

    def least_shared(self, subscriber: Subscriber) -> T:
        """Return the thing of a subscriber that has the fewest holders, the latest among equals."""
        return min(reversed(self._things[subscriber]), key=lambda thing: len(self.holders[thing]))
