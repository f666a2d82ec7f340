"""The feed: follows the journal of one database, for a sink, whatever happens to the connection.

It passes to the sink: batches of transactions, each with the position after it; and boards and what resuming clients
missed, each with the snapshot in which it was read.

Rules:
- State that outlives sessions is the position and progress (position.py, progress.py) and the requests (requests.py).
  During a session, each has a task of its own, and `Follower` reads the journal.
- A fault affects no more than its scope, see faults.py. When a session ends, the feed reconnects, with back-off,
  forever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg
import structlog

from relay.backoff import Backoff
from relay.cancellation import in_own_task
from relay.hub.ports import Authorizer, Question, Resuming, Sink, Source, SourceStatus
from relay.model.cursor import Epoch
from relay.model.snapshot import Snapshot
from relay.model.status import Counts, Database
from relay.postgres import housekeeping
from relay.postgres.connection import complete, in_time
from relay.postgres.faults import FeedError, WatchOutdated, first_of
from relay.postgres.follower import Flow, Follower
from relay.postgres.position import Position
from relay.postgres.progress import Progress
from relay.postgres.requests import BoardReader, MissedReader, Permissions
from relay.postgres.session import Session
from relay.postgres.unshown import Unshown
from relay.text import error_line

log = structlog.get_logger()


class Feed(Source, Authorizer):
    """Follows the journal of one database and reads its boards.

    It begins now, or continues from a position in an epoch. `problem` says in one line why it is not running, and is
    None while it is.
    """

    def __init__(self, database_url: str, epoch: Epoch | None = None, position: Snapshot | None = None) -> None:
        self.problem: str | None = "not connected yet"
        self._position = Position(epoch, position)
        self._conninfo = complete(database_url)
        self._progress = Progress()
        self._flow = Flow()
        self._boards = BoardReader()
        self._missed = MissedReader(self._position)
        self._permissions = Permissions()
        self._unshown = Unshown()
        self._session: Session | None = None
        self._sessions = 0

    # Requests of the sink

    def ask(self, board: str, by: object = None) -> None:
        """Have a board read; boards of different `by` take turns."""
        self._boards.ask(board, by)

    def ask_changes(self, resuming: Resuming) -> None:
        """Have the journal read for clients that resume."""
        self._missed.ask(resuming)

    async def may_read(self, questions: Sequence[Question]) -> Sequence[bool]:
        """Ask the database whether these claims may read these boards, as soon as it is connected."""
        return await self._permissions.may_read(questions)

    def pause(self) -> None:
        """Stop reading the journal until `go_on`: the sink has yet to store what it was given."""
        self._flow.pause()

    def go_on(self) -> None:
        """Read the journal again."""
        self._flow.go_on()

    async def catch_up(self) -> bool:
        """Wait until everything committed now has been passed on; false if not running or if it takes too long."""
        return self.problem is None and await self._progress.catch_up()

    # State

    def status(self, budget: float) -> SourceStatus:
        """Return the state; `budget` is how many seconds a probe may take to come back."""
        problem = self.trouble(budget)
        return SourceStatus(
            up=self.problem is None,
            problem=problem,
            unready=problem or (None if self.proven else "no probe has come back yet"),
            lag_seconds=self.lag,
            counts=self.counts,
            database=self.database,
            failing=self.failing,
            incomplete=self.incomplete,
        )

    def trouble(self, budget: float) -> str | None:
        """Say in one line why changes do not come through; `budget` is how many seconds a probe may take."""
        return self.problem or self._progress.probe.problem(time.monotonic(), budget)

    @property
    def proven(self) -> bool:
        """Whether a probe has come through since the start."""
        return self._progress.probe.took is not None

    @property
    def lag(self) -> float:
        """Age of the last read, in seconds. Everything committed before it has been passed on."""
        return time.monotonic() - self._progress.read_at

    @property
    def counts(self) -> Counts:
        """What has happened since the start."""
        return Counts(
            commit_to_socket=self._progress.probe_times,
            reconnects=max(0, self._sessions - 1),
            continuity_lost=self._position.breaks,
            transactions=self._progress.transactions,
            notifications={"received": self._progress.notifications, "skipped": self._progress.skipped},
        )

    @property
    def failing(self) -> Mapping[str, str]:
        """The boards that cannot be read, and why not."""
        return self._boards.failing

    @property
    def incomplete(self) -> Mapping[str, str]:
        """The tables that are shown, but not as they should be, and why."""
        found = dict(self._session.watches.shortcomings if self._session else {})
        if self._session and self._session.unfit:
            found["schema relay"] = (
                "trigger functions may not fit their tables any more, or lack rights, and Postgres refuses to repair "
                f"them: {self._session.unfit}: run relay sql install"
            )
        for table, problem in self._unshown.problems.items():
            found[table] = f"{found[table]}; {problem}" if table in found else problem
        return found

    @property
    def database(self) -> Database | None:
        """The state of the database, while the feed is connected to it."""
        if self._session is None or (vitals := self._session.vitals) is None:
            return None
        return Database(
            journal=vitals.journal,
            queue_usage=vitals.queue_usage,
            probe_seconds=self._progress.probe.took,
            lag_seconds=self.lag,
        )

    # Sessions, one after another

    async def run(self, sink: Sink) -> None:
        """Feed the sink until cancelled."""
        backoff = Backoff()
        self._unshown.begin(sink)
        while True:
            backoff.begin(time.monotonic())
            try:
                await in_own_task(self._run(sink))
            except* Exception as group:  # noqa: BLE001  # an unforeseen exception ends the session, too
                self._report(_problem_of(group))
            finally:
                self._session = None
            await asyncio.sleep(backoff.fail(time.monotonic(), self.problem or ""))

    async def _run(self, sink: Sink) -> None:
        async with Session.open(self._conninfo, sink, self._unshown) as self._session:
            self._sessions += 1
            await self._follow(self._session, sink)

    async def _follow(self, session: Session, sink: Sink) -> None:
        follower = Follower(session, sink, self._position, self._flow, self._progress, self._report)
        between_batches = self._flow.between_batches
        async with in_time():
            await follower.begin()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            tasks.create_task(self._boards.run(session, sink, between_batches))
            tasks.create_task(self._missed.run(session, between_batches))
            tasks.create_task(self._permissions.run(session))
            tasks.create_task(housekeeping.inspect(session))
            tasks.create_task(housekeeping.prune(session))
            tasks.create_task(self._progress.run(session))
            tasks.create_task(housekeeping.check_links(session))

    def _report(self, problem: str | None) -> None:
        """Log a change of the problem."""
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("feed.running")
        else:
            log.error("feed.problem", problem=problem)
            self._progress.stopped()


# What the relay names everywhere is its own: what somebody dropped, or a role that was renamed.
_NOT_THERE: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
)


def _problem_of(group: BaseExceptionGroup[Exception]) -> str:
    """Say what ended a session. An unforeseen exception is logged whole."""
    first = first_of(group)
    if isinstance(first, psycopg.errors.InsufficientPrivilege) and not first.diag.context:
        return f"{error_line(first)}: run relay sql roles, and connect as relay_daemon"
    if isinstance(first, _NOT_THERE):
        return f"{error_line(first)}: run relay sql install"
    if isinstance(first, (psycopg.Error, OSError, FeedError, WatchOutdated)):
        return error_line(first)
    log.error("feed.fault", exc_info=group)
    return f"an unexpected fault, to be reported with its log line: {error_line(first)}"
