"""The publisher: appends a database's changes to the stream, in turn with other publishers.

Rules:
- One publisher leads, and writes a state every second; the others stand by. The one with the oldest session in the
  database leads, so one that has died, hangs or has lost Postgres loses the lead within seconds. If two believe that
  they lead, JetStream lets only one append, because the other expects a wrong end of the stream.
- While a publisher leads, it has a *turn* (turn.py). Any fault ends the turn; the next one continues from the end of
  the stream. While NATS is down, the journal keeps the changes, as it does while a relay is down.
- All boards are published, because a publisher does not know which ones edges follow. Only boards whose names do not
  fit into an entry are left out; edges refuse them.
- A batch that was itself refused twice is not tried a third time: the stream begins again, and all clients are sent
  their boards.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from relay import logs
from relay.backoff import Backoff
from relay.cancellation import in_own_task
from relay.config.settings import Settings
from relay.model.status import Counts, Status, StreamStatus
from relay.nats.connection import StreamError
from relay.nats.jetstream import Stream
from relay.nats.turn import Left, Turn
from relay.postgres.connection import complete
from relay.postgres.faults import FeedError, first_of
from relay.postgres.lead import Lead

log = structlog.get_logger()

STAND_BY_SECONDS: Final = 0.25
"""Interval at which a publisher that stands by asks whether it leads."""


class Publisher:
    """Publishes the feed of one database, in turn with other publishers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn: Turn | None = None
        self._standing_by = False
        self._problem: str | None = "not connected yet"
        self._backoff = Backoff()
        # Whether the last turn ended with a batch that was refused, and whether that happened twice.
        self._refused = self._gives_up = False
        self._stopping = False
        self._before = Counts()

    async def run(self) -> None:
        """Publish until cancelled, or until `leave` is done."""
        left = False
        while not left:
            pause = 0.0
            self._backoff.begin(time.monotonic())
            try:
                await in_own_task(self._connect())
            except* Left:
                left = True
            except* (StreamError, FeedError) as group:
                pause = self._failed(str(first_of(group)))
            except* Exception as group:
                fault = first_of(group)
                log.error("publisher.fault", exc_info=fault)  # noqa: TRY400  # of the group, its first
                pause = self._failed(f"{type(fault).__name__}: {fault}")
            finally:
                self._standing_by = False
            await asyncio.sleep(pause)

    async def _connect(self) -> None:
        """Connect to NATS and Postgres, wait for the lead, and publish."""
        settings = self._settings
        async with (
            Stream.open(settings, settings.PUBLISH_TO, "publisher") as stream,
            Lead.open(complete(settings.DATABASE_URL), f"publisher of {settings.NATS_STREAM}") as lead,
        ):
            await stream.make(settings.NATS_KEEP, settings.NATS_KEEP_BYTES, settings.NATS_REPLICAS)
            await self._stand_by(stream, lead)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(lead.keep())
                tasks.create_task(self._lead(stream))

    async def _stand_by(self, stream: Stream, lead: Lead) -> None:
        """Wait for the lead."""
        while not await lead.has():
            self._standing_by = True
            self._report(None)
            await asyncio.sleep(STAND_BY_SECONDS)
            await stream.bounds()  # the stream must be there when this publisher takes over
        self._standing_by = False

    async def _lead(self, stream: Stream) -> None:
        self._turn = turn = await Turn.take(stream, self._settings, begin_again=self._gives_up)
        self._report(None)
        log.info("publisher.active", stream=self._settings.NATS_STREAM)
        try:
            await turn.run()
        finally:
            self._before += turn.counts
            # If this turn wrote no batch, the refused one is the same as before.
            self._gives_up = self._refused and turn.refused and not turn.writer.batches
            self._refused = turn.refused
            self._turn = None

    def _failed(self, fault: str) -> float:
        """Report why a turn has ended; return how many seconds to wait before the next."""
        self._report(fault)
        return self._backoff.fail(time.monotonic(), fault)

    def _report(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.error("publisher.problem", problem=problem)

    async def leave(self) -> None:
        """Publish everything committed until now, then stop."""
        self._stopping = True
        if self._turn:
            await self._turn.leave()

    async def status(self) -> Status:
        """Return its state."""
        turn = self._turn
        problem = self._trouble(turn)
        proven = self._standing_by or (turn and turn.feed.proven)
        return Status(
            running=False,
            port=self._settings.WS_PORT,
            feed_up=problem is None,
            problem=problem,
            unready=problem or (None if proven else "nothing is proven yet"),
            lag_seconds=turn.feed.lag if turn else 0.0,
            database=turn.feed.database if turn else None,
            failing=turn.feed.failing if turn else {},
            incomplete=turn.feed.incomplete if turn else {},
            stream=StreamStatus(
                connected=self._problem is None, active=turn is not None, entry=turn.writer.last if turn else None
            ),
            counts=self._before
            + (turn.counts if turn else Counts())
            + Counts(entries=0, suppressed=logs.suppressed(), dropped=logs.dropped()),
        )

    def _trouble(self, turn: Turn | None) -> str | None:
        """Return in one line why nothing is published; None if something is."""
        if self._stopping:
            return "the publisher is stopping"
        if problem := self._problem or self._backoff.recurring(time.monotonic()):
            return problem
        return turn.feed.trouble(self._settings.HEALTH_BUDGET / 1000) if turn else None
