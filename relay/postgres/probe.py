"""The probe: a change that concerns nobody, written to prove that changes come through. Pure.

It is back when its notification has arrived and its entry has been passed on, with everything committed before it.
That proves that connections, triggers, journal and hub work.
"""

from __future__ import annotations

import secrets
from typing import Final, Literal, get_args

Way = Literal["notification", "journal"]
"""How a probe comes back."""

WAYS: Final[tuple[Way, ...]] = get_args(Way)


class Probe:
    """The probe of one feed, written again and again. Times are in seconds, of one clock that only goes forward."""

    def __init__(self, now: float) -> None:
        self.took: float | None = None
        self._prefix = secrets.token_hex(6)
        self._number = 0
        self._written = now
        self._ways: set[Way] = set()
        # Since when a probe has been due or under way, None if the last one is back; whether one has been written
        # since then, and the ways in which any has come back since then.
        self._since: float | None = now
        self._was_written = False
        self._ways_since: set[Way] = set()

    def due(self, now: float) -> None:
        """Note that a probe is due: from now on it is awaited."""
        if self._since is None:
            self._since, self._was_written, self._ways_since = now, False, set()

    def write(self, now: float) -> str:
        """Return the label of a new probe, which replaces one that is not back."""
        self._number += 1
        self._written = now
        self._was_written = True
        self._ways = set()
        return f"{self._prefix}-{self._number}"

    def returned(self, label: str, way: Way, now: float) -> float | None:
        """Note that a probe came back in one way; once it has in both, return the time that it took, in seconds."""
        if self._since is None or label != f"{self._prefix}-{self._number}":
            return None
        self._ways.add(way)
        self._ways_since.add(way)
        if len(self._ways) < len(WAYS):
            return None
        self._since = None
        self.took = now - self._written
        return self.took

    def problem(self, now: float, budget: float) -> str | None:
        """Say in one line what has not come back in time; None if nothing is late."""
        if self._since is None or now - self._since <= budget:
            return None
        waited = f"no probe has come back for {now - self._since:.0f} seconds"
        if not self._was_written:
            return f"{waited}: none could be written: does Postgres answer?"
        if "journal" not in self._ways_since:
            return f"{waited}: the journal is not read in time"
        return f"{waited}: no notification comes: is there a transaction pooler in between?"
