"""How many may be connected, and how many may be on their way in. Pure.

A connection costs a file and some memory from the moment it is accepted, long before its client has said anything.
So it is counted from then on.

Rules:
- A connection that has not been let in yet waits among the `Arrivals`. When there are too many of them, the oldest of
  the address that has most of them goes: a stranger with many connections crowds out its own, and whoever comes with
  one is heard.
- A connection that has been let in takes one of the `Places`, until it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

A = TypeVar("A", bound=Hashable)


class Arrivals(Generic[A]):
    """Connections on their way in, the oldest first; at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._key_of: dict[A, str] = {}
        # The order of a dict is that of insertion: of arrivals, and of the addresses that have any.
        self._of_key: dict[str, dict[A, None]] = {}

    def __len__(self) -> int:
        return len(self._key_of)

    def __iter__(self) -> Iterator[A]:
        return iter(self._key_of)

    @property
    def full(self) -> bool:
        """Whether one more would be one too many."""
        return len(self) >= self._most

    def add(self, arrival: A, key: str) -> None:
        """Count one in, under the key of its address."""
        self._key_of[arrival] = key
        self._of_key.setdefault(key, {})[arrival] = None

    def remove(self, arrival: A) -> None:
        """Count one out; one that is not counted is no error."""
        if (key := self._key_of.pop(arrival, None)) is None:
            return
        del self._of_key[key][arrival]
        if not self._of_key[key]:
            del self._of_key[key]

    def move(self, arrival: A, key: str) -> None:
        """Count one under another key, if it is counted still."""
        if arrival in self._key_of:
            self.remove(arrival)
            self.add(arrival, key)

    def remove_if(self, over: Callable[[A], bool]) -> None:
        """Count out those that are over."""
        for arrival in [each for each in self if over(each)]:
            self.remove(arrival)

    def crowd_out(self) -> A | None:
        """Count out the oldest of the fullest address, and return it; None if there is nobody."""
        if not self._of_key:
            return None
        fullest = max(self._of_key.values(), key=len)
        oldest = next(iter(fullest))
        self.remove(oldest)
        return oldest


class Places:
    """How many may be connected at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self) -> bool:
        """Take a place for one more; false if there is none."""
        free = self._taken < self._limit
        self._taken += free
        return free

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1
