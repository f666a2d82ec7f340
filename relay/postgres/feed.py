"""The feed: follows the journal of one database, for the hub, whatever happens to the connection.

What it finds goes to the hub: batches of transactions, each with the position it brings the feed to; and boards,
and what resuming clients missed, each with the snapshot it was read in.

Rules:
- A notification is a hint: the journal is read at least every `LOOK_SECONDS` in any case.
- When there is much to do, the feed polls every few milliseconds, and says so in the database: then the triggers do
  not notify, which is what costs writers most. All relays of a database poll together.
- The position is a snapshot. "What is new since" and the next position come out of one statement; so no
  transaction is skipped and none read twice, however long it was open.
- The position lives as long as its run of the server is known (see relay.epochs in sql/install.sql), the watched
  tables keep their shape, and the journal holds what follows it. After that, continuity is broken: all clients are
  sent their boards again, with the reason.
- Where the journal is full, and a transaction that stays open keeps it so, clients are sent their boards every
  `PAUSED_SECONDS`: later than usual, but no later than that.
- Who resumes is served with others: one read of the journal, from the oldest of their cursors on, and the next not
  before more have gathered. So ten thousand who come back at once cost Postgres a handful of queries.
- Every few seconds it writes a canary: a change that concerns nobody, and comes back through notification, journal
  and hub if all of them are alive, whatever the connections look like. Where nothing else is written, seldom: an idle
  database stays idle.
- Postgres never waits for a client: the hub takes everything at once.
- A fault of any connection ends the session; the feed connects again, with back-off and jitter, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import psycopg
import structlog

from relay.hub.ports import Authorizer, Question, Resuming, Sink, Source, SourceStatus
from relay.model.changes import Transaction, WatchOutdated
from relay.model.cursor import Era, Reason
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, Database, Histogram
from relay.postgres.session import FeedError, Session, Vitals, conninfo, in_time

log = structlog.get_logger()

LOOK_SECONDS: Final = 1.0
"""How long the feed waits for the doorbell before it looks by itself; also at its tables' shape."""

BUSY_TRANSACTIONS: Final = 250
"""So many transactions a second, and the feed polls: reading them in groups costs everybody less."""

BUSY_SECONDS: Final = 0.25
"""Over about how long these are counted."""

POLLING_SECONDS: Final = 1.0
"""How long the feed promises to poll, each time."""

POLL_SECONDS: Final = 0.005
"""Interval between two polls."""

SLOW_POLL_SECONDS: Final = 0.05
"""The same while transactions may commit that did not notify, because feeds polled when they wrote. Most of them
commit within `LOOK_SECONDS`; also where the triggers never notify."""

CANARY_SECONDS: Final = 2.0
"""Interval between canaries, while others write too."""

IDLE_CANARY_SECONDS: Final = 300.0
"""Interval between canaries where nothing else is written."""

PAUSED_SECONDS: Final = 5.0
"""Interval at which clients are sent their boards while journalling is paused."""

CATCH_UP_SECONDS: Final = 5.0
"""How long a relay that is to stop may take to pass on what was committed before."""

INSPECT_SECONDS: Final = 10.0
"""How often the feed makes sure that the triggers are still in place."""

PRUNE_SECONDS: Final = 5.0
"""How often the journal is pruned: between two prunes it grows beyond what is to be kept. And how often it is looked
at how the journal is."""

GATHER_SECONDS: Final = 0.25
"""How long after one read of the journal for resuming clients the next begins: meanwhile more of them gather. Also
how long at most after one read of a board the next of the same board does."""

GATHER_SHARE: Final = 4
"""So many times as long as a board's read took, the next of the same board waits: so a stampede leaves time for
all others."""

LINK_SECONDS: Final = 0.25
"""How often the feed looks whether a connection has been silent for long."""

FIRST_RETRY_SECONDS: Final = 0.25
LONGEST_RETRY_SECONDS: Final = 10.0


@dataclass(slots=True)
class Retry:
    """Back-off: doubling from the first to the longest, each time somewhere in its upper half."""

    seconds: float = FIRST_RETRY_SECONDS

    def next(self) -> float:
        delay = self.seconds * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        self.seconds = min(self.seconds * 2, LONGEST_RETRY_SECONDS)
        return delay


class Pace:
    """When to look at the journal again. Times are in seconds, of one clock that only goes forward. Pure."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._level = 0.0
        self._looked = -math.inf
        self._polled_until = -math.inf

    def looked(self, now: float, committed: int, polled: float) -> None:
        """Take in what a look found: so many transactions; feeds poll for so long from now on."""
        self._level = self._level * math.exp((self._looked - now) / BUSY_SECONDS) + committed
        self._looked = now
        if polled > 0:
            self._polled_until = now + polled

    def must_poll(self, now: float) -> bool:
        """Whether to promise again that this feed polls."""
        busy = self._level > BUSY_TRANSACTIONS * BUSY_SECONDS
        return busy and self._polled_until - now < POLLING_SECONDS / 2

    def polls(self, now: float) -> None:
        """Note that it was promised."""
        self._polled_until = max(self._polled_until, now + POLLING_SECONDS)

    def wait(self, now: float) -> float:
        """Return how long to wait for the doorbell."""
        if now < self._polled_until:
            return POLL_SECONDS
        if self._silent or now < self._polled_until + LOOK_SECONDS:
            return SLOW_POLL_SECONDS
        return LOOK_SECONDS


Way = Literal["doorbell", "journal"]
"""How a canary comes back."""


class Canary:
    """The canary of one feed, which is written again and again. Times are as in `Pace`. Pure.

    It is back when its doorbell was heard and its entry has been passed on, with all that was committed before it.
    """

    def __init__(self, now: float) -> None:
        self.took: float | None = None
        self._prefix = secrets.token_hex(6)
        self._number = 0
        self._written = now
        self._came: set[Way] = set()
        # Since when one is due or under way, None while the last one is back; whether one has been written since
        # then, and in which ways one has come.
        self._since: float | None = now
        self._was_written = False
        self._ever_came: set[Way] = set()

    def due(self, now: float) -> None:
        """Note that one is to be written: from here on it is waited for."""
        if self._since is None:
            self._since, self._was_written, self._ever_came = now, False, set()

    def write(self, now: float) -> str:
        """Write one, in place of one that is not back: return its label."""
        self._number += 1
        self._written = now
        self._was_written = True
        self._came = set()
        return f"{self._prefix}-{self._number}"

    def came(self, label: str, way: Way, now: float) -> float | None:
        """Note what came back; return how long it took if that is all of it."""
        if self._since is None or label != f"{self._prefix}-{self._number}":
            return None
        self._came.add(way)
        self._ever_came.add(way)
        if len(self._came) < len(get_args(Way)):
            return None
        self._since = None
        self.took = now - self._written
        return self.took

    def problem(self, now: float, budget: float) -> str | None:
        """Say in one line what has not come back in time."""
        if self._since is None or now - self._since <= budget:
            return None
        waited = f"no canary has come back for {now - self._since:.0f} seconds"
        if not self._was_written:
            return f"{waited}: none could be written: is a watched table locked, or a board very large?"
        if "journal" not in self._ever_came:
            return f"{waited}: the journal is not read in time"
        return f"{waited}: the doorbell is not heard: is there a transaction pooler in between?"


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that are asked together, and where the answers go."""

    questions: Sequence[Question]
    answer: asyncio.Future[Sequence[bool]]


class Feed(Source, Authorizer):
    """Follows the journal of one database and reads its boards.

    It begins now, or goes on from a position in an era. So many boards are read side by side. `problem` says in one
    line why it is not running, and is None while it is.

    For metrics: `commit_to_socket` is how long canaries took, `transactions` counts those that were found, `rung` the
    doorbells that were heard, `skipped` about how many transactions did not ring, `sessions` how often it was
    connected, `continuity_lost` how often it could not go on from its position.
    """

    def __init__(
        self,
        database_url: str,
        era: Era | None = None,
        position: Snapshot | None = None,
        *,
        side_by_side: int = 1,
    ) -> None:
        self._side_by_side = side_by_side
        self.commit_to_socket = Histogram()
        self.transactions = self.rung = self.skipped = self.sessions = 0
        self.continuity_lost: Counter[str] = Counter()
        self._vitals: Vitals | None = None
        self._canary = Canary(time.monotonic())
        self._canary_wanted = asyncio.Event()
        # Set when others write too.
        self._active = asyncio.Event()
        # When the last look began that all was passed on of, and who waits for one that begins later.
        self._looked = time.monotonic()
        self._catching_up: list[tuple[float, asyncio.Future[bool]]] = []
        self._conninfo = conninfo(database_url)
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        # Until when boards rest that were read just now.
        self._resting: dict[str, float] = {}
        self._resuming: Resuming | None = None
        self._changes_wanted = asyncio.Event()
        self._questions: asyncio.Queue[Asked] = asyncio.Queue()
        self._position = position
        self._era = era
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        # While a batch is published in parts, nothing else is handed over. If it is not published to its end, clients
        # have a part of it that would come to them again.
        self._between_batches = asyncio.Lock()
        self._cut_short = False
        self.problem: str | None = "not connected yet"

    def ask(self, board: str) -> None:
        """Have a board read, for the hub."""
        loop = asyncio.get_running_loop()
        if board in self._resting:
            loop.call_at(self._resting[board], self._wanted.put_nowait, board)
        else:
            self._wanted.put_nowait(board)

    def ask_changes(self, resuming: Resuming) -> None:
        """Have the journal read for those who resume, for the hub."""
        self._resuming = resuming
        self._changes_wanted.set()

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Ask the database whether who has these claims may read this board, as soon as it is there."""
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(Asked(questions, answer))
        return await answer

    def trouble(self, budget: float) -> str | None:
        """Say in one line why changes do not come through, where a canary has so many seconds to do so."""
        return self.problem or self._canary.problem(time.monotonic(), budget)

    @property
    def proven(self) -> bool:
        """Whether a canary has come through since the start."""
        return self._canary.took is not None

    @property
    def lag(self) -> float:
        """All that was committed so many seconds ago has been passed on."""
        return time.monotonic() - self._looked

    @property
    def database(self) -> Database | None:
        """Tell how the database's side is, while it is connected."""
        if self._vitals is None:
            return None
        return Database(
            journal=self._vitals.journal,
            queue_usage=self._vitals.queue_usage,
            probe_seconds=self._canary.took,
            lag_seconds=self.lag,
        )

    def status(self, budget: float) -> SourceStatus:
        """Tell how it is, where a canary has so many seconds to come back."""
        problem = self.trouble(budget)
        return SourceStatus(
            up=self.problem is None,
            problem=problem,
            unready=problem or (None if self.proven else "no canary has come back yet"),
            lag_seconds=self.lag,
            counts=self.counts,
            database=self.database,
        )

    @property
    def counts(self) -> Counts:
        """What has happened since the start."""
        return Counts(
            commit_to_socket=self.commit_to_socket,
            reconnects=max(0, self.sessions - 1),
            continuity_lost=self.continuity_lost,
            transactions=self.transactions,
            notifications={"received": self.rung, "skipped": self.skipped},
        )

    def pause(self) -> None:
        """Read no more of the journal until `go_on`: the sink has to store what it was told."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Read the journal again."""
        self._goes_on.set()

    async def catch_up(self) -> bool:
        """Wait until all is passed on that is committed now; false if the feed does not run or takes too long."""
        if self.problem:
            return False
        caught_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._catching_up.append((time.monotonic(), caught_up))
        self._canary_wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_SECONDS):
                return await caught_up
        return False

    async def run(self, hub: Sink) -> None:
        """Feed the hub until cancelled."""
        retry = Retry()
        while True:
            began = time.monotonic()
            try:
                async with Session.open(self._conninfo, hub, self._side_by_side) as session:
                    self.sessions += 1
                    async with in_time():
                        await self._begin(session, hub)
                    await self._follow(session, hub)
            except* (psycopg.Error, OSError, FeedError, WatchOutdated) as group:
                self._report(_one_line(first_of(group)))
            except* Exception as group:  # nobody foresaw it, so it is this session's
                log.exception("feed.fault", exc_info=group)
                self._report(f"an unexpected fault, to be reported with its log line: {_one_line(first_of(group))}")
            finally:
                self._vitals = None
            if time.monotonic() - began > LONGEST_RETRY_SECONDS:
                retry = Retry()
            await asyncio.sleep(retry.next())

    def _report(self, problem: str | None) -> None:
        """Log what changed about the feed, once."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)
            self._end_waiting(math.inf, caught_up=False)

    async def _begin(self, session: Session, hub: Sink) -> None:
        """Go on from the position, if what follows it is still there; else from now, and say why."""
        await session.refresh()
        era = await session.era()
        paused = await session.is_paused() and (await session.end_pause() or True)
        now, horizon = await session.now()
        lost = self._lost(era, now, horizon, paused=paused)
        if self._position is None or lost:
            self._position = now
            self._cut_short = False
        if lost:
            self.continuity_lost[lost] += 1
            log.warning("feed.continuity_lost", reason=lost)
        self._era = era
        self._vitals = await session.vitals()
        hub.begin(era, self._position, lost)
        await self._goes_on.wait()
        self._report(session.unwatched())

    def _lost(self, era: Era, now: Snapshot, horizon: Snapshot, *, paused: bool) -> Reason | None:
        """Say why the feed cannot go on from its position, if it has one and cannot."""
        if self._position is None or self._era is None:
            return None
        # A server that knows less than was seen already has lost transactions.
        if self._era.run not in era.keys or not now.covers(self._position):
            return "epoch_changed"
        if paused:
            return "journalling_paused"
        if not self._position.covers(horizon):
            return "journal_pruned"
        if self._cut_short:
            return "batch_cut_short"
        return None if era.shape == self._era.shape else "schema_changed"

    async def _follow(self, session: Session, hub: Sink) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_journal(session, hub))
            for _ in range(self._side_by_side):
                tasks.create_task(self._read_boards(session, hub))
            tasks.create_task(self._read_missed(session))
            tasks.create_task(self._answer(session))
            tasks.create_task(_inspect(session))
            tasks.create_task(self._prune(session))
            tasks.create_task(self._write_canaries(session))
            tasks.create_task(_watch_links(session))

    async def _read_journal(self, session: Session, hub: Sink) -> None:
        clock = asyncio.get_running_loop()
        pace = Pace(silent=session.silent)
        checked = clock.time()
        while True:
            began = time.monotonic()
            async with self._between_batches:
                committed, polled, paused = await self._read_batch(session, hub)
            self.transactions += committed
            canaries = session.probes()
            if committed > len(canaries):
                self._active.set()
            self._looked_since(began, canaries)
            pace.looked(clock.time(), committed, polled)
            if pace.must_poll(clock.time()):
                await session.poll_for(POLLING_SECONDS)
                pace.polls(clock.time())
            if clock.time() - checked >= LOOK_SECONDS:
                checked = clock.time()
                await self._check_shape(session, hub)
            self._report(session.unwatched())
            if paused:
                await asyncio.sleep(PAUSED_SECONDS)
            self._heard(await session.notified(pace.wait(clock.time())))

    def _looked_since(self, began: float, canaries: Iterable[str]) -> None:
        """Note that all is passed on that was committed before a look began."""
        self._looked = began
        for label in canaries:
            self._came(label, "journal")
        self._end_waiting(began, caught_up=True)

    def _end_waiting(self, until: float, *, caught_up: bool) -> None:
        """Tell those who have waited since before then."""
        for asked, waiting in self._catching_up:
            if asked <= until and not waiting.done():
                waiting.set_result(caught_up)
        self._catching_up = [(asked, waiting) for asked, waiting in self._catching_up if not waiting.done()]

    def _heard(self, rings: Sequence[str | None]) -> None:
        """Take in the doorbells that rang since the last look."""
        self.rung += len(rings)
        self.skipped = max(self.skipped, self.transactions - self.rung)
        for label in filter(None, rings):
            self._came(label, "doorbell")

    def _came(self, label: str, way: Way) -> None:
        if (took := self._canary.came(label, way, time.monotonic())) is not None:
            self.commit_to_socket = self.commit_to_socket.observe(took)

    async def _read_batch(self, session: Session, hub: Sink) -> tuple[int, float, bool]:
        """Read and publish what is new.

        Return how many transactions that was, for how long feeds poll, and whether journalling is paused.
        """
        assert self._position is not None, "a session begins with a position"
        async with contextlib.aclosing(session.since(self._position)) as batches:
            async for batch in batches:
                if batch.paused:
                    return 0, 0.0, not await self._read_over_pause(session, hub)
                if not self._position.covers(batch.horizon):
                    raise FeedError("the journal no longer holds what follows the relay's position")
                if batch.transactions is None:
                    self._restart(hub, batch.now, "too_much_missed")
                elif batch.more:
                    self._cut_short = True
                    hub.publish(await self._as_watched(session, hub, batch.transactions), None)
                else:
                    transactions = await self._as_watched(session, hub, batch.transactions)
                    self._position = batch.now
                    self._cut_short = False
                    hub.publish(transactions, batch.now)
                await self._goes_on.wait()
        return batch.committed, batch.polled, False

    async def _read_over_pause(self, session: Session, hub: Sink) -> bool:
        """Go on from now, for something was not journalled; return whether journalling goes on."""
        goes_on = await session.end_pause()
        now, _ = await session.now()
        self._restart(hub, now, "journalling_paused")
        await self._goes_on.wait()
        self._vitals = await session.vitals()
        if not goes_on:
            log.warning("feed.paused", problem=f"the journal is full, and kept so by {await session.holders()}")
        return goes_on

    def _restart(self, hub: Sink, now: Snapshot, reason: Reason) -> None:
        """Go on from now, for the journal does not have, or has too much of, what follows the position."""
        assert self._era is not None, "a session begins with an era"
        self._position = now
        self._cut_short = False
        self.continuity_lost[reason] += 1
        log.info("feed.sync", reason=reason)
        hub.begin(self._era, now, reason)

    async def _as_watched(self, session: Session, hub: Sink, transactions: list[Transaction]) -> list[Transaction]:
        """Where a transaction changed what is watched, sync all boards once, with cursors of the new shape."""
        if any(one.sync == "watch_changed" for one in transactions) and await self._check_shape(
            session, hub, "watch_changed"
        ):
            return [one for one in transactions if one.sync != "watch_changed"]
        return transactions

    async def _check_shape(self, session: Session, hub: Sink, reason: Reason = "schema_changed") -> bool:
        """Send all clients their boards again when a watched table is no longer what it was; return whether so."""
        assert self._era is not None, "a session begins with an era"
        assert self._position is not None, "a session begins with a position"
        shape = await session.shape()
        if shape == self._era.shape:
            return False
        await session.refresh()
        await session.load_watches()
        self._era = replace(self._era, shape=shape)
        log.info("feed.sync", reason=reason)
        hub.begin(self._era, self._position, reason)
        await self._goes_on.wait()
        return True

    async def _read_boards(self, session: Session, hub: Sink) -> None:
        loop = asyncio.get_running_loop()
        while True:
            name = await self._wanted.get()
            if not hub.begin_read(name):
                continue
            began = loop.time()
            try:
                snapshot, data = await session.board(name)
                self._rest(name, loop.time() - began)
                async with self._between_batches:
                    hub.synced(name, snapshot, data)
            except BaseException:
                hub.abandon_read(name)
                raise

    def _rest(self, name: str, read_seconds: float) -> None:
        """Have the next read of a board wait, so that more who want it gather."""
        loop = asyncio.get_running_loop()
        self._resting[name] = loop.time() + min(GATHER_SHARE * read_seconds, GATHER_SECONDS)
        loop.call_at(self._resting[name], self._resting.pop, name, None)

    async def _read_missed(self, session: Session) -> None:
        while True:
            await self._changes_wanted.wait()
            self._changes_wanted.clear()
            if self._resuming is None or (resume := self._resuming.begin_resume()) is None:
                continue
            try:
                batch = await session.missed(resume.oldest, resume.boards)
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

    async def _write_canaries(self, session: Session) -> None:
        while True:
            self._canary.due(time.monotonic())
            label, rang = await session.write_probe(lambda: self._canary.write(time.monotonic()))
            if not rang:
                self._came(label, "doorbell")  # there is none to wait for
            await self._canary_pause()

    async def _canary_pause(self) -> None:
        """Wait until the next canary is due: soon if others write too, or if one is wanted."""
        for event, seconds in ((self._canary_wanted, CANARY_SECONDS), (self._active, IDLE_CANARY_SECONDS)):
            if self._canary_wanted.is_set():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        self._canary_wanted.clear()
        self._active.clear()

    async def _prune(self, session: Session) -> None:
        while True:
            if not await session.prune():
                self._vitals = await session.vitals()
                await asyncio.sleep(PRUNE_SECONDS)


async def _inspect(session: Session) -> None:
    while True:
        await asyncio.sleep(INSPECT_SECONDS)
        await session.load_watches()


async def _watch_links(session: Session) -> None:
    while True:
        await asyncio.sleep(LINK_SECONDS)
        await session.require_links()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of what went wrong together."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


def _one_line(ex: BaseException) -> str:
    text = " ".join(str(ex).split())
    return text or type(ex).__name__
