"""The clients of an endpoint: admitted connections, those in their handshake, and their counts."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final, Generic, Protocol, TypeVar

from relay.model.messages import CloseCode
from relay.websocket.limits import Addresses, Places
from relay.websocket.refusals import Refusals

TURNS: Final = 64
"""Number of turns in which connections are pinged. Ten thousand pings at once would delay changes by 250 ms."""

STOPPING: Final = "the relay is stopping"
TOO_MANY: Final = "too many connections"
TOO_MANY_OF_ADDRESS: Final = "too many connections of one address"

CLOSE_CODES: Final = frozenset({*CloseCode, *range(1000, 1016)})
"""The codes that are counted separately; a client may send thousands of others."""


class Connected(Protocol):
    """A connection that is counted. Compared by identity."""

    address: str


C = TypeVar("C", bound=Connected)


class Clients(Generic[C]):
    """Counts connections. `opened`, and `closed` by close code, are totals since the start."""

    def __init__(self, places: Places, addresses: Addresses, refusals: Refusals) -> None:
        self.opened = 0
        self.closed: Counter[str] = Counter()
        self.admits = True
        self._places = places
        self._addresses = addresses
        self._refusals = refusals
        self._names = itertools.count(1)
        self._shaking_hands: set[C] = set()
        self._turn_of: dict[C, set[C]] = {}
        self._turns = tuple(set[C]() for _ in range(TURNS))
        self._next_turn = itertools.cycle(self._turns)
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        """Number of admitted clients."""
        return len(self._turn_of)

    def __iter__(self) -> Iterator[C]:
        """Iterate over the admitted clients."""
        return iter(tuple(self._turn_of))

    def __contains__(self, connection: object) -> bool:
        """Whether a connection is admitted."""
        return connection in self._turn_of

    @property
    def all(self) -> Collection[C]:
        """All connections, including those in their handshake."""
        return {*self._turn_of, *self._shaking_hands}

    def turns(self) -> Iterator[Collection[C]]:
        """Yield the admitted clients in turns, forever."""
        return itertools.cycle(self._turns)

    def arrive(self, connection: C) -> None:
        """Count a new connection, which begins its handshake."""
        self._shaking_hands.add(connection)
        self._empty.clear()

    def enter(self, connection: C) -> str | None:
        """Admit a connection and return its name; None if there are too many, or the relay is stopping."""
        if reason := self._refusal(connection.address):
            self._refusals.add(reason, connection.address)
            return None
        self.opened += 1
        self._shaking_hands.discard(connection)
        turn = self._turn_of[connection] = next(self._next_turn)
        turn.add(connection)
        return f"client-{next(self._names)}"

    def _refusal(self, address: str) -> str | None:
        """Take a place for a connection; return the reason if there is none."""
        if not self.admits:
            return STOPPING
        if not self._addresses.take(address):
            return TOO_MANY_OF_ADDRESS
        if not self._places.take():
            self._addresses.give_back(address)
            return TOO_MANY
        return None

    def leave(self, connection: C, code: int | None) -> None:
        """Remove a connection that has ended."""
        self._shaking_hands.discard(connection)
        if turn := self._turn_of.pop(connection, None):
            turn.remove(connection)
            self._places.give_back()
            self._addresses.give_back(connection.address)
            self.closed[str(code) if code in CLOSE_CODES else "other"] += 1
        if not self._turn_of and not self._shaking_hands:
            self._empty.set()

    async def gone(self) -> None:
        """Wait until all connections have ended."""
        if self._turn_of or self._shaking_hands:
            await self._empty.wait()
