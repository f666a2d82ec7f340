"""Limits: what clients may use, from the moment a connection is accepted. Pure.

A connection costs a file and some memory long before its client has sent anything, so it counts from then on.
Nothing that a client sends is kept without a limit.

Rules:
- A connection that is not admitted yet is one of the `Arrivals`. When there are too many, the oldest one of the
  address with the most is closed: a stranger with many connections crowds out its own, and a client with a single
  one is served.
- An admitted connection takes one of the `Places`, and one of its address's, until it ends.
- At most one of the `Questions` waits per client and board; a new one replaces it. So the number is limited by the
  boards that may be followed, and a client that asks again and again costs no more than any other.
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
"""Maximum backlog of a client, in addition to the largest buffer that it was sent. If the sync of a large board
counted, the next change would cause another sync."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, or all clients together, may use. 0 or None means no limit."""

    send_buffer: int = SEND_BUFFER_BYTES
    all_buffers: int | None = None
    messages_a_second: int = 0
    boards: int | None = None
    connections_of_address: int = 0
    handshake_seconds: float = OPEN_SECONDS
    idle_seconds: float = 0.0


class Memory:
    """Counts the bytes of something over all clients, with a limit; None means no limit."""

    __slots__ = ("_limit", "used")

    def __init__(self, limit: int | None) -> None:
        self.used = 0
        self._limit = limit

    @property
    def is_over(self) -> bool:
        """Whether there are too many bytes."""
        return self._limit is not None and self.used > self._limit


class Arrivals(Generic[A]):
    """Connections that are not admitted yet, the oldest first, up to a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._key_of: dict[A, str] = {}
        # Dicts keep the order of insertion, so the oldest arrival of an address is its first.
        self._of_key: dict[str, dict[A, None]] = {}

    def __len__(self) -> int:
        return len(self._key_of)

    def __iter__(self) -> Iterator[A]:
        return iter(self._key_of)

    @property
    def full(self) -> bool:
        """Whether there is no room for one more."""
        return len(self) >= self._most

    def add(self, arrival: A, key: str) -> None:
        """Add a connection under the key of its address."""
        self._key_of[arrival] = key
        self._of_key.setdefault(key, {})[arrival] = None

    def remove(self, arrival: A) -> None:
        """Remove a connection, if it is counted."""
        if (key := self._key_of.pop(arrival, None)) is None:
            return
        del self._of_key[key][arrival]
        if not self._of_key[key]:
            del self._of_key[key]

    def move(self, arrival: A, key: str) -> None:
        """Count a connection under another key, if it is counted."""
        if arrival in self._key_of:
            self.remove(arrival)
            self.add(arrival, key)

    def remove_if(self, over: Callable[[A], bool]) -> None:
        """Remove those that have ended."""
        for arrival in [each for each in self if over(each)]:
            self.remove(arrival)

    def crowd_out(self) -> A | None:
        """Remove and return the oldest connection of the address with the most; None if there is none."""
        if not self._of_key:
            return None
        fullest = max(self._of_key.values(), key=len)
        oldest = next(iter(fullest))
        self.remove(oldest)
        return oldest


class Places:
    """A limited number of places for connections."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    def take(self) -> bool:
        """Take a place; return False if there is none."""
        free = self._taken < self._limit
        self._taken += free
        return free

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1


class Addresses:
    """Places for connections of each address; 0 means no limit. Peers without an address have no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Take a place; return False if the address has none left."""
        key = rate_key(address)
        if self._limit and key and self._taken[key] >= self._limit:
            return False
        self._taken[key] += 1
        return True

    def give_back(self, address: str) -> None:
        """Give a place back."""
        key = rate_key(address)
        self._taken[key] -= 1
        if not self._taken[key]:
            del self._taken[key]


class Questions(Generic[C, G]):
    """Questions of clients about boards, each with the grant to decide by."""

    def __init__(self) -> None:
        self._of: dict[C, dict[str, G]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def ask(self, client: C, board: str, by: G) -> None:
        """Add a question, or replace the one about the same board."""
        self._of.setdefault(client, {})[board] = by

    def withdraw(self, client: C, board: str) -> None:
        """Remove the question about a board, if there is one."""
        boards = self._of.get(client, {})
        boards.pop(board, None)
        if not boards:
            self._of.pop(client, None)

    def forget(self, client: C) -> None:
        """Remove the questions of a client that has disconnected."""
        self._of.pop(client, None)

    def take(self, most: int) -> list[tuple[C, str, G]]:
        """Remove and return up to `most` questions, client by client, those that have waited longest first."""
        taken: list[tuple[C, str, G]] = []
        while self._of and len(taken) < most:
            client, boards = next(iter(self._of.items()))
            while boards and len(taken) < most:
                board = next(iter(boards))
                taken.append((client, board, boards.pop(board)))
            if not boards:
                del self._of[client]
        return taken
