"""The pauses between attempts, and whether the same fault recurs. Pure.

Rules:
- Pauses double, each with jitter, until an attempt has lasted for `CALM_SECONDS`: an attempt that fails earlier does
  not count as a success, whatever it reported.
- A fault recurs if the previous attempt ended with the same one, until an attempt has lasted that long. So health
  does not flap if the same fault comes back at once each time.
- Faults that differ only in numbers, such as a sequence or a port, are the same.
"""

from __future__ import annotations

import math
import random
import re
from typing import Final

FIRST_SECONDS: Final = 0.25
"""Maximum pause after the first fault."""

LONGEST_SECONDS: Final = 10.0
"""Maximum pause."""

CALM_SECONDS: Final = 5.0
"""Duration from which an attempt counts as a success."""

_NUMBER: Final = re.compile(r"\d+")


class Backoff:
    """The pauses between successive attempts. Times are seconds of a clock that only goes forward."""

    def __init__(self, longest: float = LONGEST_SECONDS) -> None:
        self._pause = FIRST_SECONDS
        self._longest = longest
        self._last: str | None = None
        self._began = math.inf
        self._recurs = False

    def begin(self, now: float) -> None:
        """Note that an attempt begins."""
        self._began = now

    def fail(self, now: float, fault: str) -> float:
        """Note why the attempt ended; return how many seconds to wait before the next."""
        calm = now - self._began >= CALM_SECONDS
        self._recurs = not calm and self._last is not None and _alike(fault, self._last)
        self._last, self._began = fault, math.inf
        if calm:
            self._pause = FIRST_SECONDS
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        self._pause = min(self._pause * 2, self._longest)
        return pause

    def recurring(self, now: float) -> str | None:
        """Return in one line the fault that recurs; None if none does."""
        if not self._recurs or now - self._began >= CALM_SECONDS:
            return None
        return f"this comes again and again: {self._last}"


def _alike(one: str, other: str) -> bool:
    return _NUMBER.sub("#", one) == _NUMBER.sub("#", other)
