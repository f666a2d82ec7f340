"""Snapshots: which transactions are visible. Pure; everything else is built on this.

A snapshot is what `pg_current_snapshot()` returns: `xmin:xmax:xip,xip,…`. Transactions below `xmin` have ended, those
from `xmax` on have not begun, and between the two, those in `xip` are still running. The relay's position in the
feed, the moment of a `board.sync` and a client's cursor are each a snapshot.

Rules:
- Snapshots of one server and epoch are totally ordered: of any two, one sees everything that the other sees.
- Transaction ids are Postgres's 64-bit ones. They never wrap, and say nothing about the order of commits: a lower id
  may commit later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_NOTATION: Final = re.compile(r"([0-9]{1,20}):([0-9]{1,20}):([0-9]{1,20}(?:,[0-9]{1,20})*)?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions are visible at one moment."""

    xmin: int
    xmax: int
    xip: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Parse Postgres's notation. Raises ValueError for anything else."""
        if not (match := _NOTATION.fullmatch(text)):
            raise ValueError(f"{text!r} is no snapshot: expected xmin:xmax:xip,…")
        xmin, xmax, xip = match.groups()
        running = frozenset(int(xid) for xid in xip.split(",")) if xip else frozenset()
        snapshot = cls(int(xmin), int(xmax), running)
        if not 0 < snapshot.xmin <= snapshot.xmax < 2**64 or any(
            not snapshot.xmin <= xid < snapshot.xmax for xid in running
        ):
            raise ValueError(f"{text!r} is no snapshot: its transaction ids are out of range")
        return snapshot

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.xip)))}"

    def sees(self, xid: int) -> bool:
        """Whether the transaction had ended by then; if it committed, it is visible."""
        return xid < self.xmax and xid not in self.xip

    def covers(self, other: Snapshot) -> bool:
        """Whether this snapshot sees everything that `other` sees."""
        return self.xmax >= other.xmax and not any(other.sees(xid) for xid in self.xip)
