"""Limits: what clients may take, from the moment a connection is accepted. Pure.

A connection costs a file and some memory long before its client has said anything, so it is counted from then on.
Nothing a client says is remembered without a bound.

Rules:
- A connection that has not been let in yet waits among the `Arrivals`. When there are too many of them, the oldest of
  the address that has most of them goes: a stranger with many connections crowds out its own, and a client that comes
  with one is heard.
- A connection that has been let in takes one of the `Places`, and one of those of its address, until it ends.
- `Questions` about boards wait in turns, one a client and board, however often it is asked: the last one counts. So
  as many wait as boards may be followed, and a client that asks again and again costs no more than any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from relay.auth.addresses import rate_key

A = TypeVar("A", bound=Hashable)
C = TypeVar("C")
G = TypeVar("G")

OPEN_SECONDS: Final = 10.0
"""Timeout of a handshake."""

SEND_BUFFER_BYTES: Final = 1024 * 1024
"""Maximum that waits for a client, beside the largest buffer that it was sent: were a large board's sync counted, the
next change would call for another."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take, and all together. 0 or None is no limit."""

    send_buffer: int = SEND_BUFFER_BYTES
    all_buffers: int | None = None
    messages_a_second: int = 0
    boards: int | None = None
    connections_of_address: int = 0
    handshake_seconds: float = OPEN_SECONDS
    idle_seconds: float = 0.0


class Memory:
    """Bytes that all clients hold together of something, and how many there may be; None is no limit."""

    __slots__ = ("_limit", "used")

    def __init__(self, limit: int | None) -> None:
        self.used = 0
        self._limit = limit

    @property
    def is_over(self) -> bool:
        """Whether there are too many."""
        return self._limit is not None and self.used > self._limit


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


class Addresses:
    """How many may be connected from each address at once; 0 is no limit. What has no address is not counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Count one more; false if there are too many."""
        key = rate_key(address)
        if self._limit and key and self._taken[key] >= self._limit:
            return False
        self._taken[key] += 1
        return True

    def give_back(self, address: str) -> None:
        """Count one less."""
        key = rate_key(address)
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]


class Questions(Generic[C, G]):
    """Which clients wait for an answer about which boards, and what they are to be judged by."""

    def __init__(self) -> None:
        self._of: dict[C, dict[str, G]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def ask(self, client: C, board: str, by: G) -> None:
        """Have a question wait, in place of one like it."""
        self._of.setdefault(client, {})[board] = by

    def withdraw(self, client: C, board: str) -> None:
        """Ask no more about a board; without a question, this does nothing."""
        boards = self._of.get(client, {})
        boards.pop(board, None)
        if not boards:
            self._of.pop(client, None)

    def forget(self, client: C) -> None:
        """Ask no more for a client that is gone."""
        self._of.pop(client, None)

    def take(self, most: int) -> list[tuple[C, str, G]]:
        """Take the questions that have waited for longest, at most so many."""
        taken: list[tuple[C, str, G]] = []
        while self._of and len(taken) < most:
            client, boards = next(iter(self._of.items()))
            while boards and len(taken) < most:
                board = next(iter(boards))
                taken.append((client, board, boards.pop(board)))
            if not boards:
                del self._of[client]
        return taken
