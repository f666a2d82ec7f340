"""How far a feed has come, and how it proves that changes come through it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from typing import Final

from relay.model.status import Histogram
from relay.postgres.probe import Probe, Way
from relay.postgres.session import Session

CATCH_UP_SECONDS: Final = 5.0
"""Time that a stopping relay takes at most to pass on what was committed before."""

PROBE_SECONDS: Final = 2.0
"""Interval between probes while others write, too."""

IDLE_PROBE_SECONDS: Final = 300.0
"""Interval between probes while nobody else writes, so that an idle database stays idle."""


class Progress:
    """What has been passed on, and who waits for that.

    `transactions` and `notifications` count what was received, and `skipped` roughly the transactions that did not
    notify. `probe_times` is how long probes took.
    """

    def __init__(self) -> None:
        self.probe_times = Histogram()
        self.transactions = self.notifications = self.skipped = 0
        self.probe = Probe(time.monotonic())
        # When the last read whose changes have been passed on began; and who waits for a later one, since when.
        self.read_at = time.monotonic()
        self._waiting: list[tuple[float, asyncio.Future[bool]]] = []
        self._probe_wanted = asyncio.Event()
        # Set when others write, too.
        self._active = asyncio.Event()

    async def catch_up(self) -> bool:
        """Wait until everything that is committed now has been passed on; return false if that takes too long."""
        caught_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((time.monotonic(), caught_up))
        self._probe_wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                return await caught_up
        return False

    def has_read(self, began: float, committed: int, probes: Sequence[str]) -> None:
        """Note that everything committed before a read began has been passed on, including these probes."""
        self.transactions += committed
        if committed > len(probes):
            self._active.set()
        self.read_at = began
        self._note(probes, "journal")
        self._end_waiting(began, caught_up=True)

    def notified(self, probes: Sequence[str | None]) -> None:
        """Note the notifications since the last read: for each the label of its probe, or None."""
        self.notifications += len(probes)
        self.skipped = max(self.skipped, self.transactions - self.notifications)
        self._note(filter(None, probes), "notification")

    def stopped(self) -> None:
        """Note that nothing will be passed on any more."""
        self._end_waiting(math.inf, caught_up=False)

    async def run(self, session: Session) -> None:
        """Write probes for one session."""
        while True:
            self.probe.due(time.monotonic())
            label, notified = await session.write_probe(lambda: self.probe.write(time.monotonic()))
            if not notified:
                self._note([label], "notification")
            await self._until_probe_is_due()

    async def _until_probe_is_due(self) -> None:
        """Wait until the next probe is due: soon if others write too, or if one is wanted."""
        for event, seconds in ((self._probe_wanted, PROBE_SECONDS), (self._active, IDLE_PROBE_SECONDS)):
            if self._probe_wanted.is_set():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        self._probe_wanted.clear()
        self._active.clear()

    def _note(self, probes: Iterable[str], way: Way) -> None:
        for label in probes:
            if (took := self.probe.returned(label, way, time.monotonic())) is not None:
                self.probe_times = self.probe_times.observe(took)

    def _end_waiting(self, until: float, *, caught_up: bool) -> None:
        for asked, waiting in self._waiting:
            if asked <= until and not waiting.done():
                waiting.set_result(caught_up)
        self._waiting = [(asked, waiting) for asked, waiting in self._waiting if not waiting.done()]
