"""Shares: a fair division of things of which there is a limited number. Pure.

Rules:
- When everything is taken, a newcomer takes from the address that has the most, if that has at least two more than
  the newcomer's. Otherwise it takes from the subscriber of its own address that has the most, if that has at least
  two more than itself. Otherwise it gets nothing.
- The thing taken is the one with the fewest holders, among these the latest: what many share goes last.
- A thing that several subscribers of an address have counts once for the address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import chain
from typing import Generic, TypeVar

from relay.hub.ports import Subscriber

T = TypeVar("T", bound=Hashable)


class Shares(Generic[T]):
    """The things that each subscriber has."""

    def __init__(self) -> None:
        # By address, in the order in which somebody there first took a thing.
        self._of: dict[str, dict[T, set[Subscriber]]] = {}

    def __len__(self) -> int:
        """Number of addresses that have something."""
        return len(self._of)

    def add(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber has a thing."""
        self._of.setdefault(subscriber.address, {}).setdefault(thing, set()).add(subscriber)

    def remove(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber no longer has a thing."""
        things = self._of[subscriber.address]
        things[thing].remove(subscriber)
        if not things[thing]:
            del things[thing]
        if not things:
            del self._of[subscriber.address]

    def holders(self, thing: T) -> list[Subscriber]:
        """Return the subscribers that have a thing."""
        return [one for things in self._of.values() for one in things.get(thing, ())]

    def to_crowd_out(self, by: Subscriber) -> T | None:
        """Return the thing to take from its holders in favour of a subscriber; None if it has its share."""
        things = self._of.get(address := self._fullest(by.address), {})
        numbers = Counter(chain.from_iterable(things.values()))
        greediest = max(reversed(numbers), key=numbers.__getitem__, default=by)
        if address == by.address and numbers[greediest] <= numbers[by] + 1:
            return None
        its = [thing for thing, holders in things.items() if greediest in holders]
        return min(reversed(its), key=lambda thing: len(things[thing]))

    def _fullest(self, own: str) -> str:
        """Return the address with the most, if it has at least two more than this one; otherwise this one."""
        fullest = max(self._of, key=lambda address: len(self._of[address]), default=own)
        return fullest if len(self._of.get(fullest, ())) > len(self._of.get(own, ())) + 1 else own
