"""Rate limits, by token buckets that are given the time. Pure."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, Protocol

from relay.auth.addresses import rate_key


class Cells(Protocol):
    """The two numbers of a bucket: the remaining tokens, and the time of that figure."""

    def __getitem__(self, index: int, /) -> float: ...

    def __setitem__(self, index: int, value: float, /) -> None: ...


class Bucket:
    """A token bucket, initially full, and refilled at `rate` tokens a second up to its size.

    Times are seconds of a clock that only goes forward and is never 0. `cells` may be in shared memory.
    """

    __slots__ = ("_cells", "_rate", "_size")

    def __init__(self, rate: float, size: float, cells: Cells | None = None) -> None:
        self._rate = rate
        self._size = size
        self._cells: Cells = [0.0, 0.0] if cells is None else cells

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token: 0 if there is one."""
        left, as_of = self._cells[0], self._cells[1]
        left = self._size if as_of == 0.0 else min(self._size, left + max(now - as_of, 0.0) * self._rate)
        self._cells[0], self._cells[1] = left, now
        return 0.0 if left >= 1 else (1 - left) / self._rate

    def spend(self, tokens: int = 1) -> None:
        """Take tokens. If there are fewer, the next one takes longer."""
        self._cells[0] -= tokens


class Rates:
    """Limits of connections a minute, from each address and in total; 0 means no limit.

    The buckets are in a fixed piece of memory, which several processes may share. Addresses whose hashes have the
    same place share a bucket; without the key in the first bytes of the memory, nobody can predict which do.
    """

    PLACES: Final = 65_536
    BYTES: Final = 16 * (PLACES + 2)
    KEY_BYTES: Final = 16
    PERIOD_SECONDS: Final = 60.0

    def __init__(self, per_client: int, total: int, memory: memoryview | None = None) -> None:
        self._per_client = per_client
        self._total = total
        if memory is None:
            memory = memoryview(bytearray(self.BYTES))
            memory[: self.KEY_BYTES] = secrets.token_bytes(self.KEY_BYTES)
        self._key = bytes(memory[: self.KEY_BYTES])
        self._cells = memory.cast("d")

    def take(self, address: str, now: float) -> float:
        """Count a connection and return 0; or return the seconds until there may be one, and do not count it."""
        buckets = self._buckets(address)
        wait = _longest_wait(buckets, now)
        if not wait:
            for bucket in buckets:
                bucket.spend()
        return wait

    def wait(self, address: str, now: float) -> float:
        """Return the seconds until there may be a connection."""
        return _longest_wait(self._buckets(address), now)

    def _buckets(self, address: str) -> list[Bucket]:
        limited = ((self._place(address), self._per_client), (1, self._total))
        return [self._bucket(place, limit) for place, limit in limited if limit]

    def _bucket(self, place: int, limit: int) -> Bucket:
        return Bucket(limit / self.PERIOD_SECONDS, float(limit), self._cells[2 * place : 2 * place + 2])

    def _place(self, address: str) -> int:
        found = hashlib.blake2b(rate_key(address).encode(), key=self._key, digest_size=4).digest()
        return 2 + int.from_bytes(found) % self.PLACES


def _longest_wait(buckets: list[Bucket], now: float) -> float:
    return max((bucket.wait(now) for bucket in buckets), default=0.0)
