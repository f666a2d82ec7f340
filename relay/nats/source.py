"""The source of an edge: follows the stream of NATS JetStream, as `postgres.feed` follows a database.

Rules:
- Four parts share one connection: follower.py passes on changes, boards.py reads boards, missed.py reads what
  resuming clients missed, and permissions.py asks for decisions of relay.may_read.
- An edge connects to NATS only, and knows of the database only what the publisher reports.
- A fault ends the connection; the edge reconnects with back-off and jitter, forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

import structlog

from relay.backoff import Backoff
from relay.cancellation import in_own_task
from relay.config.settings import Settings
from relay.hub.ports import Authorizer, Question, Resuming, Sink, Source, SourceStatus
from relay.model.status import Counts, StreamStatus
from relay.nats.boards import BoardReader
from relay.nats.connection import StreamError
from relay.nats.follower import SILENT_SECONDS, Follower
from relay.nats.jetstream import Stream
from relay.nats.missed import MissedReader
from relay.nats.permissions import Permissions
from relay.nats.stream import StreamBroken
from relay.postgres.boards import READ_SECONDS
from relay.postgres.faults import first_of

log = structlog.get_logger()

SLOWEST_SECONDS: Final = 1.5 * READ_SECONDS
"""Time in which a publisher that works on boards answers one of them: it gives one up that takes as long as a read
may take."""

WANTED_SECONDS: Final = 10.0
"""Time that a board or an answer may take before that is a problem."""

CATCH_UP_SECONDS: Final = 5.0
"""Timeout for passing on what is in the stream when the edge stops."""


class NatsSource(Source, Authorizer):
    """Follows the stream, and asks the publisher for boards."""

    def __init__(self, settings: Settings) -> None:
        self.problem: str | None = "not connected yet"
        self.sessions = 0
        self.follower = Follower(settings.NATS_STREAM)
        self.boards = BoardReader(self.follower)
        self.permissions = Permissions(self.follower)
        self._missed = MissedReader(self.follower)
        self._settings = settings
        self._backoff = Backoff()
        self._stream: Stream | None = None

    # The source, as a feed is one

    def ask(self, board: str, by: object = None) -> None:
        self.boards.ask(board, by)

    def ask_changes(self, resuming: Resuming) -> None:
        self._missed.ask(resuming)

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        return await self.permissions.may_read(questions)

    async def catch_up(self) -> bool:
        if self.problem or self._stream is None:
            return False
        with contextlib.suppress(TimeoutError, StreamError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                if found := await self._stream.last_state():
                    await self.follower.until_taken(found[0])
                return True
        return False

    # Its state

    def trouble(self, budget: float) -> str | None:
        """Return in one line why changes do not come through. A publisher may be silent for `budget` seconds."""
        now = time.monotonic()
        if problem := self.problem or self._backoff.recurring(now):
            return problem
        if (silent := now - self.follower.last_heard) > max(budget, SILENT_SECONDS):
            return f"nothing has come from a publisher for {silent:.0f} seconds: does one run, and reach Postgres?"
        if (state := self.follower.state) and state.problem:
            return f"the publisher says: {state.problem}"
        return self._overdue(now)

    def _overdue(self, now: float) -> str | None:
        """Return in one line that boards or answers have been missing for too long; None if not."""
        wanted = self.boards.wanted_since
        first = min(wanted.values(), default=now)
        heard = self._stream.questions.heard if self._stream else 0.0
        silent = now - min(max(first, heard, self.boards.answered), self.permissions.asked_since or now)
        if silent <= WANTED_SECONDS and now - max(first, self.boards.answered) <= SLOWEST_SECONDS:
            return None
        seconds = now - min(first, self.permissions.asked_since or now)
        return (
            f"{len(wanted)} boards are wanted and not here, for up to {seconds:.0f} seconds: the "
            "publisher is too slow"
        )

    def _slow(self, now: float) -> dict[str, str]:
        """Return the boards that have been missing for long, and for how long."""
        waited = {board: now - since for board, since in self.boards.wanted_since.items()}
        return {
            board: f"it has been wanted for {seconds:.0f} seconds, and the publisher is not done with it"
            for board, seconds in waited.items()
            if seconds > WANTED_SECONDS
        }

    @property
    def proven(self) -> bool:
        """Whether an entry has arrived since the start."""
        return self.follower.proven

    @property
    def lag(self) -> float:
        """See `Follower.lag`."""
        return self.follower.lag

    def status(self, budget: float) -> SourceStatus:
        problem = self.trouble(budget)
        return SourceStatus(
            up=self.problem is None,
            problem=problem,
            unready=problem or (None if self.proven else "nothing has come from a publisher yet"),
            lag_seconds=self.lag,
            counts=Counts(
                reconnects=max(0, self.sessions - 1),
                continuity_lost=self.follower.continuity_lost,
                transactions=self.follower.transactions,
                entries=self.follower.entries,
            ),
            stream=StreamStatus(connected=self._stream is not None, entry=self.follower.last or None),
            failing=self._slow(time.monotonic()),
        )

    # Running

    async def run(self, hub: Sink) -> None:
        while True:
            pause = 0.0
            self._backoff.begin(time.monotonic())
            try:
                await in_own_task(self._connect(hub))
            except* (StreamError, StreamBroken) as group:
                first = first_of(group)
                if isinstance(first, StreamBroken):
                    self.follower.forget()
                pause = self._failed(str(first))
            except* Exception as group:
                fault = first_of(group)
                log.error("feed.fault", exc_info=fault)  # noqa: TRY400  # of the group, its first
                self.follower.forget()
                pause = self._failed(f"{type(fault).__name__}: {fault}")
            finally:
                self._stream = None
            await asyncio.sleep(pause)

    async def _connect(self, hub: Sink) -> None:
        """Follow the stream over one connection, until it ends."""
        async with Stream.open(self._settings, self._settings.SERVE_FROM, "edge") as self._stream:
            stream = self._stream
            self.sessions += 1
            await self.follower.begin(stream, hub)
            self._report(None)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.follower.read(hub))
                tasks.create_task(self.follower.deliveries.keep_selecting(stream, hub, lambda: self.follower.last))
                tasks.create_task(self.follower.forget_marks(stream))
                tasks.create_task(self.follower.watch(stream))
                tasks.create_task(self.boards.run(stream, hub))
                tasks.create_task(self._missed.run(stream, hub))
                tasks.create_task(self.permissions.run(stream))
                tasks.create_task(stream.ended())

    def _failed(self, fault: str) -> float:
        """Report why a connection has ended; return how many seconds to wait before the next."""
        self._report(fault)
        return self._backoff.fail(time.monotonic(), fault)

    def _report(self, problem: str | None) -> None:
        """Log a problem, or its end, once."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)
