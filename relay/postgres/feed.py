"""The feed: follows the journal of one database, for a sink, whatever happens to the connection.

What it finds goes to the sink: batches of transactions, each with the position it brings the feed to; and boards,
and what resuming clients missed, each with the snapshot it was read in.

Rules:
- The position is a snapshot. It lives as long as its run of the server is known (see relay.epochs in
  sql/install.sql), the watched tables keep their shape, and the journal holds what follows it. After that, continuity
  is broken: all clients are sent their boards again, with the reason.
- Where the journal is full, and a transaction that stays open keeps it so, clients are sent their boards every
  `PAUSED_SECONDS`: later than usual, but no later than that.
- Clients that resume are served together: one read of the journal, from the oldest of their cursors on, and the next
  not before more have gathered. So ten thousand that come back at once cost Postgres a handful of queries.
- Postgres never waits for a client: the sink takes everything at once, or has the feed pause.
- A fault stays where it is, see faults.py: a board that cannot be read is read again later, with back-off; what
  ends a session has the feed connect again, with back-off, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import psycopg
import structlog

from relay.backoff import Backoff
from relay.hub.ports import Authorizer, Question, Resuming, Sink, Source, SourceStatus
from relay.model import messages
from relay.model.cursor import Epoch, Reason
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, Database
from relay.model.transaction import Transaction
from relay.postgres.connection import complete, in_time
from relay.postgres.faults import BoardMisnamed, FeedError, Scope, WatchOutdated, first_of, scope_of
from relay.postgres.progress import Progress
from relay.postgres.requests import GATHER_SECONDS, Asked, BoardQueue
from relay.postgres.schedule import POLLING_SECONDS, PollSchedule
from relay.postgres.session import Session
from relay.postgres.vitals import Vitals
from relay.text import error_line

log = structlog.get_logger()

SHAPE_SECONDS: Final = 1.0
"""Interval at which the shape of the watched tables is compared."""

PAUSED_SECONDS: Final = 5.0
"""Interval at which clients are sent their boards while journalling is paused."""

INSPECT_SECONDS: Final = 10.0
"""Interval at which the feed makes sure that the triggers are still in place."""

PRUNE_SECONDS: Final = 5.0
"""Interval between prunes of the journal, which grows beyond what is to be kept meanwhile; and between readings of
its vitals."""

SIDE_BY_SIDE: Final = 4
"""Number of boards that are read at once, each over a connection of its own; one of them is a slow one."""

UNAVAILABLE: Final = "this board cannot be read at present: it comes as soon as it can"
"""What subscribers learn of a board that cannot be read; the rest is for the operator."""

LINK_SECONDS: Final = 0.25
"""Interval at which connections are checked that have been silent for long."""


class Feed(Source, Authorizer):
    """Follows the journal of one database and reads its boards.

    It begins now, or goes on from a position in an epoch. `problem` says in one line why it is not running, and is
    None while it is.
    """

    def __init__(
        self,
        database_url: str,
        epoch: Epoch | None = None,
        position: Snapshot | None = None,
        *,
        side_by_side: int = SIDE_BY_SIDE,
    ) -> None:
        self.problem: str | None = "not connected yet"
        self._conninfo = complete(database_url)
        self._side_by_side = side_by_side
        self._epoch = epoch
        self._position = position
        self._sessions = 0
        self._continuity_lost: Counter[str] = Counter()
        self._progress = Progress()
        self._vitals: Vitals | None = None
        self._boards = BoardQueue()
        self._resuming: Resuming | None = None
        self._changes_wanted = asyncio.Event()
        self._questions: asyncio.Queue[Asked] = asyncio.Queue()
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        # While a batch is published in parts, nothing else is handed over. If it is not published to its end, clients
        # have a part of it that would come to them again.
        self._between_batches = asyncio.Lock()
        self._cut_short = False

    # What the sink asks, and whoever runs the feed

    def ask(self, board: str) -> None:
        """Have a board read, for the sink."""
        self._boards.put(board)

    def ask_changes(self, resuming: Resuming) -> None:
        """Have the journal read for those who resume."""
        self._resuming = resuming
        self._changes_wanted.set()

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Ask the database whether these claims may read these boards, as soon as it is there."""
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(Asked(questions, answer))
        return await answer

    def pause(self) -> None:
        """Read no more of the journal until `go_on`: the sink has to store what it was given."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Read the journal again."""
        self._goes_on.set()

    async def catch_up(self) -> bool:
        """Wait until all is passed on that is committed now; false if the feed does not run or takes too long."""
        return self.problem is None and await self._progress.catch_up()

    def status(self, budget: float) -> SourceStatus:
        """Tell how it is, where a probe may take so many seconds to come back."""
        problem = self.trouble(budget)
        return SourceStatus(
            up=self.problem is None,
            problem=problem,
            unready=problem or (None if self.proven else "no probe has come back yet"),
            lag_seconds=self.lag,
            counts=self.counts,
            database=self.database,
            failing=self.failing,
        )

    def trouble(self, budget: float) -> str | None:
        """Say in one line why changes do not come through, where a probe may take so many seconds to come back."""
        return self.problem or self._progress.probe.problem(time.monotonic(), budget)

    @property
    def proven(self) -> bool:
        """Whether a probe has come through since the start."""
        return self._progress.probe.took is not None

    @property
    def lag(self) -> float:
        """All that was committed so many seconds ago has been passed on."""
        return time.monotonic() - self._progress.read_at

    @property
    def counts(self) -> Counts:
        """What has happened since the start."""
        return Counts(
            commit_to_socket=self._progress.probe_times,
            reconnects=max(0, self._sessions - 1),
            continuity_lost=self._continuity_lost,
            transactions=self._progress.transactions,
            notifications={"received": self._progress.notifications, "skipped": self._progress.skipped},
        )

    @property
    def failing(self) -> Mapping[str, str]:
        """The boards that cannot be read, and why not."""
        return self._boards.failing

    @property
    def database(self) -> Database | None:
        """Tell how the database's side is, while it is connected."""
        if self._vitals is None:
            return None
        return Database(
            journal=self._vitals.journal,
            queue_usage=self._vitals.queue_usage,
            probe_seconds=self._progress.probe.took,
            lag_seconds=self.lag,
        )

    # Sessions, one after another

    async def run(self, sink: Sink) -> None:
        """Feed the sink until cancelled."""
        backoff = Backoff()
        while True:
            backoff.begin(time.monotonic())
            try:
                async with Session.open(self._conninfo, sink, self._side_by_side) as session:
                    self._sessions += 1
                    async with in_time():
                        await self._begin(session, sink)
                    await self._follow(session, sink)
            except* Exception as group:  # noqa: BLE001  # also what nobody foresaw is a session's
                self._report(_problem_of(group))
            finally:
                self._vitals = None
            await asyncio.sleep(backoff.fail(time.monotonic(), self.problem or ""))

    def _report(self, problem: str | None) -> None:
        """Log what changed about the feed, once."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)
            self._progress.stopped()

    async def _begin(self, session: Session, sink: Sink) -> None:
        """Go on from the position, if what follows it is still there; else from now, and say why."""
        await session.refresh()
        epoch = await session.epoch()
        now, horizon, paused = await session.journal.head()
        if paused:
            await session.end_pause()
            now, horizon, _ = await session.journal.head()
        lost = self._lost(epoch, now, horizon, paused=paused)
        if self._position is None or lost:
            self._position = now
            self._cut_short = False
        if lost:
            self._continuity_lost[lost] += 1
            log.warning("feed.continuity_lost", reason=lost)
        self._epoch = epoch
        self._vitals = await session.vitals()
        sink.begin(epoch, self._position, lost)
        await self._goes_on.wait()
        self._report(session.watches.problem)

    def _lost(self, epoch: Epoch, now: Snapshot, horizon: Snapshot, *, paused: bool) -> Reason | None:
        """Say why the feed cannot go on from its position, if it has one and cannot."""
        if self._position is None or self._epoch is None:
            return None
        # A server that knows less than was seen already has lost transactions.
        if self._epoch.run not in epoch.keys or not now.covers(self._position):
            return "epoch_changed"
        if paused:
            return "journalling_paused"
        if not self._position.covers(horizon):
            return "journal_pruned"
        if self._cut_short:
            return "batch_cut_short"
        return None if epoch.shape == self._epoch.shape else "schema_changed"

    async def _follow(self, session: Session, sink: Sink) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_journal(session, sink))
            for _ in range(self._side_by_side - 1):
                tasks.create_task(self._read_boards(session, sink, slow=False))
            tasks.create_task(self._read_boards(session, sink, slow=True))
            tasks.create_task(self._read_missed(session))
            tasks.create_task(self._answer(session))
            tasks.create_task(_inspect(session))
            tasks.create_task(self._prune(session))
            tasks.create_task(self._write_probes(session))
            tasks.create_task(_watch_links(session))

    # The journal

    async def _read_journal(self, session: Session, sink: Sink) -> None:
        clock = asyncio.get_running_loop()
        schedule = PollSchedule(silent=session.silent)
        checked = clock.time()
        while True:
            began = time.monotonic()
            async with self._between_batches:
                committed, polled, paused = await self._read_batch(session, sink)
            self._progress.has_read(began, committed, session.journal.probes())
            schedule.has_read(clock.time(), committed, polled)
            if schedule.must_poll(clock.time()):
                await session.poll_for(POLLING_SECONDS)
                schedule.polls(clock.time())
            if clock.time() - checked >= SHAPE_SECONDS:
                checked = clock.time()
                await self._check_shape(session, sink)
            self._report(session.watches.problem)
            if paused:
                await asyncio.sleep(PAUSED_SECONDS)
            self._progress.notified(await session.notified(schedule.wait(clock.time())))

    async def _read_batch(self, session: Session, sink: Sink) -> tuple[int, float, bool]:
        """Read and publish what is new.

        Return how many transactions that was, for how long relays poll, and whether journalling is paused.
        """
        assert self._position is not None, "a session begins with a position"
        async with contextlib.aclosing(session.journal.since(self._position)) as batches:
            async for batch in batches:
                if batch.paused:
                    return 0, 0.0, not await self._read_over_pause(session, sink)
                if not self._position.covers(batch.horizon):
                    raise FeedError("the journal no longer holds what follows the relay's position")
                if batch.transactions is None:
                    self._restart(sink, batch.now, "too_much_missed")
                elif batch.more:
                    self._cut_short = True
                    sink.publish(await self._as_watched(session, sink, batch.transactions), None)
                else:
                    transactions = await self._as_watched(session, sink, batch.transactions)
                    self._position = batch.now
                    self._cut_short = False
                    sink.publish(transactions, batch.now)
                await self._goes_on.wait()
        return batch.committed, batch.polled, False

    async def _read_over_pause(self, session: Session, sink: Sink) -> bool:
        """Go on from now, for something was not journalled; return whether journalling goes on."""
        goes_on = await session.end_pause()
        now, _, _ = await session.journal.head()
        self._restart(sink, now, "journalling_paused")
        await self._goes_on.wait()
        self._vitals = await session.vitals()
        if not goes_on:
            log.warning("feed.paused", problem=f"the journal is full, and kept so by {await session.holders()}")
        return goes_on

    def _restart(self, sink: Sink, now: Snapshot, reason: Reason) -> None:
        """Go on from now, for the journal does not have, or has too much of, what follows the position."""
        assert self._epoch is not None, "a session begins with an epoch"
        self._position = now
        self._cut_short = False
        self._continuity_lost[reason] += 1
        log.info("feed.sync", reason=reason)
        sink.begin(self._epoch, now, reason)

    async def _as_watched(self, session: Session, sink: Sink, transactions: list[Transaction]) -> list[Transaction]:
        """Where a transaction changed what is watched, sync all boards once, with cursors of the new shape."""
        if any(one.sync == "watch_changed" for one in transactions) and await self._check_shape(
            session, sink, "watch_changed"
        ):
            return [one for one in transactions if one.sync != "watch_changed"]
        return transactions

    async def _check_shape(self, session: Session, sink: Sink, reason: Reason = "schema_changed") -> bool:
        """Send all clients their boards again when a watched table is no longer what it was; return whether so."""
        assert self._epoch is not None, "a session begins with an epoch"
        assert self._position is not None, "a session begins with a position"
        shape = await session.shape()
        if shape == self._epoch.shape:
            return False
        await session.refresh()
        await session.watches.load()
        self._epoch = replace(self._epoch, shape=shape)
        log.info("feed.sync", reason=reason)
        sink.begin(self._epoch, self._position, reason)
        await self._goes_on.wait()
        return True

    # Boards, and what was missed

    async def _read_boards(self, session: Session, sink: Sink, *, slow: bool) -> None:
        while True:
            name = await self._boards.get(slow=slow)
            try:
                if sink.begin_read(name):
                    await self._read_board(session, sink, name)
                else:
                    self._boards.forget(name)
            finally:
                self._boards.done(name)

    async def _read_board(self, session: Session, sink: Sink, name: str) -> None:
        try:
            await self._hand_over(session, sink, name)
        except BaseException as ex:
            if scope_of(ex, reading_board=True) is not Scope.BOARD:
                sink.abandon_read(name)
                raise
            self._report_board(name, error_line(ex))
            sink.fail_read(name, messages.error("board_unavailable", UNAVAILABLE, name))

    async def _hand_over(self, session: Session, sink: Sink, name: str) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            snapshot, data = await session.boards.read(name)
        except BoardMisnamed as ex:
            self._boards.has_read(name, loop.time() - began)
            sink.refuse(name, messages.error("invalid_board_id", str(ex), name))
            return
        self._boards.has_read(name, loop.time() - began)
        async with self._between_batches:
            sink.synced(name, snapshot, data)

    def _report_board(self, name: str, problem: str) -> None:
        """Log why a board cannot be read, once."""
        if self._boards.has_failed(name, problem):
            log.error("feed.board_failed", board=name[:100], problem=problem)

    async def _read_missed(self, session: Session) -> None:
        while True:
            await self._changes_wanted.wait()
            self._changes_wanted.clear()
            if self._resuming is None or (resume := self._resuming.begin_resume()) is None:
                continue
            try:
                batch = await session.journal_of_missed.missed(resume.oldest, resume.boards)
                async with self._between_batches:
                    self._resuming.resumed(batch.now, None if batch.paused else batch.transactions, batch.horizon)
            except BaseException:
                self._resuming.abandon_resume()
                raise
            await asyncio.sleep(GATHER_SECONDS)

    async def _answer(self, session: Session) -> None:
        while True:
            asked = await self._questions.get()
            try:
                answers = await session.may_read(asked.questions)
            except BaseException:
                self._questions.put_nowait(asked)
                raise
            if not asked.answer.done():
                asked.answer.set_result(answers)

    # Housekeeping

    async def _write_probes(self, session: Session) -> None:
        probe = self._progress.probe
        while True:
            probe.due(time.monotonic())
            label, notified = await session.write_probe(lambda: probe.write(time.monotonic()))
            if not notified:
                self._progress.not_notified(label)
            await self._progress.until_probe_is_due()

    async def _prune(self, session: Session) -> None:
        while True:
            if not await session.prune():
                self._vitals = await session.vitals()
                await asyncio.sleep(PRUNE_SECONDS)


def _problem_of(group: BaseExceptionGroup[Exception]) -> str:
    """Say what ended a session; one that nobody foresaw is logged whole."""
    first = first_of(group)
    if isinstance(first, (psycopg.Error, OSError, FeedError, WatchOutdated)):
        return error_line(first)
    log.error("feed.fault", exc_info=group)
    return f"an unexpected fault, to be reported with its log line: {error_line(first)}"


async def _inspect(session: Session) -> None:
    while True:
        await asyncio.sleep(INSPECT_SECONDS)
        await session.watches.load()


async def _watch_links(session: Session) -> None:
    while True:
        await asyncio.sleep(LINK_SECONDS)
        await session.require_answers()
