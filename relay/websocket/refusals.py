"""Refusals: each is counted, and logged at a limited rate, with its reason and the address it came from.

Rules:
- A reason is one of a few fixed texts, for it is a label of a metric. Text of strangers goes into `details`, cut.
- Of each reason, one line a second is logged at most, lest strangers fill the disk; the next says how many `more`
  there were.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Final

import structlog

log = structlog.get_logger()

LONGEST_DETAIL: Final = 200
"""Maximum number of characters in a log line of what a stranger sent."""

CROWDED_OUT: Final = "crowded out"
"""Too many connections were on their way in, and this one was the oldest of the fullest address."""

RECENTLY_SECONDS: Final = 60.0
"""Time for which a refusal counts as recent."""


class Refusals:
    """Counts and logs them, as lines of the given event."""

    def __init__(self, event: str) -> None:
        self.counts: Counter[str] = Counter()
        self._event = event
        self._logged: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def add(self, reason: str, address: str = "", **details: object) -> None:
        """Count one, and log it unless one like it was logged within the last second."""
        self.counts[reason] += 1
        now = self._last[reason] = time.monotonic()
        at, unsaid = self._logged.get(reason, (-math.inf, 0))
        if now - at < 1:
            self._logged[reason] = (at, unsaid + 1)
            return
        self._logged[reason] = (now, 0)
        fields: dict[str, object] = {name: str(value)[:LONGEST_DETAIL] for name, value in details.items()}
        if address:
            fields["address"] = address
        if unsaid:
            fields["more"] = unsaid
        log.warning(self._event, reason=reason, **fields)

    def recent(self, reason: str) -> bool:
        """Whether one was refused for this reason a short while ago."""
        return time.monotonic() - self._last.get(reason, -math.inf) < RECENTLY_SECONDS
