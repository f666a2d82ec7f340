"""Shares: of what there is a limited number of, nobody keeps what others need. Pure.

Rules:
- Where all is taken, one who comes crowds out the address that has the most, as long as that has two more than its
  own; else, at its own address, the subscriber that has the most, as long as that has two more than it has itself.
- What goes is what the fewest have, the latest first: what many share is the last to go.
- What several subscribers of an address have counts there once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import chain
from typing import Generic, TypeVar

from relay.hub.ports import Subscriber

T = TypeVar("T", bound=Hashable)


class Shares(Generic[T]):
    """What each subscriber has."""

    def __init__(self) -> None:
        # By address, and in the order in which somebody there took it.
        self._of: dict[str, dict[T, set[Subscriber]]] = {}

    def __len__(self) -> int:
        """Number of addresses that have something."""
        return len(self._of)

    def add(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber has something."""
        self._of.setdefault(subscriber.address, {}).setdefault(thing, set()).add(subscriber)

    def remove(self, subscriber: Subscriber, thing: T) -> None:
        """Note that a subscriber has something no longer."""
        things = self._of[subscriber.address]
        things[thing].remove(subscriber)
        if not things[thing]:
            del things[thing]
        if not things:
            del self._of[subscriber.address]

    def holders(self, thing: T) -> list[Subscriber]:
        """Return the subscribers that have something."""
        return [one for things in self._of.values() for one in things.get(thing, ())]

    def to_crowd_out(self, by: Subscriber) -> T | None:
        """Return what is to be taken from its holders for a subscriber that comes; None if it has its share."""
        things = self._of.get(address := self._fullest(by.address), {})
        numbers = Counter(chain.from_iterable(things.values()))
        greediest = max(reversed(numbers), key=numbers.__getitem__, default=by)
        if address == by.address and numbers[greediest] <= numbers[by] + 1:
            return None
        its = [thing for thing, holders in things.items() if greediest in holders]
        return min(reversed(its), key=lambda thing: len(things[thing]))

    def _fullest(self, own: str) -> str:
        """Return the address with the most, if that has two more than this one; else this one."""
        fullest = max(self._of, key=lambda address: len(self._of[address]), default=own)
        return fullest if len(self._of.get(fullest, ())) > len(self._of.get(own, ())) + 1 else own
