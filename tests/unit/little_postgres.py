"""A little Postgres: transactions that begin and end in any order, and the snapshots it would print."""

from __future__ import annotations

from relay.model.snapshot import Snapshot


class LittlePostgres:
    """Transactions, numbered as they begin; `committed` has them in the order of their commits."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self.committed: list[int] = []
        self.ended = 0
        self._next = 10
        self._xmax = 10  # one more than the highest that is over, as in Postgres

    def begin(self) -> int:
        xid = self._next
        self._next += 1
        self.running.append(xid)
        return xid

    def commit(self, xid: int) -> None:
        self.committed.append(xid)
        self.roll_back(xid)

    def roll_back(self, xid: int) -> None:
        self.running.remove(xid)
        self.ended += 1
        self._xmax = max(self._xmax, xid + 1)

    def snapshot(self) -> Snapshot:
        xip = frozenset(xid for xid in self.running if xid < self._xmax)
        return Snapshot(min(xip, default=self._xmax), self._xmax, xip)
