"""Follows the journal for one session, and passes on what it finds.

Rules:
- While the journal is full because a transaction stays open, clients get their boards every `PAUSED_SECONDS`.
- While a batch is passed on in parts, nothing else is. If it is interrupted, clients have a part of it and must get
  their boards again.
- Postgres never waits for a client: the sink takes everything at once, or pauses the feed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from relay.hub.ports import Sink
from relay.model.cursor import Reason
from relay.model.snapshot import Snapshot
from relay.model.transaction import Transaction
from relay.postgres.faults import FeedError
from relay.postgres.journal import Batch
from relay.postgres.position import Position
from relay.postgres.progress import Progress
from relay.postgres.schedule import POLLING_SECONDS, PollSchedule
from relay.postgres.session import Session

log = structlog.get_logger()

SHAPE_SECONDS: Final = 1.0
"""Interval at which the shape of the watched tables is compared."""

PAUSED_SECONDS: Final = 5.0
"""Interval at which clients are sent their boards while journalling is paused."""


class Flow:
    """Controls when something may be passed to the sink. It outlives sessions."""

    def __init__(self) -> None:
        self.between_batches = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()

    def pause(self) -> None:
        """Read no more of the journal until `go_on`."""
        self._open.clear()

    def go_on(self) -> None:
        """Read the journal again."""
        self._open.set()

    async def until_open(self) -> None:
        """Wait until the sink takes more."""
        await self._open.wait()


class Follower:
    """Follows the journal for one session.

    `report` is called after each read: with the problem that keeps changes from being shown, in one line, or None.
    """

    def __init__(
        self,
        session: Session,
        sink: Sink,
        position: Position,
        flow: Flow,
        progress: Progress,
        report: Callable[[str | None], None],
    ) -> None:
        self._session = session
        self._sink = sink
        self._position = position
        self._flow = flow
        self._progress = progress
        self._report = report

    async def begin(self) -> None:
        """Continue from the position if the journal has what follows it, else from now, and tell clients why."""
        session = self._session
        await session.refresh()
        epoch, shaped = await session.epoch()
        now, horizon, paused = await session.journal.head()
        if paused:
            await session.end_pause()
            now, horizon, _ = await session.journal.head()
        if lost := self._position.begin(epoch, now, horizon, shaped=shaped, paused=paused):
            log.warning("feed.continuity_lost", reason=lost)
        await session.read_vitals()
        await session.poll_for(0)  # so that triggers notify from now on
        await self._begin_sink(lost)
        self._report(session.watches.problem)

    async def run(self) -> None:
        """Read the journal until cancelled. Raises FeedError or psycopg.Error."""
        session, clock = self._session, asyncio.get_running_loop()
        schedule = PollSchedule(silent=session.silent)
        checked, compared = clock.time(), None
        while True:
            began = time.monotonic()
            async with self._flow.between_batches:
                last = await self._read_batch()
            self._progress.has_read(began, last.committed, session.journal.probes())
            schedule.has_read(clock.time(), last.committed, last.polled)
            if schedule.must_ask(clock.time()):
                schedule.has_asked(clock.time(), queued=await session.commits_wait())
            if schedule.must_poll(clock.time()):
                await session.poll_for(POLLING_SECONDS)
                schedule.polls(clock.time())
            # Without a commit, no shape can have changed. So an idle database stays idle.
            if clock.time() - checked >= SHAPE_SECONDS and self._position.snapshot != compared:
                checked, compared = clock.time(), self._position.snapshot
                await self._check_shape("schema_changed")
            self._report(session.watches.problem)
            if last.paused:
                await asyncio.sleep(PAUSED_SECONDS)
            self._progress.notified(await session.notified(schedule.wait(clock.time())))

    async def _read_batch(self) -> Batch:
        """Pass on what is new; return its last part, which is `paused` if journalling still is."""
        async with contextlib.aclosing(self._session.journal.since(self._position.snapshot)) as batches:
            async for batch in batches:
                if batch.paused:
                    resumed = await self._skip_pause()
                    return replace(batch, transactions=None, committed=0, polled=0.0, paused=not resumed)
                if not self._position.snapshot.covers(batch.horizon):
                    raise FeedError("the journal no longer holds what follows the relay's position")
                if batch.transactions is None:
                    await self._restart(batch.now, "too_much_missed")
                else:
                    await self._pass_on(batch, batch.transactions)
        return batch

    async def _pass_on(self, batch: Batch, transactions: list[Transaction]) -> None:
        known = await self._as_watched(batch.stamp, transactions)
        # Until the sink has taken all of the batch, even if it fails at it.
        self._position.pass_part()
        self._sink.publish(known, None if batch.more else batch.now)
        if not batch.more:
            self._position.pass_all(batch.now)
        await self._flow.until_open()

    async def _as_watched(self, stamp: str, transactions: list[Transaction]) -> list[Transaction]:
        """Sync all boards once, with cursors of the new shape, if the shape that transactions rely on has changed."""
        if any(one.sync == "watch_changed" for one in transactions) and await self._check_shape("watch_changed"):
            transactions = [one for one in transactions if one.sync != "watch_changed"]
        elif stamp != self._position.stamp:
            await self._check_shape("schema_changed")
            self._position.stamp = stamp
        self._position.mark_outdated(transactions)
        return transactions

    async def _skip_pause(self) -> bool:
        """Continue from now, because something was not journalled; return whether journalling has resumed."""
        resumed = await self._session.end_pause()
        now, _, _ = await self._session.journal.head()
        await self._restart(now, "journalling_paused")
        await self._session.read_vitals()
        if not resumed:
            holders = await self._session.holders()
            log.warning("feed.paused", problem=f"the journal is full, and kept so by {holders}")
        return resumed

    async def _check_shape(self, reason: Reason) -> bool:
        """If the shape of a watched table has changed, send all clients their boards again, and return true."""
        if await self._session.shape() == self._position.epoch.shape:
            return False
        self._position.reshape(*await self._session.fit())
        await self._sync(reason)
        return True

    async def _restart(self, now: Snapshot, reason: Reason) -> None:
        self._position.restart(now, reason)
        await self._sync(reason)

    async def _sync(self, reason: Reason) -> None:
        log.info("feed.sync", reason=reason)
        await self._begin_sink(reason)

    async def _begin_sink(self, lost: Reason | None) -> None:
        self._sink.begin(self._position.epoch, self._position.snapshot, lost)
        await self._flow.until_open()
