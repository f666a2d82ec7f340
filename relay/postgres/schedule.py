"""When to read the journal again. Pure.

A notification is a hint: the journal is read at least every `READ_SECONDS` in any case. When many transactions
commit, the relay polls every few milliseconds and announces this in the database. Then the triggers do not notify,
which costs writers most. It does the same when commits wait for each other: transactions that notify commit one at a
time, so where a commit takes long, as with a slow disk or a distant standby, there are never many. All relays of a
database poll together.
"""

from __future__ import annotations

import math
from typing import Final

READ_SECONDS: Final = 1.0
"""Maximum interval between two reads of the journal, notified or not."""

BUSY_TRANSACTIONS: Final = 250
"""Transactions per second above which the relay polls, because reading them in groups costs less."""

BUSY_SECONDS: Final = 0.25
"""Approximate time over which transactions are counted."""

QUEUED_SECONDS: Final = 5.0
"""Time for which the relay polls after commits were found to wait for each other."""

POLLING_SECONDS: Final = 1.0
"""Time for which the relay promises to poll, each time."""

POLL_SECONDS: Final = 0.005
"""Interval between two polls."""

SLOW_POLL_SECONDS: Final = 0.05
"""Interval between two polls if transactions that did not notify may commit: because relays polled when they wrote
(most of them commit within `READ_SECONDS`), or because the triggers never notify."""


class PollSchedule:
    """When to read the journal again. Times are in seconds, of one clock that only goes forward.

    `silent`: the triggers never notify here.
    """

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._level = 0.0
        self._last_read = -math.inf
        self._polled_until = -math.inf
        self._asked = -math.inf
        self._queued = -math.inf

    def has_read(self, now: float, committed: int, polled: float) -> None:
        """Note that a read found `committed` transactions, and that relays poll for `polled` more seconds."""
        self._level = self._level * math.exp((self._last_read - now) / BUSY_SECONDS) + committed
        self._last_read = now
        if polled > 0:
            self._polled_until = now + polled

    def must_ask(self, now: float) -> bool:
        """Whether to find out if commits wait for each other. They do not for us while nobody notifies us."""
        return not self._silent and now >= self._polled_until and now - self._asked >= BUSY_SECONDS

    def has_asked(self, now: float, *, queued: bool) -> None:
        """Note whether commits wait for each other."""
        self._asked = now
        if queued:
            self._queued = now

    def must_poll(self, now: float) -> bool:
        """Whether to promise again that this relay polls."""
        busy = self._level > BUSY_TRANSACTIONS * BUSY_SECONDS or now - self._queued < QUEUED_SECONDS
        return busy and self._polled_until - now < POLLING_SECONDS / 2

    def polls(self, now: float) -> None:
        """Note that this relay has promised to poll."""
        self._polled_until = max(self._polled_until, now + POLLING_SECONDS)

    def wait(self, now: float) -> float:
        """Return how long to wait for a notification, in seconds."""
        if now < self._polled_until:
            return POLL_SECONDS
        if self._silent or now < self._polled_until + READ_SECONDS:
            return SLOW_POLL_SECONDS
        return READ_SECONDS
