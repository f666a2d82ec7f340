"""Refusals: counted, and logged at a limited rate, with the reason and the client's address.

Rules:
- A reason is one of a few fixed texts, because it is the label of a metric. Text from strangers goes into `details`,
  and is cut.
- At most one line a second is logged for each reason, so that strangers cannot fill the disk. The next line has the
  number of `more` refusals.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Final

import structlog

log = structlog.get_logger()

LONGEST_DETAIL: Final = 200
"""Maximum number of characters logged of a stranger's text."""

CROWDED_OUT: Final = "crowded out"
"""There were too many pending connections, and this was the oldest one of the address with the most."""

RECENTLY_SECONDS: Final = 60.0
"""Time for which a refusal counts as recent."""


class Refusals:
    """Counts refusals, and logs them as the given event."""

    def __init__(self, event: str) -> None:
        self.counts: Counter[str] = Counter()
        self._event = event
        self._logged: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def add(self, reason: str, address: str = "", **details: object) -> None:
        """Count a refusal, and log it unless one for this reason was logged within the last second."""
        self.counts[reason] += 1
        now = self._last[reason] = time.monotonic()
        at, unlogged = self._logged.get(reason, (-math.inf, 0))
        if now - at < 1:
            self._logged[reason] = (at, unlogged + 1)
            return
        self._logged[reason] = (now, 0)
        fields: dict[str, object] = {name: str(value)[:LONGEST_DETAIL] for name, value in details.items()}
        if address:
            fields["address"] = address
        if unlogged:
            fields["more"] = unlogged
        log.warning(self._event, reason=reason, **fields)

    def recent(self, reason: str) -> bool:
        """Whether there was a refusal for this reason recently."""
        return time.monotonic() - self._last.get(reason, -math.inf) < RECENTLY_SECONDS
