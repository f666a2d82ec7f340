"""Counts that several workers share, in memory that each maps from an open file."""

from __future__ import annotations

import fcntl
import mmap

from relay.auth.rates import Rates
from relay.websocket.limits import Places


class SharedPlaces(Places):
    """The places of all workers. The number that each has taken is in shared memory.

    Each worker writes only its own number, and reads the others' under a lock, so the limit is exact.
    """

    def __init__(self, limit: int, file: int, workers: int, own: int = 0) -> None:
        super().__init__(limit)
        self._file = file
        self._taken_by = memoryview(mmap.mmap(file, workers * 8)).cast("Q")
        self._own = own

    @property
    def taken(self) -> int:
        """Number of places taken, by all workers."""
        return sum(self._taken_by)

    def take(self) -> bool:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            if free := self.taken < self._limit:
                self._taken_by[self._own] += 1
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return free

    def give_back(self) -> None:
        self._taken_by[self._own] -= 1

    def give_back_all(self, of: int) -> None:
        """Give back the places of a worker that has ended."""
        self._taken_by[of] = 0


class SharedRates(Rates):
    """The rates of all workers, in shared memory."""

    def __init__(self, per_client: int, total: int, file: int) -> None:
        super().__init__(per_client, total, memoryview(mmap.mmap(file, Rates.BYTES)))
        self._file = file

    def take(self, address: str, now: float) -> float:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            return super().take(address, now)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
