"""What ends one session after another, and how long to wait before the next. Pure.

Rules:
- A session that ends as the one before it did was not well in between, whatever it said of itself: the fault recurs
  until a session has lasted for `CALM_SECONDS`. So health does not flap with a fault that comes at once each time.
- Numbers do not tell faults apart: a sequence or a port differs each time, and the fault is the same.
"""

from __future__ import annotations

import math
import re
from typing import Final

CALM_SECONDS: Final = 5.0
"""A session that has lasted so long is well."""

_NUMBER: Final = re.compile(r"\d+")


class Faults:
    """The faults of sessions that follow each other. Times are in seconds, of one clock that only goes forward."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._began = math.inf
        self._recurs = False

    def begin(self, now: float) -> None:
        """Note that a session begins."""
        self._began = now

    def end(self, now: float, fault: str) -> bool:
        """Note why it ended; return whether this is anything but the same fault again, soon after the last time."""
        calm = now - self._began >= CALM_SECONDS
        self._recurs = not calm and self._last is not None and _alike(fault, self._last)
        self._last, self._began = fault, math.inf
        return not self._recurs

    def recurring(self, now: float) -> str | None:
        """Say in one line what has ended one session after another, if nothing shows yet that it no longer does."""
        if not self._recurs or now - self._began >= CALM_SECONDS:
            return None
        return f"this comes again and again: {self._last}"


def _alike(one: str, other: str) -> bool:
    return _NUMBER.sub("#", one) == _NUMBER.sub("#", other)
